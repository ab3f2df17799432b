"""diagnostics.jsonl, a line for each measurement of a student in training, intact after interruptions; and W&B."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from fewstep.system.files import atomic_write
from fewstep.tracking.names import (
    ALARMS,
    GAP,
    IMAGES,
    RUNG,
    SAMPLE_STATISTICS,
    drift_of,
    gap_at,
    gap_of,
    gradient_norm_of,
    of_samples,
    step_error_at,
)
from fewstep.tracking.wandb_run import WandbRun

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


def log_record(loggers: Iterable[Logger], record: Mapping[str, Any]) -> None:
    """Log a record's numbers to W&B, if it is among the loggers."""
    rung = {} if record["rung"] is None else {RUNG: record["rung"]}
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_metrics({IMAGES: record["images"], **rung, **metrics_of(record)})


def send_alert(loggers: Iterable[Logger], kind: str, text: str) -> None:
    """Send an alert through W&B (mail or chat, as configured there), if it is among the loggers."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.attempt(lambda run=logger: run.experiment.alert(title=f"fewstep: {kind}", text=text, level="WARN"))


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers under W&B's names; values that are not known are left out."""
    found: dict[str, float | None] = {GAP: record["gap"], ALARMS: len(record["alarms"])}
    for axis in ("t", "w"):
        found |= {gap_at(axis, bin["low"], bin["high"]): bin["gap"] for bin in record[f"gap_by_{axis}"]}
    found |= {gap_of(branch): value for branch, value in (record["gap_by_branch"] or {}).items()}
    found |= {step_error_at(step["t"]): step["error"] for step in record["step_errors"]}
    for name in SAMPLE_STATISTICS if record["samples"] else ():
        found[of_samples(name)] = record["samples"][name]
        found[drift_of(name)] = drift(record, name)
    found |= {gradient_norm_of(part): norm for part, norm in (record["gradient_norm"] or {}).items()}
    by_role = record["gradient_norm_by_role"] or {}
    found |= {gradient_norm_of(f"role/{role}"): norm for role, norm in by_role.items()}
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
