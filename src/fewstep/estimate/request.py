"""What is asked of a trial and what it measures: JSON files between the planning process and the one that tries."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewstep.runs.evaluate import write_json

REQUEST, MEASURED = "request.json", "measured-{}.json"
STAND_IN = "stand-in"  # as a parent: there is none yet, and a fresh network serves


@dataclass(frozen=True)
class Attempt:
    """One stage, to be tried with so few images that it takes seconds.

    Args:
        config: its settings, as plain values.
        rows: images per update, or per cell of evaluation's grid, that it is tried with.
        looks: whether a snapshot is taken, of one step, and diagnostics are.
        parent: the stage tried before whose model is this one's parent, or STAND_IN, or None for that of `config`.
        report: of evaluation, role, steps, evaluations and w of each row of the whole report.
    """

    stage: str
    config: dict[str, Any]
    rows: int
    looks: bool
    parent: str | None = None
    report: Sequence[tuple[str, int, int, float]] = ()


@dataclass(frozen=True)
class Measured:
    """What a trial of a stage showed.

    Args:
        rows: see `Attempt`.
        memory: the most bytes that the process held; `device_memory`: allocated on a GPU, where it trained there.
        seconds_around: of everything but updates and looks, or cells: starting, reading, saving.
        seconds_per_update: in the long run. seconds_per_snapshot: of one step. seconds_per_look: of diagnostics,
            of a rung of one step.
        parameters: of the model it made.
        model_bytes, checkpoint_bytes, picture_bytes: of the files it wrote.
        seconds_per_evaluation: of one image, by the role of a model; seconds_per_cell: of judging one cell of the grid,
            sampling aside. Both of evaluation only.
    """

    stage: str
    rows: int
    memory: int
    device_memory: int
    seconds_around: float
    seconds_per_update: float = 0.0
    seconds_per_snapshot: float = 0.0
    seconds_per_look: float = 0.0
    parameters: int = 0
    model_bytes: int = 0
    checkpoint_bytes: int = 0
    picture_bytes: int = 0
    seconds_per_evaluation: Mapping[str, float] = field(default_factory=dict)
    seconds_per_cell: float = 0.0


def ask(folder: Path, attempts: Sequence[Attempt]) -> None:
    """Write what is to be tried, in this order."""
    write_json(folder / REQUEST, [asdict(attempt) for attempt in attempts])


def asked(folder: Path) -> list[Attempt]:
    """What is to be tried."""
    return [Attempt(**values) for values in json.loads((folder / REQUEST).read_text())]


def tell(folder: Path, measured: Measured) -> None:
    """Write what was measured of a stage."""
    write_json(folder / MEASURED.format(measured.stage), asdict(measured))


def told(folder: Path, stage: str) -> Measured | None:
    """What was measured of a stage; None if its trial did not come to its end."""
    path = folder / MEASURED.format(stage)
    return Measured(**json.loads(path.read_text())) if path.is_file() else None
