"""diagnostics.jsonl, a line for each measurement of a student in training, and the same as rows of the loggers."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from pydantic import with_config

from fewstep.diagnostics.alarms import Alarm
from fewstep.system.files import atomic_write
from fewstep.system.stored import one_line_errors, parse_json
from fewstep.system.validation import STRICT, Count
from fewstep.tracking import names
from fewstep.tracking.tracker import trackers

FILE = "diagnostics.jsonl"
Figures = Mapping[str, float | None]
"""By the name of a branch, a part of the network or a role."""


@with_config(STRICT)
@dataclass(frozen=True)
class Statistics:
    """SAMPLE_STATISTICS, None where one is not known."""

    contrast: float | None
    saturation: float | None
    excess: float | None
    diversity: float | None


@with_config(STRICT)
@dataclass(frozen=True)
class BinStatistics(Statistics):
    """Those of a bin of w."""

    low: float
    high: float


@with_config(STRICT)
@dataclass(frozen=True)
class BinGap:
    """The gap in a bin of t or w."""

    low: float
    high: float
    gap: float | None


@with_config(STRICT)
@dataclass(frozen=True)
class StepError:
    """The error of one student step from t."""

    t: float
    error: float | None


@with_config(STRICT)
@dataclass(frozen=True)
class Critic:
    """See `critics.CriticStatistics`."""

    accuracy: float | None
    real_loss: float | None
    generated_loss: float | None


@with_config(STRICT)
@dataclass(frozen=True)
class Says:
    """An alarm that was raised."""

    kind: str
    says: str


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Record:
    """What a line must hold; what has a default is absent in files of earlier versions.

    Raises:
        ValueError: a teacher's statistics are not of the student's bins.
    """

    images: Count
    stage: str
    rung: Count | None
    gap: float | None
    gap_by_t: tuple[BinGap, ...]
    gap_by_w: tuple[BinGap, ...]
    gap_by_branch: Figures | None
    step_errors: tuple[StepError, ...]
    samples: Statistics | None
    samples_by_w: tuple[BinStatistics, ...]
    teacher_samples: Statistics | None
    teacher_samples_by_w: tuple[BinStatistics, ...]
    data: Statistics | None
    gradient_norm: Figures | None
    gradient_norm_by_role: Figures | None = None
    gradient_ratio: Figures = field(default_factory=dict)
    critics: Mapping[str, Critic] = field(default_factory=dict)
    alarms: tuple[Says, ...]

    def __post_init__(self) -> None:
        if self.samples and self.teacher_samples and len(self.samples_by_w) != len(self.teacher_samples_by_w):
            raise ValueError("a teacher's samples must have the student's bins of w")


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
    """The records of a diagnostics.jsonl without damaged lines; empty where there is no file.

    A last line that a kill has torn is left out silently, other damage with a warning.
    """
    if not path.is_file():
        return []
    records, refused = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            with one_line_errors(path, "the other lines are used"):
                parse_json(line, Record)
            records.append(json.loads(line))
        except ValueError as error:
            refused += [(number, error)] if number < len(lines) else []
    if refused:
        number, error = refused[0]
        warnings.warn(f"line {number} of {error}", stacklevel=2)
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
