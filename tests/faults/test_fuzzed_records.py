"""Any JSON in any place of a run's own files: read, or refused in one line; the page of a run is written all the same.

FEWSTEP_FUZZ=2000 tries more than the 60 of each file that are tried by default.
"""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from fewstep.artifacts.catalogue import figures_below
from fewstep.artifacts.provenance_file import read_provenance
from fewstep.artifacts.quality_file import read_rows
from fewstep.artifacts.run_folder import CONFIG, PRODUCTS, products_of, settings_in
from fewstep.artifacts.trace_file import read_curves
from fewstep.diagnostics.file import read_diagnostics, row_of
from fewstep.reports.diagnostics import seen
from fewstep.sweeps.sweep import SWEEP, described
from fewstep.tracking.metrics_file import read_metrics

FUZZ = fuzz(60)
NUMBERS = st.sampled_from([-1, 0, 0.5, 10**30, -(10**4000), 1e308, -1e308, float("nan"), float("inf"), 2**63])
TEXTS = st.sampled_from(["", "x", "\x1b[2J", "‮", "../../..", "\x00", "ü"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
STATISTICS = {"contrast": 0.5, "saturation": 0.1, "excess": 0.0, "diversity": None}
BINS = [{"low": 0.0, "high": 1.0, "gap": 0.5}]
DIAGNOSTICS = {
    "images": 64, "stage": "progressive", "rung": 4, "gap": 0.25, "gap_by_t": BINS, "gap_by_w": BINS,
    "gap_by_branch": {"conditional": 0.5}, "step_errors": [{"t": 1.0, "error": 0.125}], "samples": STATISTICS,
    "samples_by_w": [{"low": 0.0, "high": 2.0, **STATISTICS}], "teacher_samples": STATISTICS,
    "teacher_samples_by_w": [{"low": 0.0, "high": 2.0, **STATISTICS}], "data": STATISTICS,
    "gradient_norm": {"inward": 0.5}, "gradient_norm_by_role": {"student": 0.5}, "gradient_ratio": {"fake": 1.0},
    "critics": {"fake": {"accuracy": 0.5, "real_loss": 0.7, "generated_loss": 0.7}},
    "alarms": [{"kind": "collapse", "says": "all alike"}],
}  # fmt: skip
QUALITY = [
    {"model": "teacher", "sampler": "ddim", "steps": 4, "nfe": 8, "w": 1.0, "fid": 2.0, "inception_score": None,
     "precision": 0.5, "recall": 0.5, "accuracy": None, "diversity": 0.5, "same_noise_rmse": 0.0,
     "images_per_second": 10.0, "num_images": 20, "seed": 0, "protocol": "aaaa0000", "intervals": {"fid": [1.0, 3.0]}}
]  # fmt: skip
MODEL = {"model": "teacher", "steps": None, "path": "../m.safetensors", "run": "..", "sha256": "ab", "evaluations": 3}
PROVENANCE = {
    "protocol": {"id": "aaaa0000", "seed": 0}, "models": [MODEL], "created": "2026-01-01", "fewstep": "0", "torch": "2",
    "device": "a processor", "peak_memory": {"main": 1},
}  # fmt: skip
CURVES = [{"model": "teacher", "w": 1.0, "times": [1.0, 0.5], "rmse": [0.5, 0.1], "features": [0.5, 0.1]}]
SWEPT = {
    "preset": None, "fixed": ["logger=csv"], "swept": {"seed": ["0", "1"]}, "parents": [], "teachers": {"a": "b"},
    "objective": {"figure": "fid", "steps": 4, "w": None}, "jobs": {"seed=0": {"seed": "0"}},
}  # fmt: skip


def diagnostics(folder: Path) -> None:
    for record in read_diagnostics(folder / "diagnostics.jsonl"):
        row_of(record)
    seen(folder, "progressive", "#123456")


FILES: dict[str, tuple[Any, Callable[[Path], object]]] = {
    "quality.json": (QUALITY, lambda folder: read_rows(folder / "quality.json")),
    "provenance.json": (PROVENANCE, read_provenance),
    "trace.json": (CURVES, lambda folder: read_curves(folder / "trace.json")),
    "diagnostics.jsonl": (DIAGNOSTICS, diagnostics),
    SWEEP: (SWEPT, described),
    CONFIG: ({"seed": 0, "stage": {"name": "teacher", "ladder": [4, 2]}}, settings_in),
    PRODUCTS: (["model.safetensors"], products_of),
}


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values, the whole first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(p for key, each in inner for p in places(each, (*prefix, key)))]


def replaced(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    if not place:
        return by
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = by
    return made


def text_of(name: str, value: Any) -> str:
    return yaml.safe_dump(value) if name.endswith("yaml") else json.dumps(value) + "\n"


def refusal(name: str, folder: Path) -> str | None:
    """The line in which a file is refused, None where it is read."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            FILES[name][1](folder)
        lines = [str(each.message) for each in caught]
    except ValueError as error:
        lines = [str(error)]
    assert all("\n" not in line for line in lines)
    return lines[0] if lines else None


@pytest.mark.parametrize("name", FILES)
def test_what_a_run_writes_is_read(tmp_path: Path, name: str):
    (tmp_path / name).write_text(text_of(name, FILES[name][0]))
    assert refusal(name, tmp_path) is None


@pytest.mark.parametrize("name", FILES)
@FUZZ
@given(data=st.data(), value=JSON)
def test_any_value_in_any_place_is_read_or_refused_in_one_line(tmp_path: Path, name: str, data: Any, value: Any):
    own = FILES[name][0]
    (tmp_path / name).write_text(text_of(name, replaced(own, data.draw(st.sampled_from(places(own))), value)))
    message = refusal(name, tmp_path)
    assert message is None or str(tmp_path / name) in message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "text", ["[" * 20_000, "{" * 20_000, '{"a":' * 20_000, "1" * 10_000, "", "\x00", "[1,", '"\\u001b[2J"', "\ud800"]
)
def test_what_is_no_file_of_fewstep_is_refused_in_one_line(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text + "\n", errors="surrogatepass")
    message = refusal(name, tmp_path)
    assert message is not None
    assert str(tmp_path / name) in message


@pytest.mark.parametrize("text", ["[" * 20_000, '{"models": [{"sha256": "", "steps": "x"}]}', "[]", "\x00", None])
def test_an_evaluation_of_unknown_origin_is_no_news_about_models(tmp_path: Path, text: str | None):
    folder = tmp_path / "digits" / "pipeline" / "time"
    folder.mkdir(parents=True)
    (folder / "quality.json").write_text(text_of("quality.json", QUALITY))
    (folder / "provenance.json").write_text(text_of("provenance.json", PROVENANCE))
    assert figures_below(tmp_path) == {folder.parent / "m.safetensors": {1.0: 2.0}}
    (folder / "provenance.json").unlink()
    if text is not None:
        (folder / "provenance.json").write_text(text)
    assert figures_below(tmp_path) == {}


@pytest.mark.parametrize("text", ["a: &a [1]\nb: *a\n", "a: !!python/object:os.system {}\n", "a: 2024-01-01\n"])
def test_yaml_is_json_by_another_spelling(tmp_path: Path, text: str):
    (tmp_path / CONFIG).write_text(text)
    assert refusal(CONFIG, tmp_path) is not None


@FUZZ
@given(st.lists(st.sampled_from(["1", "nan", "inf", "-1", "1e308", "x", "", "\x00", "9" * 5000]), max_size=9))
@example(["nan", "4", "0.5"])
def test_rows_of_metrics_are_numbers(tmp_path: Path, values: list[str]):
    path = tmp_path / "metrics.csv"
    path.write_text("images,rung,train/loss\n64,4,0.5\n" + ",".join(values) + "\n")
    rows = read_metrics(path)
    assert rows[0] == {"images": 64, "rung": 4, "train/loss": 0.5}
    assert all(0 <= row["images"] < float("inf") for row in rows)
