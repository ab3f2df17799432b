"""diagnostics.jsonl, a line for each measurement of a student in training, and the same as rows of the loggers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from fewstep.diagnostics.alarms import Alarm
from fewstep.system.files import atomic_write
from fewstep.tracking import names
from fewstep.tracking.tracker import trackers

FILE = "diagnostics.jsonl"


class DiagnosticsFile:
    """`folder/diagnostics.jsonl`, to which records are appended; used by the first process alone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; it is handed to the operating system when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, images: int, rung: int | None, *, begins: bool) -> list[dict[str, Any]]:
        """Drop the records that a run resumed at `images` will make again, and return the kept ones of this rung.

        Args:
            begins: whether the phase starts here: its first record has the images of the previous phase's last.
        """
        kept = [
            record
            for record in read_diagnostics(self.path)
            if record["images"] <= images and not (begins and record["rung"] == rung)
        ]
        if kept:
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        else:
            self.path.unlink(missing_ok=True)
        return [record for record in kept if record["rung"] == rung]


def read_diagnostics(path: Path) -> list[dict[str, Any]]:
    """The records of a diagnostics.jsonl without damaged lines; empty where there is no file."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"images", "stage", "rung", "gap"} <= set(record):
            records.append(record)
    return records


def log_record(loggers: Iterable[Logger], record: Mapping[str, Any], new: Sequence[Alarm]) -> None:
    """Log a record, and alert of `new` alarms, through W&B and TensorBoard where they are among the loggers."""
    for tracker in trackers(loggers):
        tracker.log_metrics(row_of(record))
        for alarm in new:
            tracker.alert(f"fewstep: {alarm.kind}", alarm.message)


def logged_rows(folder: Path) -> list[dict[str, float]]:
    """The rows that the run in `folder` has logged, for a tracker that starts anew."""
    return [row_of(record) for record in read_diagnostics(folder / FILE)]


def row_of(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers under their logged names; values that are not known are left out."""
    found: dict[str, float | None] = {names.IMAGES: record["images"], names.RUNG: record["rung"]}
    found |= {names.GAP: record["gap"], names.ALARMS: len(record["alarms"])}
    for axis in ("t", "w"):
        found |= {names.gap_at(axis, bin["low"], bin["high"]): bin["gap"] for bin in record[f"gap_by_{axis}"]}
    found |= {names.gap_of(branch): value for branch, value in (record["gap_by_branch"] or {}).items()}
    found |= {names.step_error_at(step["t"]): step["error"] for step in record["step_errors"]}
    for name in names.SAMPLE_STATISTICS if record["samples"] else ():
        found[names.of_samples(name)] = record["samples"][name]
        found[names.drift_of(name)] = drift(record, name)
    found |= {names.gradient_norm_of(part): norm for part, norm in (record["gradient_norm"] or {}).items()}
    by_role = record.get("gradient_norm_by_role") or {}  # absent in older files
    found |= {names.gradient_norm_of(f"role/{role}"): norm for role, norm in by_role.items()}
    found |= {names.gradient_ratio_of(role): ratio for role, ratio in record.get("gradient_ratio", {}).items()}
    for role, statistics in record.get("critics", {}).items():
        found |= {names.of_critic(role, name): value for name, value in statistics.items()}
    return {name: value for name, value in found.items() if value is not None}


def drift(record: Mapping[str, Any], name: str) -> float | None:
    """A statistic of the student's samples less the teacher's, or less the data's without a teacher; None if unknown.

    Args:
        name: one of SAMPLE_STATISTICS.
    """
    own, reference = record["samples"], record["teacher_samples"] or record["data"]
    if not own or not reference or own[name] is None or reference[name] is None:
        return None
    return own[name] - reference[name]
