"""The models below a folder of runs: what each is, and the figures of the newest evaluation that judged it."""

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fewstep.artifacts.model_file import read_card
from fewstep.artifacts.provenance_file import read_provenance
from fewstep.artifacts.quality_file import read_rows
from fewstep.artifacts.run_folder import QUALITY


@dataclass(frozen=True)
class Entry:
    """A model file.

    Attributes:
        path: of the file. made: when it was written.
        problem: why it cannot be read; the rest is then empty.
        method: the card's label. steps: that it is made for; empty for any number. w: its guidance range.
        fid: at each w, at the most steps it is made for, or was judged at.
    """

    path: Path
    made: datetime
    problem: str | None = None
    dataset: str = ""
    method: str = ""
    steps: tuple[int, ...] = ()
    w: tuple[float, float] | None = None
    fid: dict[float, float] = field(default_factory=dict)


def models_below(outputs: Path) -> list[Entry]:
    """Every model of a run below `outputs`, the newest first."""
    figures = figures_below(outputs)
    files = (path for path in outputs.glob("*/*/*/model*.safetensors") if "adapter" not in path.name)
    return sorted((entry_of(path, figures.get(path.resolve(), {})) for path in files), key=newest_first)


def newest_first(entry: Entry) -> tuple[float, str]:
    """Sort key: the newest first, then by path."""
    return -entry.made.timestamp(), str(entry.path)


def entry_of(path: Path, fid: dict[float, float]) -> Entry:
    """The entry of a model file, whatever it holds."""
    made = datetime.fromtimestamp(path.stat().st_mtime)
    try:
        card = read_card(path)
    except (ValueError, OSError) as error:
        return Entry(path, made, problem=" ".join(str(error).split()))
    w = None if card.w_min is None or card.w_max is None else (card.w_min, card.w_max)
    method = f"{card.label} (encoder)" if card.encodes else card.label
    return Entry(path, made, None, card.data.name, method, card.sampling.steps, w, fid)


def figures_below(outputs: Path) -> dict[Path, dict[float, float]]:
    """Model file -> w -> FID at its most steps, of the newest evaluation below `outputs` that judged it."""
    found: dict[Path, dict[float, float]] = {}
    for quality in sorted(outputs.glob(f"*/*/**/{QUALITY}"), key=lambda path: path.stat().st_mtime):
        try:
            rows = [row for row in read_rows(quality) if not row.base_steps and row.name == row.model]
            provenance = read_provenance(quality.parent)
            for model in provenance.models if provenance else ():
                own = [row for row in rows if row.model == model.model]
                most = max((row.steps for row in own if model.steps in (None, row.steps)), default=None)
                path = Path(os.path.normpath(quality.parent.resolve() / model.path))
                if most is not None:
                    found[path] = {row.w: row.fid for row in own if row.steps == most}
        except (ValueError, OSError):  # a damaged evaluation is no news about the models
            continue
    return found
