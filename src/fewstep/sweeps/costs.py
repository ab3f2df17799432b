"""What the training of a job's models took: evaluations by their cards, the rest by metrics.csv in their folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

from fewstep.artifacts.model_file import load_model
from fewstep.artifacts.provenance_file import JudgedModel, read_provenance
from fewstep.artifacts.quality_file import TEACHER
from fewstep.system.stored import leave_out
from fewstep.tracking.metrics_file import FILE, read_metrics
from fewstep.tracking.names import IMAGES, IMAGES_PER_SECOND, PEAK_MEMORY, RUNG

SLOWEST = 1e-9  # images a second that a time is computed from


@dataclass(frozen=True)
class Cost:
    """What a model's training took, with the phases before it in its run: a ladder's rungs above it.

    Attributes:
        evaluations: of networks, forward 1 and backward 2. images: seen. seconds: of training.
        distillation: evaluations of all that was distilled from the teacher up to this model, guided student and all;
            0 for a teacher.
        peak_memory: bytes, of the process that trained; of its GPU where it has one.
    """

    evaluations: float
    distillation: float
    images: float | None = None
    seconds: float | None = None
    peak_memory: float | None = None


@dataclass(frozen=True)
class ModelCost:
    """The cost of one model file; `steps` is None for a model of any number of steps."""

    model: str
    steps: int | None
    cost: Cost


def costs_in(folder: Path) -> list[ModelCost]:
    """The costs of the models that the run in `folder` has judged; none of files that are gone.

    Args:
        folder: of a pipeline or an evaluation, which has provenance.json.
    """
    provenance = read_provenance(folder)
    models, found = provenance.models if provenance else (), []
    for model in models:
        try:
            if (folder / model.path).is_file():
                found.append(ModelCost(model.model, model.steps, cost_of(folder, model, models)))
        except (ValueError, OSError) as error:  # of a damaged model the figures are still good
            leave_out(folder / model.path, error)
    return found


def cost_of(folder: Path, model: JudgedModel, models: Sequence[JudgedModel]) -> Cost:
    """The cost of one entry of provenance.json among all."""
    parents = {parent.sha256 for parent in load_model(folder / model.path)[1].parents}
    chain = [each for each in models if each is model or each.sha256 in parents]
    own = sum(each.evaluations or 0 for each in chain if each.run == model.run)
    distilled = sum(each.evaluations or 0 for each in chain if each.model != TEACHER)
    return Cost(own, distilled, **measured(folder / model.run, model.steps))


def measured(run: Path, steps: int | None) -> dict[str, float]:
    """Images, seconds and peak memory of a run's training up to the end of the phase of `steps` steps."""
    rows = read_metrics(run / FILE)
    last = max((n for n, row in enumerate(rows) if row.get(RUNG) in (steps, None)), default=len(rows) - 1)
    rows = [row for row in rows[: last + 1] if SLOWEST < row.get(IMAGES_PER_SECOND, 0) < inf]
    if not rows:
        return {}
    images = [0.0, *(row[IMAGES] for row in rows)]
    spans = zip(pairwise(images), rows, strict=True)
    seconds = sum((now - before) / row[IMAGES_PER_SECOND] for (before, now), row in spans)
    memory = max((row[PEAK_MEMORY] for row in rows if 0 <= row.get(PEAK_MEMORY, -1) < inf), default=None)
    return {"images": images[-1], "seconds": seconds} | ({} if memory is None else {"peak_memory": memory})


def cost_among(costs: Sequence[ModelCost], model: str, steps: int) -> Cost | None:
    """That of a model in tables: the file of so many steps, else the only one of its name."""
    own = [each for each in costs if each.model == model]
    exact = [each for each in own if each.steps == steps]
    if exact:
        return exact[0].cost
    return own[0].cost if len(own) == 1 else None
