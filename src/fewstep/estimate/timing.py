"""Seconds and bytes of an update, of a network evaluation and of judging images, measured with new weights."""

from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Denoise
from fewstep.estimate.shapes import evaluate_once
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.metrics import figures_of
from fewstep.evaluation.statistics import Features, ReferenceStatistics
from fewstep.methods.base import Method
from fewstep.networks.memory import compile_calls
from fewstep.system.hardware import synchronise
from fewstep.training.module import DistillationModule
from fewstep.training.settings import TrainerSettings
from fewstep.training.strategy import build_strategy, cluster_environment

SECONDS = 1.0  # of updates, at least
REPEATS, MAX_UPDATES, MAX_CYCLE = 3, 200, 64
MAX_JUDGED = 32  # images that a feature extractor is timed with


class UpdateTimes(Callback):
    """Times updates, and ends the training when there are enough: some of each set of roles that moves."""

    def __init__(self, method: Method, device: str) -> None:
        self.method, self.device = method, device
        self.ends: list[float] = []
        self.kinds = [method.moving(step) for step in range(1, MAX_CYCLE)]  # the first update is slow
        self.least = 1 + max(REPEATS, *(1 + self.kinds.index(kind) for kind in self.kinds))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        synchronise(self.device)
        self.ends.append(perf_counter())
        if len(self.ends) >= self.least and self.ends[-1] - self.ends[0] >= SECONDS:
            trainer.should_stop = True

    @property
    def seconds(self) -> float:
        """Of an update in the long run: the median of each kind, as often as it comes."""
        times: dict[tuple[str, ...], list[float]] = {}
        for step, (start, end) in enumerate(zip(self.ends, self.ends[1:], strict=False), start=1):
            times.setdefault(self.method.moving(step), []).append(end - start)
        return mean(median(times[kind]) for kind in self.kinds)


def seconds_per_update(module: DistillationModule, data: Data, settings: TrainerSettings, folder: Path) -> float:
    """Seconds of an update by Lightning's Trainer as a run has it, without the callbacks of a run."""
    if settings.compile:
        compile_calls(module.student, module.nets.teacher, *module.trained.values())
    times = UpdateTimes(module.method, settings.device)
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=1,
        strategy=build_strategy(settings),
        precision=settings.precision,
        max_steps=MAX_UPDATES,
        max_epochs=-1,
        logger=False,
        callbacks=[times],
        plugins=[cluster_environment()],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    return times.seconds


def seconds_per_evaluation(denoise: Denoise, facts: DataFacts, number: int, trainer: TrainerSettings) -> float:
    """Seconds for one example, of `number` at a time."""
    times = []
    for _ in range(REPEATS):  # the first one is slow
        start = perf_counter()
        evaluate_once(denoise, facts, number, trainer)
        synchronise(trainer.device)
        times.append(perf_counter() - start)
    return min(times) / number


def seconds_per_judged_image(evaluator: Evaluator) -> float:
    """Seconds of the feature extractor for one image; of the first reference images."""
    images = evaluator.reference.images[:MAX_JUDGED]
    start = perf_counter()
    Features.of(evaluator.net, images)
    return (perf_counter() - start) / len(images)


def seconds_per_figures(evaluator: Evaluator, number: int) -> float:
    """Seconds of all figures of `number` images, their features aside; measured with random features."""
    width, classes, labels = evaluator.net.num_features, evaluator.net.num_classes or 1000, evaluator.reference.labels
    known = ReferenceStatistics(torch.randn(len(labels), width), labels.cpu())
    seen = Features(torch.randn(number, width), torch.randn(number, classes))
    of_classes = torch.arange(number) % max(1, evaluator.facts.num_classes)
    times = []
    for _ in range(2):  # the first one works out the reference's part
        start = perf_counter()
        figures_of(seen, of_classes, known, evaluator.net.num_classes)
        times.append(perf_counter() - start)
    return times[-1]
