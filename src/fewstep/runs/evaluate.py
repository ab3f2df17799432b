"""Evaluate models together: quality.json, where the figures come from, the pictures, and the report."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
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
from fewstep.diffusion.guidance import Weight, log_snr_interval, weight_in_words
from fewstep.diffusion.hybrid import FirstSteps
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.sampling import Sampling
from fewstep.distributed.collectives import on_main_process, rank
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.grid import EvaluationPlan, guided_exactly, quality_grid
from fewstep.evaluation.images import EvaluationImages
from fewstep.evaluation.protocol import Protocol
from fewstep.inference.model import Model
from fewstep.networks import Frozen
from fewstep.reports.report import write_report
from fewstep.runs.rollouts import write_rollouts
from fewstep.runs.trace import write_traces
from fewstep.system.files import sha256_of, tensor_digest, write_json
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


def candidates_of(
    models: dict[Path, Model],
    plan: EvaluationPlan,
    exact: GaussianMixture | None,
    device: str = "cpu",
    digests: Mapping[Path, str] = MappingProxyType({}),
) -> list[Candidate]:
    """Each model with the steps and the sampler it is judged at; the exact teacher where the chain has no trained one.

    A teacher is guided in the interval that its student was made for; models of any number of steps have the baselines
    too. Encoders make no samples and are left out.

    Args:
        digests: of the models' files, where samples of those of any number of steps shall be kept.
    """
    cards = [model.card for model in models.values()]
    own = next((card for card in cards if card.guidance_interval), cards[0])  # in the times of that student's schedule
    interval = log_snr_interval(own.schedule, own.guidance_interval)
    candidates, labels = [], labels_of(models)
    if exact is not None and not any(card.label == "teacher" for card in cards):
        guided = guided_exactly(exact, plan.no_guidance, interval)
        sampling = Sampling(guidance="three_evaluations" if plan.w2 else "two_evaluations")
        teacher = Candidate("teacher", guided, guided.evaluations, cards[0].schedule, plan.teacher_steps, sampling)
        digest = f"{tensor_digest(exact.tensors)} {interval} {cards[0].schedule}"
        teacher = replace(teacher, digest=digest)
        candidates += with_baselines(teacher, plan)
    for path, model in models.items():
        card = model.card
        if card.encodes:
            continue
        model.to(device)
        for name, grid, most in (("w", plan.w, card.w_max), ("w2", plan.w2, card.w2_max)):
            if most is not None and grid and max(grid) > most:
                warnings.warn(
                    f"the grid's {name} goes to {max(grid):g}, and a student was made for {name} to {most:g}",
                    stacklevel=3,
                )
        own_candidates = candidates_of_model(model, labels[path], plan, interval)
        if card.sampling.times is None and path in digests:
            own_candidates = [replace(each, digest=f"{digests[path]} {interval}") for each in own_candidates]
        candidates += own_candidates
    return with_hybrids(candidates, plan)


def labels_of(models: dict[Path, Model]) -> dict[Path, str]:
    """What each model is called in tables: its card's label.

    Of several methods with one label and the same step counts, like a guided student and a method's own student of any
    number of steps made from it, the one with the fewest ancestors keeps it and the others have their method's name;
    several runs of one method have their run's name too.
    """

    def alike(labels: dict[Path, str], path: Path) -> list[Model]:
        own = labels[path], models[path].card.sampling.steps
        return [model for each, model in models.items() if (labels[each], model.card.sampling.steps) == own]

    labels = {path: model.card.label for path, model in models.items()}
    oldest = {path: min(alike(labels, path), key=lambda model: len(model.card.parents)) for path in models}
    by_method = {
        path: labels[path] if model.card.method == oldest[path].card.method else model.card.method
        for path, model in models.items()
    }
    return {
        path: f"{label} {path.parent.name}" if len(alike(by_method, path)) > 1 else label
        for path, label in by_method.items()
    }


def candidates_of_model(
    model: Model, label: str, plan: EvaluationPlan, interval: tuple[float, float] | None
) -> list[Candidate]:
    """One model, at the step counts that it was made for, or at the plan's with the baselines beside it."""
    card, sampling = model.card, model.card.sampling
    weights = (plan.no_guidance,) if sampling.guidance == "none" else None
    if sampling.times is not None:
        steps = tuple(sorted(sampling.steps, reverse=True))
        return [Candidate(label, model.denoise, sampling.evaluations, card.schedule, steps, sampling, None, weights)]
    is_teacher = sampling.is_combined
    denoise = sampling.guided(Frozen(model.denoiser), model.denoiser.null, interval, card.data.styles)
    steps = plan.teacher_steps if is_teacher else plan.guided_steps
    own = Candidate(label, denoise, sampling.evaluations, card.schedule, tuple(steps), sampling, None, weights)
    return with_baselines(own, plan)


def with_baselines(candidate: Candidate, plan: EvaluationPlan) -> list[Candidate]:
    """A model that was made for no number of steps: with its own sampler, and with each baseline."""
    others = (replace(candidate, steps=tuple(plan.baseline_steps), solver=solver) for solver in plan.baselines)
    return [candidate, *others]


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
    models = with_ancestors(paths)
    check_models(models, paths, evaluator)
    check_weights(models, plan)
    device = "cuda" if accelerator == "gpu" else "cpu"
    evaluator.net.to(device)
    if compiled:
        for model in models.values():
            model.to(device).compile()
    digests = {path: sha256_of(path) for path in models} if samples is not None else {}
    candidates = candidates_of(models, plan, evaluator.exact, device, digests)
    protocol = protocol_of(evaluator, plan, candidates[0])
    prompts = evaluator.data.prompts(plan.num_images) or []
    cells = quality_grid(
        candidates,
        plan,
        facts=evaluator.facts,
        net=evaluator.net,
        reference_statistics=evaluator.reference_statistics,
        protocol=protocol,
        labels=evaluator.data.conditions(plan.num_images),
        decode=evaluator.data.decode,
        clip_score=evaluator.clip and partial(evaluator.clip, prompts=prompts, device=device),
        measured_styles=evaluator.data.measured_styles,
        exact=evaluator.exact,
        originals=evaluator.originals(plan.num_images),
        device=device,
        folder=samples,
        show=partial(save_same_noise, evaluator, folder),
    )
    rows = [row.as_dict() for row in with_progress(cells, candidates, plan)]

    def write() -> None:
        write_json(folder / QUALITY, rows)
        write_json(folder / PROVENANCE, provenance(models, protocol, folder, device))
        write_traces(candidates, plan, evaluator, folder, loggers, device)
        log_quality(loggers, rows)
        write_report(folder)

    if isinstance(data := evaluator.data, ControlData):  # before the report, which says that a run is finished
        names = labels_of(models)
        judged = [(names[path], model) for path, model in models.items()]
        on_main_process(lambda: write_rollouts(judged, plan, data, folder))
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


def with_hybrids(candidates: Sequence[Candidate], plan: EvaluationPlan) -> list[Candidate]:
    """The candidates, and behind each few-step student itself after the first steps of the first of them, the teacher.

    A student of one step has no step left for itself, and no hybrid.

    Raises:
        ValueError: hybrids are wanted, and the first is no model of any number of steps.
    """
    if not plan.base_steps:
        return [*candidates]
    base = candidates[0]
    if base.sampling.times is not None:
        raise ValueError(
            f"stage.base_steps={plan.base_steps} needs a teacher to take the first steps, and {base.model} was made "
            "from none; use stage.base_steps=0"
        )
    first, found = FirstSteps(base.denoise, plan.base_steps, plan.base_w), list[Candidate]()
    for candidate in candidates:
        found.append(candidate)
        steps = tuple(number for number in candidate.steps if number > first.level)
        if candidate.sampling.times is not None and steps:
            found.append(replace(candidate, steps=steps, first=first))
    return found


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
