"""What is measured: seconds and bytes of updates and of network evaluations with new weights, seconds of judging."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fewstep.data.batches import Data, ImagesInMemory
from fewstep.data.facts import DataFacts
from fewstep.data.noise import NoiseData
from fewstep.data.pairs import TrialPairs
from fewstep.diffusion.prediction import Denoise
from fewstep.estimate.machine import Machine
from fewstep.estimate.shapes import Footprint, evaluate_once
from fewstep.estimate.table import How
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.own_features import num_steps, train
from fewstep.evaluation.statistics import Features
from fewstep.methods.base import Method
from fewstep.methods.training import Training
from fewstep.networks.memory import compile_calls
from fewstep.runs.build import build_data
from fewstep.runs.train import Job
from fewstep.system.hardware import current_memory, peak_gpu_memory, peak_memory, synchronise
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


@dataclass(frozen=True)
class Trial:
    """Seconds of an update and of a network evaluation of one example, and bytes at the peak, of one process."""

    how: How
    update: float
    evaluation: float
    memory: int
    device_memory: int


def try_phase(
    job: Job,
    build: Callable[[Training], DistillationModule],
    found: Footprint,
    machine: Machine,
    rows: int,
    sampled: int,
) -> Trial:
    """Train for some updates and evaluate the model, by one process that has the machine for itself.

    Args:
        rows: examples of an update. sampled: images of a snapshot. As many as time and memory allow are tried.
    """
    on_gpu, trainer, peak = machine.device == "cuda", job.settings.trainer, found.peak(rows) - machine.unsharded(found)
    tried = machine.to_try(rows, flops=found.flops, bytes_each=found.kept, fixed=found.at_rest)
    flops = found.flops / (found.evaluations + 2)  # of an evaluation
    if not tried:
        seconds, main = rows * found.flops / machine.rate, current_memory() + (found.at_rest if on_gpu else peak)
        return Trial("estimated", seconds, flops / machine.rate, main, on_gpu * peak)
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    data = build_data(job.settings, tried, "plan") if job.method.inputs == "data" else made_up(job, tried)
    module = build(replace(job.method.training, images=MAX_UPDATES * tried, batch_size=tried))
    sampling, model = module.phase.sampling, module.nets.model
    update = seconds_per_update(module, data, trainer, job.folder) * rows / tried
    looked = machine.to_try(sampled, flops=flops * sampling.evaluations)
    before = (peak_memory(), peak_gpu_memory())
    denoise = sampling.guided(model.eval(), model.null, styles=job.facts.styles)
    evaluation = seconds_per_evaluation(denoise, job.facts, looked or tried, trainer) / sampling.evaluations
    after = (peak_memory(), peak_gpu_memory())
    larger = sampled / looked - 1 if looked else 0.0
    main, on_device = (round(now + larger * (now - then)) for then, now in zip(before, after, strict=True))
    more = peak - found.peak(tried)
    how: How = "measured" if (tried, looked) == (rows, sampled) else "scaled"
    return Trial(how, update, evaluation, main + more * (not on_gpu), on_device + more * on_gpu)


def made_up(job: Job, batch_size: int) -> Data:
    """Noise, or pairs that no teacher made."""
    kind = TrialPairs if job.method.inputs == "pairs" else NoiseData
    return kind(job.facts, batch_size=batch_size, stream="plan")


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


def seconds_of_features(images: ImagesInMemory) -> float:
    """Seconds of training a feature extractor, by some of its steps."""
    start = perf_counter()
    train(images, REPEATS)
    return (perf_counter() - start) / REPEATS * num_steps(images)
