"""diagnostics.jsonl: a line per look at a student in training, whole after any interruption; the same goes to W&B."""

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
    """`folder/diagnostics.jsonl`, to which looks are appended; for the first process alone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def append(self, look: Mapping[str, Any]) -> None:
        """Add one line; it is on its way to the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(look) + "\n")

    def truncate(self, images: int, rung: int | None, *, begins: bool) -> list[dict[str, Any]]:
        """Drop what a run that goes on at `images` will look at again, and give the looks it has had at this rung.

        Args:
            begins: whether the stage or rung starts here: its first look stands at the images of the last rung's end.
        """
        kept = [
            look
            for look in read_diagnostics(self.path)
            if look["images"] <= images and not (begins and look["rung"] == rung)
        ]
        if kept:
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(json.dumps(look) + "\n" for look in kept), encoding="utf-8")
        else:
            self.path.unlink(missing_ok=True)
        return [look for look in kept if look["rung"] == rung]


def read_diagnostics(path: Path) -> list[dict[str, Any]]:
    """The looks of a diagnostics.jsonl; a cut or damaged line is left out. No file is no looks."""
    if not path.is_file():
        return []
    looks = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            look = json.loads(line)
        except ValueError:
            continue
        if isinstance(look, dict) and {"images", "stage", "rung", "gap"} <= set(look):
            looks.append(look)
    return looks


def log_look(loggers: Iterable[Logger], look: Mapping[str, Any]) -> None:
    """Give W&B, if it is among the loggers, the numbers of a look."""
    row = {IMAGES: look["images"], **({} if look["rung"] is None else {RUNG: look["rung"]}), **numbers(look)}
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_metrics(row)


def alert(loggers: Iterable[Logger], kind: str, text: str) -> None:
    """Have W&B, if it is among the loggers, tell its user (by mail or chat, as set up there)."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.attempt(lambda run=logger: run.experiment.alert(title=f"fewstep: {kind}", text=text, level="WARN"))


def numbers(look: Mapping[str, Any]) -> dict[str, float]:
    """A look as W&B's keys and numbers; what it has not is left out."""
    found: dict[str, float | None] = {GAP: look["gap"], ALARMS: len(look["alarms"])}
    for axis in ("t", "w"):
        found |= {gap_at(axis, bin["low"], bin["high"]): bin["gap"] for bin in look[f"gap_by_{axis}"]}
    found |= {gap_of(branch): value for branch, value in (look["gap_by_branch"] or {}).items()}
    found |= {step_error_at(step["t"]): step["error"] for step in look["step_errors"]}
    samples, wanted = look["samples"], look["teacher_samples"] or look["data"]
    for name in SAMPLE_STATISTICS if samples else ():
        found[of_samples(name)] = samples[name]
        if samples[name] is not None and wanted[name] is not None:
            found[drift_of(name)] = samples[name] - wanted[name]
    found |= {gradient_norm_of(part): norm for part, norm in (look["gradient_norm"] or {}).items()}
    return {name: value for name, value in found.items() if value is not None}
