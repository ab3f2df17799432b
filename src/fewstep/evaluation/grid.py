"""The grid quality x steps x w: teacher beside students, every cell from the same noise, under one protocol."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.artifacts.quality_file import QualityRow
from fewstep.data.facts import DataFacts
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Condition, Denoise
from fewstep.diffusion.sampler import SAMPLERS, integrate, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Schedule
from fewstep.distributed.collectives import all_gather_rows, all_reduce_sum, local_slice, on_main_process, world_size
from fewstep.evaluation.baselines import SOLVERS, sample_with
from fewstep.evaluation.features import FeatureNet
from fewstep.evaluation.images import EvaluationImages, evaluation_tensor
from fewstep.evaluation.metrics import Figures, figures_of
from fewstep.evaluation.protocol import Protocol
from fewstep.evaluation.statistics import Features, ReferenceStatistics
from fewstep.system.seeds import fresh_noise, starting_noise

EXACT_STEPS = 256  # of the Runge-Kutta integrator; its error is below 1e-6, far under what is compared with it


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured.

    Args:
        num_images: per cell. w: guidance weights.
        teacher_steps: the first is what same_noise_rmse compares with. guided_steps: of the stage-one student.
        baselines: other samplers for both, at `baseline_steps`: of SOLVERS or SAMPLERS (dpmsolver++, unipc, ancestral).
        batch_size: images sampled at a time. seed: of the starting noise.

    Raises:
        ValueError: an empty list, or a value outside its range.
    """

    num_images: int = 2000
    w: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    teacher_steps: tuple[int, ...] = (64, 16, 8, 4, 2, 1)
    guided_steps: tuple[int, ...] = (64, 16, 8, 4, 2, 1)
    baselines: tuple[str, ...] = ("dpmsolver++", "unipc")
    baseline_steps: tuple[int, ...] = (8, 4, 2, 1)
    batch_size: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.batch_size < 1:
            raise ValueError(
                f"evaluation needs num_images and batch_size of at least 1, got {self.num_images} and {self.batch_size}"
            )
        if not self.w or not all(0 <= w < float("inf") for w in self.w):
            raise ValueError(f"evaluation needs guidance weights w >= 0, got {list(self.w)}")
        steps = (self.teacher_steps, self.guided_steps, self.baseline_steps)
        if not self.teacher_steps or min(*chain(*steps), 1) < 1:
            raise ValueError(f"evaluation needs steps of at least 1, got {' and '.join(str(list(s)) for s in steps)}")
        known = [*(name for name in SAMPLERS if name != "deterministic"), *SOLVERS]
        if unknown := [name for name in self.baselines if name not in known]:
            raise ValueError(f"evaluation's baselines must be of {', '.join(known)}, got {unknown[0]!r}")


@dataclass(frozen=True)
class Candidate:
    """A model in the grid: its label, how it denoises, at what cost per step, and how it is run.

    Args:
        steps: each is run, with the evaluation times that `sampling` has for it.
        solver: one of SOLVERS or SAMPLERS in the place of its own sampler; a baseline.
        weights: the guidance weights at which it is run; None for all of the plan.
    """

    model: str
    denoise: Denoise
    evaluations: int
    schedule: Schedule
    steps: tuple[int, ...]
    sampling: Sampling
    solver: str | None = None
    weights: tuple[float, ...] | None = None

    @property
    def sampler(self) -> str:
        """What it is run with, of SAMPLERS or SOLVERS."""
        return self.solver or self.sampling.sampler

    @property
    def name(self) -> str:
        """The model, and the sampler where it is not the one it was made for."""
        return self.model if self.solver is None else f"{self.model}-{self.solver}"

    @property
    def sampler_name(self) -> str:
        """As rows and pictures have it: the deterministic sampler is DDIM."""
        return "ddim" if self.sampler == "deterministic" else self.sampler


Show = Callable[[Candidate, int, float, EvaluationImages, Int[Tensor, "count"]], None]
Decode = Callable[[Tensor], Tensor]


def quality_grid(
    contenders: Sequence[Candidate],
    plan: EvaluationPlan,
    *,
    facts: DataFacts,
    net: FeatureNet,
    known: ReferenceStatistics,
    protocol: Protocol,
    labels: Condition,
    decode: Decode = lambda x: x,
    clip_score: Callable[[EvaluationImages], float] | None = None,
    exact: GaussianMixture | None = None,
    device: torch.device | str = "cpu",
    show: Show = lambda *_: None,
) -> Iterator[QualityRow]:
    """Yield the cells, w by w; the first contender at its first steps is what the others' same_noise_rmse refers to.

    Samples are judged batch by batch as they come. In memory are the noise, the first contender's samples, and a cell's
    images as pixels and as features. Of several processes each makes its share of the images, and all get the rows.

    Args:
        labels: what is asked for, one per image. decode: makes images of samples.
        show: is given each cell's samples as they are judged, and their classes (0 for prompts); on the first process.

    Raises:
        ValueError: fewer images than processes.
    """
    if plan.num_images < world_size():
        raise ValueError(
            f"each process makes a share of the images, got num_images={plan.num_images} for {world_size()} of them"
        )
    classes = torch.zeros(len(labels), dtype=torch.long) if labels.is_floating_point() else labels
    own = local_slice(plan.num_images)
    noise = starting_noise(plan.seed, own.start, own.stop - own.start, facts.shape)
    wanted = labels[own]
    parts = [slice(start, min(start + plan.batch_size, len(noise))) for start in range(0, len(noise), plan.batch_size)]

    def draw(contender: Candidate, steps: int, w: float, part: slice) -> Float[Tensor, "count *shape"]:
        z, label = noise[part].to(device), wanted[part].to(device)
        weight = torch.full((len(z),), float(w), device=device)
        if contender.sampler in SOLVERS:
            draw_with = partial(sample_with, contender.sampler, num_steps=steps)
        else:
            fresh = fresh_noise(plan.seed, own.start + part.start, len(z), facts.shape)
            times = contender.sampling.grid(steps)
            draw_with = partial(sample, sampler=SAMPLERS[contender.sampler], times=times, fresh=fresh)
        x = draw_with(contender.denoise, z, schedule=contender.schedule, label=label, w=weight)
        return x.cpu().clamp_(facts.low, facts.high)  # on the CPU it waits for the device

    def judged(
        contender: Candidate, steps: int, w: float, images: EvaluationImages, seen: Features
    ) -> tuple[Figures, float | None]:
        show(contender, steps, w, images, classes)
        found = figures_of(seen, classes, known, net.num_classes, kid=facts.text is not None)
        return found, None if clip_score is None else clip_score(images)

    for w in plan.w:
        base: list[Tensor] = []  # what the first contender made, part by part
        solution = None
        if exact is not None:
            solution = exact_samples(exact, contenders[0].schedule, noise, wanted, w).clamp(facts.low, facts.high)
        for contender in contenders:
            if contender.weights is not None and w not in contender.weights:
                continue
            draw(contender, min(contender.steps), w, parts[0])  # warm up, so that rates are those of long runs
            for steps in contender.steps:
                cell = Cell(exact_square=None if solution is None else 0.0)
                for number, part in enumerate(parts):
                    start = time.perf_counter()
                    x = draw(contender, steps, w, part)
                    cell.seconds += time.perf_counter() - start
                    if number == len(base):
                        base.append(x)
                    images = evaluation_tensor(decode(x.to(device)).cpu(), facts.pixels)
                    cell.images.append(images)
                    cell.seen.append(Features.of(net, images))
                    cell.square += squared_error(x, base[number])
                    if solution is not None and cell.exact_square is not None:
                        cell.exact_square += squared_error(x, solution[part])
                images, seen = cell.everyones()
                values = plan.num_images * prod(facts.shape)

                found, fits = on_main_process(partial(judged, contender, steps, w, images, seen))
                yield QualityRow(
                    model=contender.model,
                    sampler=contender.sampler_name,
                    steps=steps,
                    nfe=steps * contender.evaluations,
                    w=float(w),
                    **asdict(found),
                    same_noise_rmse=(cell.square / values) ** 0.5,
                    exact_rmse=None if cell.exact_square is None else (cell.exact_square / values) ** 0.5,
                    images_per_second=plan.num_images / cell.seconds,
                    num_images=plan.num_images,
                    seed=plan.seed,
                    protocol=protocol.id,
                    clip_score=fits,
                )


@dataclass
class Cell:
    """What is kept of a cell's samples while they are made, batch by batch.

    Attributes:
        square, exact_square: sums over all values of the squared differences to the first contender's samples, and to
            the exact solution if there is one.
        seconds: of sampling.
    """

    exact_square: float | None
    square: float = 0.0
    seconds: float = 0.0
    images: list[EvaluationImages] = field(default_factory=list)
    seen: list[Features] = field(default_factory=list)

    def everyones(self) -> tuple[EvaluationImages, Features]:
        """The images of all processes, in order, and what was seen of them; sums and seconds become those of all."""
        features, logits = Features.joined(self.seen)
        self.square = float(all_reduce_sum(torch.tensor(self.square, dtype=torch.float64)))
        if self.exact_square is not None:
            self.exact_square = float(all_reduce_sum(torch.tensor(self.exact_square, dtype=torch.float64)))
        self.seconds = float(all_gather_rows(torch.tensor([self.seconds])).max())
        return all_gather_rows(torch.cat(self.images)), Features(all_gather_rows(features), all_gather_rows(logits))


def exact_samples(
    exact: GaussianMixture, schedule: Schedule, noise: Tensor, labels: Condition, w: float
) -> Float[Tensor, "count dim"]:
    """The guided probability-flow ODE of the mixture, solved from `noise` in float64."""
    ends = schedule.log_snr(torch.tensor([1.0, 0.0]))
    return integrate(
        Guided(exact.denoise, exact.num_classes),
        noise.double(),
        log_snr=ends[0],
        log_snr_next=ends[1],
        num_steps=EXACT_STEPS,
        label=labels,
        w=torch.full((len(noise),), float(w), dtype=torch.float64),
    ).float()


def squared_error(x: Tensor, y: Tensor) -> float:
    """Sum of all squared differences, in float64."""
    return (x - y).double().square_().sum().item()
