"""What do quality figures cost? One cell's beside torch-fidelity's and torchmetrics' own calls, and a whole grid's.

All look at the same 2,000 images through the same net, the shipped digits classifier, against the same 364 held-out
digits, and must agree. The grid is that of the digits with an untrained chain, whose speed is that of a trained one: a
guided teacher at 64, 16, 8, 4, 2 and 1 steps and students of 16, 8, 4, 2 and 1, each at four w. Where its time goes is
measured by clocks around the networks, the classifier and the figures.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from measure import Seconds, Spread, in_turns, report
from sampling import untrained
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from fewstep.data.digits import DigitsData, load_digits_split
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation import grid
from fewstep.evaluation.features import DigitsFeatures
from fewstep.evaluation.images import EvaluationImages, Reference
from fewstep.evaluation.metrics import figures_of
from fewstep.evaluation.protocol import INCEPTION_SPLITS, NEIGHBOURHOOD, Protocol
from fewstep.evaluation.statistics import (
    Features,
    Moments,
    ReferenceStatistics,
    Spectrum,
    frechet_distance,
    square_root,
)
from fewstep.networks import Denoiser, Frozen

NUM_IMAGES = 2000
STUDENTS = (16, 8, 4, 2, 1)
WIDE = 1024  # features of the distance that is timed alone; Inception has twice as many


def main(
    seconds: Annotated[float, typer.Option(help="Time for the comparison with the peers.")] = 20.0,
    num_images: Annotated[int, typer.Option(min=10, help="Per cell of the grid.")] = NUM_IMAGES,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare a cell's figures with torch-fidelity and torchmetrics, and show where a grid's time goes."""
    torch.set_num_threads(threads or torch.get_num_threads())
    rows = [*cells(seconds), *distances(), *whole_grid(num_images)]
    report("evaluation: a cell's figures beside its peers', and a whole grid", rows, ["what", "seconds", "note"], out)


class Registered(FeatureExtractorBase):
    """The digits classifier as torch-fidelity knows it."""

    def __init__(self, name: str, features_list: list[str], net: nn.Module, **_: Any) -> None:
        super().__init__(name, features_list)
        self.net = net

    @staticmethod
    def get_provided_features_list() -> tuple[str, str]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: EvaluationImages) -> tuple[Tensor, ...]:
        seen = dict(zip(("features", "logits"), self.net(input), strict=True))
        return tuple(seen[name] for name in self.features_list)


class Images(Dataset[Tensor]):
    """One image per item, as torch-fidelity asks."""

    def __init__(self, images: EvaluationImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class View(nn.Module):
    """Features (0) or logits (1) alone, as torchmetrics asks."""

    def __init__(self, net: DigitsFeatures, index: int) -> None:
        super().__init__()
        self.net, self.index, self.num_features = net, index, net.num_features

    def forward(self, images: EvaluationImages) -> Tensor:
        return self.net(images)[self.index]


def problem() -> tuple[EvaluationImages, Tensor, Reference]:
    """Noisy training digits in the place of samples, their labels, and the held-out digits."""
    split = load_digits_split()
    index = torch.arange(NUM_IMAGES) % len(split.train_images)
    noise = torch.randint(-40, 41, (NUM_IMAGES, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = (split.train_images[index].int() + noise).clamp(0, 255).to(torch.uint8)
    return images, split.train_labels[index], Reference("test", split.test_images, split.test_labels)


def cells(seconds: float) -> list[dict[str, Any]]:
    """The figures of one cell, ours and the peers'; torchmetrics has no precision and recall."""
    register_feature_extractor("digits", Registered)
    images, labels, reference = problem()
    net = DigitsFeatures()
    known = ReferenceStatistics.of(net, reference)

    def ours() -> tuple[float, float]:
        figures = figures_of(Features.of(net, images), labels, known, net.num_classes)
        return figures.fid, figures.inception_score

    def fidelity() -> tuple[float, float]:
        scores = calculate_metrics(
            input1=Images(images),
            input2=Images(reference.images),
            fid=True,
            isc=True,
            prc=True,
            feature_extractor="digits",
            net=net,
            isc_splits=INCEPTION_SPLITS,
            samples_shuffle=False,
            prc_neighborhood=NEIGHBOURHOOD,
            batch_size=net.batch_size,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
        return scores["frechet_inception_distance"], scores["inception_score_mean"]

    def metrics() -> tuple[float, float]:
        distance, score = FrechetInceptionDistance(View(net, 0)), InceptionScore(View(net, 1), INCEPTION_SPLITS)
        for batch in reference.images.split(net.batch_size):
            distance.update(batch, real=True)
        for batch in images.split(net.batch_size):
            distance.update(batch, real=False)
            score.update(batch)
        return distance.compute().item(), score.compute()[0].item()

    sides: dict[str, Callable[[], tuple[float, float]]] = {
        "fewstep: FID, IS, precision, recall, accuracy, diversity": ours,
        "torch-fidelity: FID, IS, precision, recall": fidelity,
        "torchmetrics: FID, IS": metrics,
    }
    found = [side() for side in sides.values()]
    assert np.allclose(found, found[0], rtol=1e-4), f"the three must agree, and say {found}"
    return in_turn_rows(sides, seconds, f"{NUM_IMAGES:,} images of 8 x 8")


def distances() -> list[dict[str, Any]]:
    """The Frechet distance alone, of features that are there, in as many dimensions as a large net has."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(WIDE, WIDE, generator=generator) / WIDE**0.5
    ours, real = (torch.randn(4 * WIDE, WIDE, generator=generator) @ mix for _ in range(2))
    known = Moments.of(real)
    root, statistics = square_root(known.covariance), fid_features_to_statistics(real)

    def distance() -> float:
        own = Moments.of(ours)
        return frechet_distance(own, known, Spectrum.of(own, root))

    sides: dict[str, Callable[[], float]] = {
        "fewstep: FID of features": distance,
        "torch-fidelity: FID of features": lambda: fid_statistics_to_metric(
            fid_features_to_statistics(ours), statistics, False
        )["frechet_inception_distance"],
    }
    found = [side() for side in sides.values()]
    assert np.allclose(found, found[0], rtol=1e-4), f"the two must agree, and say {found}"
    return in_turn_rows(sides, 0, f"{len(ours):,} x {WIDE:,} features, the reference's known", rounds=3)


def in_turn_rows(sides: dict[str, Any], seconds: float, what: str, rounds: int = 8) -> list[dict[str, Any]]:
    """A row of the result for each side, the first of which is ours."""
    times = in_turns(sides, seconds, rounds)
    ours = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        ratio = Spread.of([a.wall / b.wall for a, b in zip(own, ours, strict=True)])
        note = what if own is ours else f"{ratio.median:.2f} times ours ({ratio.low:.2f} to {ratio.high:.2f})"
        rows.append({"what": name, "seconds": round(Spread.of([time.wall for time in own]).median, 3), "note": note})
    return rows


class Clock:
    """Adds up the time of the calls of what it wraps."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.seconds = call, 0.0

    def __call__(self, *given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.call(*given, **named)
        finally:
            self.seconds += time.perf_counter() - start


def whole_grid(num_images: int) -> list[dict[str, Any]]:
    """Rows that say how long the grid took, and on what."""
    facts, schedule = DigitsData.facts, CosineSchedule()
    _, _, reference = problem()
    net = DigitsFeatures()
    plan = grid.EvaluationPlan(num_images=num_images, baselines=())
    teacher = Clock(Guided(Frozen(Denoiser(untrained(guidance_input=False))), facts.num_classes))
    student = Clock(Frozen(Denoiser(untrained(guidance_input=True))))
    guided = Sampling(guidance="input")
    candidates = [
        grid.Candidate("teacher", teacher, Guided.evaluations, schedule, plan.teacher_steps, Sampling()),
        *(grid.Candidate("student", student, Denoiser.evaluations, schedule, (steps,), guided) for steps in STUDENTS),
    ]
    seen, figures = Clock(net.forward), Clock(grid.figures_of)
    net.forward = seen
    grid.figures_of = figures
    start = Seconds.now()
    with TemporaryDirectory() as folder:
        rows = list(
            grid.quality_grid(
                candidates,
                plan,
                facts=facts,
                net=net,
                reference_statistics=ReferenceStatistics.of(net, reference, Path(folder)),
                protocol=Protocol.of(facts, net, reference, num_images=plan.num_images, seed=plan.seed),
                labels=torch.arange(plan.num_images) % facts.num_classes,
            )
        )
    took = Seconds.now().since(start)
    grid.figures_of = figures.call
    evaluations = plan.num_images * sum(row.nfe for row in rows)
    parts = {
        f"networks: {evaluations:,} evaluations": teacher.seconds + student.seconds,
        "classifier: features and logits": seen.seconds,
        "figures: distances, eigenvalues, radii": figures.seconds,
    }
    parts["everything else: noise, samplers, pixels"] = took.wall - sum(parts.values())
    title = f"grid: {len(rows)} cells of {plan.num_images:,} images"
    what = f"teacher and {len(STUDENTS)} students x {len(plan.w)} w; {took.cpu:.1f} s of the processor"
    return [
        {"what": title, "seconds": round(took.wall, 1), "note": what},
        *(
            {"what": f"  {name}", "seconds": round(part, 1), "note": f"{100 * part / took.wall:.1f} %"}
            for name, part in parts.items()
        ),
    ]


if __name__ == "__main__":
    typer.run(main)
