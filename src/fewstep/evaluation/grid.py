"""The grid of quality over steps and w: teacher and students from the same noise, under one protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.artifacts.quality_file import QualityRow
from fewstep.data.facts import DataFacts
from fewstep.diffusion.guidance import Guided, GuidedTwice, Weight, shared_weight
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.sampler import SAMPLERS, integrate, sample
from fewstep.diffusion.sampling import require_styles
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.styles import Styles
from fewstep.distributed.collectives import all_gather_rows, local_slice, on_main_process, world_size
from fewstep.evaluation.baselines import SOLVERS, sample_with
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.energy import energy_distance
from fewstep.evaluation.features import FeatureExtractor
from fewstep.evaluation.images import EvaluationImages, evaluation_tensor
from fewstep.evaluation.intervals import Interval, interval, rms_influence, share_interval
from fewstep.evaluation.kept import kept
from fewstep.evaluation.metrics import Figures, figures_of
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.evaluation.protocol import Protocol
from fewstep.evaluation.restoration import restoration_figures
from fewstep.evaluation.statistics import Features, ReferenceStatistics
from fewstep.system.files import tensor_digest
from fewstep.system.seeds import fresh_noise, seed_for, starting_noise

EXACT_STEPS = 256  # of the Runge-Kutta integrator, whose error is then below 1e-6
INDEPENDENT_STEPS = 64  # where only the distribution counts: its root mean squared error is below 1e-5


Show = Callable[[Candidate, int, Weight, EvaluationImages, Int[Tensor, "count"]], None]
Decode = Callable[[Tensor], Tensor]
Keep = Callable[[tuple[object, ...], Callable[[], Tensor]], tuple[Tensor, float]]
Clip = Callable[[EvaluationImages], tuple[float, Interval]]
Measure = Callable[[EvaluationImages, Int[Tensor, "count"]], Int[Tensor, "count"] | None]
"""(images, labels) -> the style that each image has, or None for data without styles."""


def quality_grid(
    candidates: Sequence[Candidate],
    plan: EvaluationPlan,
    *,
    facts: DataFacts,
    net: FeatureExtractor,
    reference_statistics: ReferenceStatistics,
    protocol: Protocol,
    labels: Condition,
    decode: Decode = lambda x: x,
    clip_score: Clip | None = None,
    measured_styles: Measure = lambda images, labels: None,
    exact: GaussianMixture | None = None,
    originals: EvaluationImages | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    show: Show = lambda *_: None,
) -> Iterator[QualityRow]:
    """Yield the cells, one w after the other; same_noise_rmse compares with the first candidate at its first steps.

    Features are extracted batch by batch. In memory are the noise, the first candidate's samples, and the images and
    features of one cell. Every rank samples its share of the images, and all ranks get the rows.

    Args:
        labels: the condition of each image. decode: samples to images. originals: of degraded conditions.
        folder: where samples of candidates with a digest are kept, for other evaluations; see `kept`.
        show: called on rank 0 with each cell's samples and their classes (0 for prompts).

    Raises:
        ValueError: fewer images than processes.
    """
    classes = torch.zeros(len(labels), dtype=torch.long) if labels.is_floating_point() else labels
    share = CellSampler(plan, facts, labels, device, partial(kept, folder, protocol.id))  # refuses too few images

    def extract(x: Tensor) -> tuple[EvaluationImages, Features]:
        images = evaluation_tensor(decode(x.to(device)).cpu(), facts.pixels)
        return images, Features.of(net, images)

    def evaluate(candidate: Candidate, steps: int, w: Weight, cell: Cell, independent: Tensor | None) -> QualityRow:
        show(candidate, steps, w, cell.images, classes)
        figures = figures_within(facts, net, cell.features, classes, reference_statistics)
        intervals = dict(figures.intervals)
        row = asdict(figures) | style_figures(cell.images, classes, facts.styles, measured_styles, intervals)
        restored = {} if originals is None else restoration_figures(cell.images, originals)
        row |= paired_figures(cell, classes, clip_score, independent, restored, intervals)
        return quality_row(candidate, steps, w, plan, row, cell.seconds, protocol)

    for w in plan.weights:
        base: list[Tensor] = []  # the first candidate's samples, batch by batch
        solution, independent = share.solutions(exact, candidates[0].schedule, w)
        for candidate in candidates:
            if candidate.weights is not None and w not in candidate.weights:
                continue
            share.sample(candidate, candidate.fewest_steps, w, share.batches[0])  # warm up, for the rates
            for steps in candidate.steps:
                cell = share.cell(candidate, steps, w, base, solution, extract)
                yield on_main_process(partial(evaluate, candidate, steps, w, cell, independent))


class Cell(NamedTuple):
    """The samples of a cell over all ranks.

    Attributes:
        errors: mean squared difference per value of each image to the first candidate's, and to the exact solution
            where there is one.
        seconds: of sampling, on the slowest rank.
    """

    images: EvaluationImages
    features: Features
    errors: Mapping[str, Float[Tensor, "count"]]
    seconds: float


def figures_within(
    facts: DataFacts,
    net: FeatureExtractor,
    features: Features,
    classes: Int[Tensor, "count"],
    reference: ReferenceStatistics,
) -> Figures:
    """The figures of samples against the reference, by the conditions that the data have."""
    return figures_of(
        features,
        classes,
        reference,
        # Of the data's own classes: made labels may be others, and degraded images are none.
        net.num_classes if facts.num_classes and facts.labels is None else None,
        classes=facts.styles and facts.styles.class_of(classes),
        kid=facts.text is not None,
    )


def style_figures(
    images: EvaluationImages,
    labels: Int[Tensor, "count"],
    styles: Styles | None,
    measured_styles: Measure,
    intervals: dict[str, Interval],
) -> dict[str, float]:
    """The share of images that have the style of their label, for data with styles; its interval into `intervals`."""
    found = measured_styles(images, labels)
    if styles is None or found is None:
        return {}
    share = (found.cpu() == styles.style_of(labels)).double().mean().item()
    intervals["style_accuracy"] = share_interval(share, len(labels))
    return {"style_accuracy": share}


def paired_figures(
    cell: Cell,
    classes: Int[Tensor, "count"],
    clip_score: Clip | None,
    independent: Tensor | None,
    restored: dict[str, tuple[float, Interval]],
    intervals: Mapping[str, Interval],
) -> dict[str, Any]:
    """The figures that compare with something else than the reference, and `intervals` with theirs."""
    measured = {name: root_mean_square(errors, classes) for name, errors in cell.errors.items()} | restored
    figures: dict[str, Any] = {}
    if clip_score is not None:
        measured["clip_score"] = clip_score(cell.images)
    if independent is not None:
        distance, own, figures["energy_floor"] = energy_distance(cell.images, independent, classes)
        measured["energy_distance"] = distance, own
    for name, (value, own) in measured.items():
        figures[name], intervals = value, {**intervals, name: own}
    return figures | {"intervals": intervals}


def quality_row(
    candidate: Candidate,
    steps: int,
    w: Weight,
    plan: EvaluationPlan,
    figures: Mapping[str, Any],
    seconds: float,
    protocol: Protocol,
) -> QualityRow:
    """The row of a finished cell."""
    w, w2 = w if isinstance(w, tuple) else (w, None)
    return QualityRow(
        model=candidate.model,
        sampler=candidate.sampler_name,
        steps=steps,
        nfe=candidate.nfe(steps),
        w=float(w),
        base_steps=0 if candidate.first is None else candidate.first.steps,
        base_w=None if candidate.first is None else candidate.first.w,
        w2=None if w2 is None else float(w2),
        **figures,
        images_per_second=plan.num_images / seconds,
        num_images=plan.num_images,
        seed=plan.seed,
        protocol=protocol.id,
    )


class CellSampler:
    """Samples of this rank's share of the images, always from the same noise; `batches` are slices of the share.

    Args:
        keep: key, draw -> samples, seconds; see `kept`.

    Raises:
        ValueError: fewer images than processes.
    """

    def __init__(
        self, plan: EvaluationPlan, facts: DataFacts, labels: Condition, device: torch.device | str, keep: Keep
    ) -> None:
        if plan.num_images < world_size():
            raise ValueError(
                f"each process makes a share of the images, got num_images={plan.num_images} for {world_size()} of them"
            )
        self.plan, self.facts, self.device, self.keep = plan, facts, device, keep
        share = local_slice(plan.num_images)
        self.start, count = share.start, share.stop - share.start
        self.noise, self.labels = starting_noise(plan.seed, share.start, count, facts.shape), labels[share]
        size = plan.batch_size
        self.batches = [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def sample(self, candidate: Candidate, steps: int, w: Weight, batch: slice) -> Float[Tensor, "count *shape"]:
        """A batch of a candidate's samples, clamped to the data's range, on the CPU."""
        z, label = self.noise[batch].to(self.device), self.labels[batch].to(self.device)
        weight = shared_weight(w, len(z), self.device)
        if candidate.sampler in SOLVERS:
            draw = partial(sample_with, candidate.sampler, num_steps=steps)
        else:
            fresh = fresh_noise(self.plan.seed, self.start + batch.start, len(z), self.facts.shape)
            times = candidate.sampling.grid(steps)
            if candidate.first is not None:
                z, times = candidate.first.take(z, schedule=candidate.schedule, times=times, label=label)
            draw = partial(sample, sampler=SAMPLERS[candidate.sampler], times=times, fresh=fresh)
        x = draw(candidate.denoise, z, schedule=candidate.schedule, label=label, w=weight)
        return x.cpu().clamp_(self.facts.low, self.facts.high)  # the copy waits for the device, so timings are right

    def cell(
        self,
        candidate: Candidate,
        steps: int,
        w: Weight,
        base: list[Tensor],
        solution: Tensor | None,
        extract: Callable[[Tensor], tuple[EvaluationImages, Features]],
    ) -> Cell:
        """Sample and gather a cell; the batches of the first cell of a w are appended to `base`."""
        extracted, seconds = [], 0.0
        errors: dict[str, list[Tensor]] = {"same_noise_rmse": [], "exact_rmse": []}
        for number, batch in enumerate(self.batches):
            place = (candidate.sampler, steps, w, self.start + batch.start, batch.stop - batch.start, str(self.device))
            draw = partial(self.sample, candidate, steps, w, batch)
            x, own_seconds = self.keep((candidate.digest, *place), draw)
            seconds += own_seconds
            if number == len(base):
                base.append(x)
            errors["same_noise_rmse"].append(squared_error(x, base[number]))
            if solution is not None:
                errors["exact_rmse"].append(squared_error(x, solution[batch]))
            extracted.append(extract(x))
        images, features = zip(*extracted, strict=True)
        return Cell(
            all_gather_rows(torch.cat(images)),
            Features(*map(all_gather_rows, Features.concatenated(features))),
            {name: all_gather_rows(torch.cat(own)) for name, own in errors.items() if own},
            float(all_gather_rows(torch.tensor([seconds])).max()),
        )

    def solutions(
        self, exact: GaussianMixture | None, schedule: Schedule, w: Weight
    ) -> tuple[Tensor | None, Tensor | None]:
        """The exact solution from this rank's noise, and all ranks' from other noise; None where there is none."""
        if exact is None:
            return None, None
        other = starting_noise(seed_for(self.plan.seed, "exact"), self.start, len(self.noise), self.facts.shape)
        independent = self.solve(exact, schedule, w, other, INDEPENDENT_STEPS)
        return self.solve(exact, schedule, w, self.noise, EXACT_STEPS), all_gather_rows(independent)

    def solve(
        self, exact: GaussianMixture, schedule: Schedule, w: Weight, noise: Float[Tensor, "count dim"], num_steps: int
    ) -> Float[Tensor, "count dim"]:
        """The guided probability-flow ODE of the mixture, solved in float64 from `noise` of this rank's share."""
        ends = schedule.log_snr(torch.tensor([1.0, 0.0]))
        draw = partial(
            integrate,
            guided_exactly(exact, w),
            noise.double(),
            log_snr=ends[0],
            log_snr_next=ends[1],
            num_steps=num_steps,
            label=self.labels,
            w=shared_weight(w, len(noise)).double(),
        )
        tensors = tensor_digest({**exact.tensors, "noise": noise, "label": self.labels})
        solution, _ = self.keep(("exact solution", tensors, repr(schedule), w, num_steps), draw)
        return solution.float().clamp(self.facts.low, self.facts.high)


def guided_exactly(exact: GaussianMixture, w: Weight, interval: tuple[float, float] | None = None) -> Guided:
    """The mixture guided by as many weights as there are."""
    if isinstance(w, tuple):
        return GuidedTwice(exact.denoise, require_styles(exact.styles), interval)
    return Guided(exact.denoise, exact.num_classes, interval)


def squared_error(x: Tensor, y: Tensor) -> Float[Tensor, "count"]:
    """Mean squared difference per value of each image, in float64."""
    return (x - y).double().square_().flatten(1).mean(1)


def root_mean_square(errors: Float[Tensor, "count"], labels: Int[Tensor, "count"]) -> tuple[float, Interval]:
    """The root of the mean of squared errors, and its interval."""
    root = errors.mean().sqrt().item()
    return root, interval(root, rms_influence(errors), labels)
