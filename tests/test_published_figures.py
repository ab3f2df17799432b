"""Published figures are those of the committed results."""

import json
import re

from running import ROOT

NAMES = {"guided teacher (128 evaluations)": "teacher", "guided student": "guided"}


def test_the_readmes_table_is_that_of_the_benchmark() -> None:
    results = json.loads((ROOT / "benchmarks/results/methods_digits.json").read_text())
    cells = {(cell["model"], cell["steps"], cell["w"]): cell["fid"]["mean"] for cell in results["cells"]}
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| ([\d.| ]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 14
    for model, steps, figures in rows:
        for w, figure in zip((0.0, 1.0, 2.0, 4.0), figures.split(" | "), strict=True):
            assert figure == f"{cells[NAMES.get(model, model), int(steps), w]:.2f}", (model, steps, w)
