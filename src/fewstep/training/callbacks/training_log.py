"""The rows logged during training; the device is waited for only when a row is written."""

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.optim import Optimizer

from fewstep.distributed.collectives import all_reduce_mean
from fewstep.methods.training import STUDENT
from fewstep.system.hardware import peak_device_memory
from fewstep.tracking.metrics_file import MetricsFile
from fewstep.tracking.names import GRADIENT_NORM, IMAGES, IMAGES_PER_SECOND, LEARNING_RATE, LOSS, PEAK_MEMORY, RUNG


def log_row(loggers: Iterable[Logger], metrics: Mapping[str, float | None], *, images: int, rung: int | None) -> None:
    """Log one row to every logger, at `images` on the x-axis; `rung` is the phase's number of steps, if it has one."""
    present = {key: value for key, value in metrics.items() if value is not None}
    row = {IMAGES: images, **({} if rung is None else {RUNG: rung}), **present}
    for logger in loggers:
        logger.log_metrics(row)


class TrainingLog(Callback):
    """Log mean loss, learning rate, gradient norm, images/s and peak memory every `every_images` images and at the end.

    At the start of training it truncates metrics.csv to the checkpoint that the run resumes from, so it comes before
    every other callback that logs.

    Args:
        batch_size: images per optimiser step over all processes.
        every_images: images between rows.
        images_before: images that earlier phases of this run have seen.
        rung: number of steps of the phase, None if it has none.
        on_loss: called with each mean loss that is logged, e.g. `Progress.show_loss`.

    Raises:
        ValueError: every_images below 1.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        every_images: int,
        images_before: int = 0,
        rung: int | None = None,
        on_loss: Callable[[float], None] | None = None,
    ) -> None:
        if every_images < 1:
            raise ValueError(f"trainer.log_every_images must be at least 1, got {every_images}")
        self.batch_size = batch_size
        self.every_images = every_images
        self.images_before = images_before
        self.rung = rung
        self.on_loss = on_loss
        self._total = torch.zeros(())  # of the losses since the last row
        self._logged = 0  # optimiser steps at the last row
        self._learning_rate = 0.0  # of the last step, whose end has already advanced the scheduler
        self._row_time, self._row_step = 0.0, 0  # since when images/s are counted

    def images(self, trainer: Trainer) -> int:
        """Images seen in this run, earlier phases included."""
        return self.images_before + trainer.global_step * self.batch_size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.truncate(self.images(trainer))
        self._total = self._total.to(trainer.strategy.root_device)
        self._row_time, self._row_step = perf_counter(), trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._total += outputs["loss"].detach()
        step = trainer.global_step
        due = step * self.batch_size // self.every_images > (step - 1) * self.batch_size // self.every_images
        if due or step == trainer.max_steps:  # the last row too, before the checkpoint that says so
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"total": all_reduce_mean(self._total), "logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total, self._logged = state_dict["total"], state_dict["logged"]

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, now = trainer.global_step, perf_counter()
        if step == self._logged:
            return
        # Lightning divides each loss by the batches accumulated into a step, so the sum counts steps.
        loss = all_reduce_mean(self._total / (step - self._logged)).item()
        norms: Mapping[str, Tensor] = getattr(pl_module, "gradient_norms", {})
        metrics = {
            LOSS: loss,
            LEARNING_RATE: float(self._learning_rate),
            GRADIENT_NORM: float(norms[STUDENT]) if STUDENT in norms else None,
            IMAGES_PER_SECOND: (step - self._row_step) * self.batch_size / (now - self._row_time),
            PEAK_MEMORY: peak_device_memory(),
        }
        log_row(trainer.loggers, metrics, images=self.images(trainer), rung=self.rung)
        if self.on_loss is not None:
            self.on_loss(loss)
        self._total = torch.zeros_like(self._total)
        self._logged, self._row_time, self._row_step = step, perf_counter(), step
