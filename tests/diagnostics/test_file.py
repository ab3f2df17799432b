"""Where records go: diagnostics.jsonl, report.html and W&B."""

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.diagnostics.alarms import Alarm
from fewstep.diagnostics.file import (
    FILE,
    DiagnosticsFile,
    log_record,
    logged_rows,
    read_diagnostics,
    row_of,
)
from fewstep.reports.diagnostics import seen
from fewstep.tracking.names import IMAGES, RUNG
from fewstep.tracking.wandb_run import WandbRun

STATISTICS = {"contrast": 0.6, "saturation": 0.1, "excess": 0.01, "diversity": 0.3}
ALARM = {"kind": "collapse", "says": "collapse in progressive 2 at 300 images: <b>all</b> alike"}


def record(images: int, rung: int | None, alarms: list[dict[str, str]] | None = None) -> dict[str, Any]:
    return {
        "images": images,
        "stage": "progressive",
        "rung": rung,
        "gap": 0.25,
        "gap_by_t": [{"low": 0.5, "high": 0.5, "gap": 0.2}, {"low": 1.0, "high": 1.0, "gap": 0.3}],
        "gap_by_w": [{"low": 0.0, "high": 2.0, "gap": 0.25}],
        "gap_by_branch": None,
        "step_errors": [{"t": 1.0, "error": 0.125}, {"t": 0.5, "error": 0.0625}],
        "samples": STATISTICS | {"contrast": 0.75},
        "samples_by_w": [{"low": 0.0, "high": 2.0, **STATISTICS}],
        "teacher_samples": STATISTICS,
        "teacher_samples_by_w": [{"low": 0.0, "high": 2.0, **STATISTICS}],
        "data": STATISTICS | {"diversity": None},
        "gradient_norm": {"inward": 0.5},
        "gradient_norm_by_role": {"student": 0.75, "fake": 2.0},
        "alarms": alarms or [],
    }


def test_a_report_shows_charts_of_every_kind_and_each_alarm_once(tmp_path: Path) -> None:
    file = DiagnosticsFile(tmp_path)
    for one in (record(0, 4), record(100, 4), record(100, 2), record(300, 2, [ALARM]), record(400, 2, [ALARM])):
        file.append(one)
    found = seen(tmp_path, "progressive", "#123456")
    assert found is not None
    assert found.alarms == [ALARM["says"]]
    assert [title for title, _ in found.charts] == [
        "gap over training",
        "gap by t, at the end",
        "gap by w, at the end",
        "one step on its own path",
        "drift of contrast",
        "drift of saturation",
        "drift of diversity",
    ]
    assert all(str(chart).startswith("<svg") for _, chart in found.charts)
    assert list(found.colour) == [4, 2]
    assert found.samples[0].pairs[0] == (0.75, 0.6)
    assert found.gradients == [
        ("inward", [0.5, 0.5]),
        ("student, as a whole", [0.75, 0.75]),
        ("fake, as a whole", [2.0, 2.0]),
    ]


def test_a_run_without_records_or_with_another_programs_has_nothing_to_show(tmp_path: Path) -> None:
    assert seen(tmp_path, "teacher", "#123456") is None
    (tmp_path / FILE).write_text("[1]\n{\n" + json.dumps({"images": 0, "stage": 1, "rung": [], "gap": "x"}) + "\n")
    assert seen(tmp_path, "teacher", "#123456") is None


class Experiment:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []

    def log(self, row: dict[str, Any], *_: Any, **__: Any) -> None:
        self.logged.append(row)

    def alert(self, *, title: str, text: str, level: str) -> None:
        self.alerts.append({"title": title, "text": text, "level": level})


def test_wandb_gets_every_number_and_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment()
    logger = WandbRun.__new__(WandbRun)
    monkeypatch.setattr(WandbRun, "experiment", experiment)
    monkeypatch.setattr(WandbRun, "attempt", lambda self, action: action())
    monkeypatch.setattr(WandbRun, "log_metrics", lambda self, row, step=None: experiment.log(dict(row)))
    log_record([logger], record(300, 2, [ALARM]), [Alarm("collapse", ALARM["says"])])
    (row,) = experiment.logged
    DiagnosticsFile(tmp_path).append(record(300, 2, [ALARM]))
    assert logged_rows(tmp_path) == [row]
    assert row[IMAGES] == 300
    assert row[RUNG] == 2
    assert row["diagnostics/gap"] == 0.25
    assert row["diagnostics/gap_t/0.5"] == 0.2
    assert row["diagnostics/gap_w/0-2"] == 0.25
    assert row["diagnostics/step_error/t=1.000"] == 0.125
    assert row["diagnostics/contrast_drift"] == pytest.approx(0.15)
    assert row["diagnostics/gradient_norm/inward"] == 0.5
    assert row["diagnostics/gradient_norm/role/fake"] == 2.0
    assert row["diagnostics/alarms"] == 1
    assert experiment.alerts == [{"title": "fewstep: collapse", "text": ALARM["says"], "level": "WARN"}]


def test_what_is_not_known_is_no_number() -> None:
    encoder = record(0, 4) | {"samples": None, "teacher_samples": None, "gradient_norm": None, "gap_by_w": []}
    encoder |= {"gradient_norm_by_role": None}
    found = row_of(encoder)
    assert "diagnostics/contrast" not in found
    assert all(isinstance(value, int | float) for value in found.values())
    teacher = record(0, None) | {"teacher_samples": None, "gap_by_branch": {"conditional": 0.5}}
    assert "diagnostics/diversity_drift" not in row_of(teacher)  # the data's is not known
    assert row_of(teacher)["diagnostics/gap_branch/conditional"] == 0.5


def test_a_run_without_target_or_data_is_shown_all_the_same(tmp_path: Path) -> None:
    unmeasured = {"gap": None, "gap_by_t": [], "gap_by_w": [], "step_errors": [], "data": None, "gradient_norm": None}
    file = DiagnosticsFile(tmp_path)
    for images in (0, 100):
        file.append(record(images, 4) | unmeasured)
    found = seen(tmp_path, "dmd2", "#123456")
    assert found is not None
    assert [title for title, _ in found.charts] == ["drift of contrast", "drift of saturation", "drift of diversity"]
    assert found.data == [None] * 4
    assert found.gradients == [("student, as a whole", [0.75]), ("fake, as a whole", [2.0])]
    metrics = row_of(record(0, 4) | unmeasured)
    assert not any("gap" in name for name in metrics)
    assert metrics["diagnostics/contrast_drift"] == pytest.approx(0.15)
    alone = row_of(record(0, 4) | unmeasured | {"teacher_samples": None})
    assert "diagnostics/contrast" in alone
    assert "diagnostics/contrast_drift" not in alone


def test_lines_that_were_cut_are_left_out(tmp_path: Path) -> None:
    file = DiagnosticsFile(tmp_path)
    file.append(record(0, 4))
    with file.path.open("a") as out:
        out.write('{"images": 12, "sta')
    assert [one["images"] for one in read_diagnostics(file.path)] == [0]
    assert [one["images"] for one in file.truncate(50, 4, begins=False)] == [0]
    assert file.path.read_text().count("\n") == 1
    file.truncate(0, 4, begins=True)
    assert not file.path.exists()
