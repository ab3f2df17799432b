"""Evaluate models together: quality.json, where the figures come from, the pictures, and the report."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch.loggers import Logger
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fewstep.artifacts.lineage import ancestors
from fewstep.artifacts.model_file import ModelCard, load_model
from fewstep.artifacts.pictures import picture, save_png
from fewstep.artifacts.quality_file import QualityRow
from fewstep.artifacts.run_folder import PROVENANCE, QUALITY
from fewstep.data.control import ControlData
from fewstep.diffusion.guidance import Weight, weight_in_words
from fewstep.distributed.collectives import on_main_process, rank
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.grid import Clip, quality_grid
from fewstep.evaluation.images import EvaluationImages
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.evaluation.protocol import Protocol
from fewstep.inference.model import Model
from fewstep.reports.report import write_report
from fewstep.runs.candidates import candidates_of, labels_of
from fewstep.runs.rollouts import write_rollouts
from fewstep.runs.trace import write_traces
from fewstep.system.files import sha256_of, write_json
from fewstep.system.hardware import cpu_name, peak_gpu_memory, peak_memory
from fewstep.tracking.tracker import log_quality

SAME_NOISE = Path("samples", "same-noise")


def with_ancestors(paths: Sequence[Path]) -> dict[Path, Model]:
    """The models at `paths` and all they were made from: the oldest first, students from most steps to fewest."""
    found: dict[Path, Model] = {}
    for path in paths:
        model = Model(*load_model(path))
        found[path.resolve()] = model
        for ancestor in ancestors(path, model.card.parents):
            if ancestor.resolve() not in found:
                found[ancestor.resolve()] = Model(*load_model(ancestor))
    return dict(sorted(found.items(), key=lambda item: place_in_order(item[1].card)))


def place_in_order(card: ModelCard) -> tuple[bool, bool, bool, str, int]:
    """What models are sorted by: teachers, guided students, then each method's students, encoders last."""
    any_steps = card.sampling.times is None
    return (
        card.encodes,
        not any_steps,
        not card.sampling.is_combined,
        "" if any_steps else card.method,
        -(card.num_steps or 0),
    )


def evaluate(
    paths: Sequence[Path],
    plan: EvaluationPlan,
    evaluator: Evaluator,
    folder: Path,
    loggers: Sequence[Logger],
    *,
    accelerator: str = "cpu",
    compiled: bool = False,
    samples: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure the whole grid of the models at `paths` and their ancestors, and write everything into `folder`.

    Args:
        samples: folder in which those of models of any number of steps are kept for other evaluations.
        compiled: whether the networks' calls are, on a GPU into CUDA graphs.

    Raises:
        ValueError: a model makes other data than `evaluator` judges, an ancestor is gone or changed, or all
            are encoders.
    """
    models = checked_models(paths, plan, evaluator)
    evaluator.net.to(device := "cuda" if accelerator == "gpu" else "cpu")
    for model in models.values() if compiled else ():
        model.to(device).compile()
    digests = {path: sha256_of(path) for path in models} if samples is not None else {}
    candidates = candidates_of(models, plan, evaluator.exact, device, digests)
    protocol = protocol_of(evaluator, plan, candidates[0])
    cells = quality_grid(
        candidates,
        plan,
        facts=evaluator.facts,
        net=evaluator.net,
        reference_statistics=evaluator.reference_statistics,
        protocol=protocol,
        labels=evaluator.data.conditions(plan.num_images),
        decode=evaluator.data.decode,
        clip_score=clip_of(evaluator, plan, device),
        measured_styles=evaluator.data.measured_styles,
        exact=evaluator.exact,
        originals=evaluator.originals(plan.num_images),
        device=device,
        folder=samples,
        show=partial(save_same_noise, evaluator, folder),
    )
    rows = [row.as_dict() for row in with_progress(cells, candidates, plan)]

    def write() -> None:
        if isinstance(evaluator.data, ControlData):  # before the report, which says that a run is finished
            judged = [(label, models[path]) for path, label in labels_of(models).items()]
            write_rollouts(judged, plan, evaluator.data, folder)
        write_json(folder / QUALITY, rows)
        write_json(folder / PROVENANCE, provenance(models, protocol, folder, device))
        write_traces(candidates, plan, evaluator, folder, loggers, device)
        log_quality(loggers, rows)
        write_report(folder)

    on_main_process(write)
    return rows


def protocol_of(evaluator: Evaluator, plan: EvaluationPlan, first: Candidate) -> Protocol:
    """What the figures of an evaluation depend on besides the models; `first` is what the others are compared with."""
    return Protocol.of(
        evaluator.facts,
        evaluator.net,
        evaluator.reference,
        num_images=plan.num_images,
        seed=plan.seed,
        labels=evaluator.labels(plan.num_images),
        comparison=f"{first.model}, ddim, {first.steps[0]} steps",
    )


def clip_of(evaluator: Evaluator, plan: EvaluationPlan, device: str) -> Clip | None:
    """The CLIP score of a cell's images with the plan's prompts, where there are both."""
    prompts = evaluator.data.prompts(plan.num_images) or []
    return evaluator.clip and partial(evaluator.clip, prompts=prompts, device=device)


def checked_models(paths: Sequence[Path], plan: EvaluationPlan, evaluator: Evaluator) -> dict[Path, Model]:
    """The models at `paths` and their ancestors, after all checks; see `evaluate`."""
    models = with_ancestors(paths)
    check_models(models, paths, evaluator)
    check_weights(models, plan)
    return models


def check_models(models: dict[Path, Model], paths: Sequence[Path], evaluator: Evaluator) -> None:
    """Refuse models that cannot be evaluated together.

    Raises:
        ValueError: all are encoders, or one makes other data.
    """
    if all(models[path.resolve()].card.encodes for path in paths):
        raise ValueError("encoders make no samples to judge; what they are worth is in the cycle.json of their run")
    for path, model in models.items():
        if model.card.data != evaluator.facts:
            raise ValueError(f"{path} makes {model.card.data.title}, and is to be judged on {evaluator.facts.title}")


def check_weights(models: dict[Path, Model], plan: EvaluationPlan) -> None:
    """Refuse a grid of one weight for models that have two, and the other way round.

    Raises:
        ValueError: names the model.
    """
    for path, model in models.items():
        card, given = model.card, list(plan.w2)
        if card.sampling.guidance == "none" or card.has_two_weights == bool(given):
            continue
        if card.has_two_weights:
            raise ValueError(
                f"{path} has a guidance weight for the class and one for the style, and evaluation's w2, of the style, "
                f"is {given}; use stage.w2=[0,1,2]"
            )
        raise ValueError(f"{path} has one guidance weight, and evaluation's w2 is {given}; use stage.w2=[]")


def save_same_noise(
    evaluator: Evaluator,
    folder: Path,
    candidate: Candidate,
    steps: int,
    w: Weight,
    images: EvaluationImages,
    labels: Int[Tensor, "count"],
) -> None:
    """Save a cell's first samples, which all models make of the same noise."""
    facts = evaluator.facts
    count = facts.in_a_row if facts.is_image else len(images)
    weights = "-".join(f"{value:g}" for value in (w if isinstance(w, tuple) else (w,)))
    name = f"{candidate.name}-{steps}-w{weights}.png"
    save_png(picture(images[:count], labels[:count], facts.pixels, facts.in_a_row), folder / SAME_NOISE / name)


def with_progress(
    cells: Iterator[QualityRow], candidates: Sequence[Candidate], plan: EvaluationPlan
) -> Iterator[QualityRow]:
    """Pass the cells on, showing how far the grid is in network evaluations, and the images/s of the latest cell."""
    if rank() > 0:
        yield from cells
        return
    total = len(plan.weights) * sum(candidate.nfe(steps) for candidate in candidates for steps in candidate.steps)
    columns = (TextColumn("evaluate"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    few_step = {candidate.model for candidate in candidates if candidate.sampling.times is not None}
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total)
        for row in cells:
            rate = f"{row.images_per_second:,.0f} images/s"
            text = f"{row.name} {row.steps} steps, {weight_in_words(row.weight)}: FID {row.fid:.2f}, {rate}"
            progress.update(task, advance=row.nfe, description=text)
            if not progress.console.is_terminal and row.model in few_step:
                print(text, flush=True)
            yield row


def provenance(models: dict[Path, Model], protocol: Protocol, folder: Path, device: str) -> dict[str, Any]:
    """Where the figures of a folder come from."""
    labels = labels_of(models)
    return {
        "protocol": protocol.as_dict(),
        "models": [
            {
                "model": labels[path],
                "steps": model.card.num_steps,
                "path": os.path.relpath(path, folder),
                "run": os.path.relpath(path.parent, folder),
                "sha256": sha256_of(path),
                "evaluations": model.card.evaluations,
            }
            for path, model in models.items()
        ],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fewstep": version("fewstep"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "peak_memory": {"main": peak_memory(), "gpu": peak_gpu_memory()},  # bytes, of the process that judged
    }
