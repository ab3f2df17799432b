"""benchmarks/gpu.py at toy size, on whatever there is: every part runs, or says why it does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

PARTS = ("networks", "sampling", "synchronisations", "sharding", "memory")


def measured(out: Path, *parts: str) -> dict:
    options = [option for part in parts for option in ("--part", part)]
    command = [sys.executable, "benchmarks/gpu.py", "--toy", "--out", str(out), *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {name: part["rows"] for name, part in json.loads(out.read_text())["parts"].items()}


@pytest.mark.slow
def test_every_part_is_measured_at_toy_size(tmp_path: Path) -> None:
    rows = measured(tmp_path / "gpu.json", *PARTS)
    assert list(rows) == list(PARTS)
    assert all(row["images/s"] > 0 and row["of the peak %"] > 0 for row in rows["networks"])
    assert all(row["largest difference"] < 1e-4 for row in rows["sampling"])
    # On a CPU the clipping reads the norm, to leave gradients that are short alone; nothing else is read.
    assert {place for row in rows["synchronisations"] for place in row["at"]} <= {
        "training/module.py:configure_gradient_clipping"
    }
    assert all(rate > 0 for rate in rows["sharding"][0].values())
    assert rows["memory"][0]["ratio"] > 0
