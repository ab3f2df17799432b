"""A training that is asked to end does so after its batch, with a checkpoint, on all processes at the same step."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed as dist

from fewstep.distributed.collectives import is_distributed
from fewstep.system.signals import SIGNALS, Stopped

LOOK_SECONDS = 2.0  # about so often the processes tell each other; SLURM gives 30 s between SIGTERM and SIGKILL
MOST_STEPS = 50


class StopOnSignal(Callback):
    """Remembers a signal until the end of the batch, has `save` write the checkpoint and raises `Stopped`.

    The signal may reach one process of many, or each at another step, and they must stop at the same one. They tell
    each other at steps that all of them know beforehand, through the CPU: no step waits for a device because of this.

    Args:
        save: writes the checkpoint; called by all processes at the same step.
    """

    def __init__(self, save: Callable[[Trainer], object]) -> None:
        self._save = save
        self._number = 0
        self._looked, self._looked_at = time.monotonic(), 0
        self._next_look = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's handlers are in force by now: its SIGTERM broadcasts from inside the handler, which can wait for
        # ever, its SIGUSR1 has SLURM start the job again by itself, and every step broadcasts and waits for the device.
        # Its teardown puts back those of before the training.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._hear)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._looked, self._looked_at = time.monotonic(), trainer.global_step
        self._next_look = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if number := self._agreed(trainer.global_step):
            self._save(trainer)
            raise Stopped(number, f"at step {trainer.global_step} of {trainer.max_steps}, which is saved")

    def end(self, trainer: Trainer) -> None:
        """Answer a signal of the last steps, or of the training's end; its checkpoint is written by now."""
        self._next_look = trainer.global_step
        if number := self._agreed(trainer.global_step):
            raise Stopped(number, f"at step {trainer.global_step}, the last one, which is saved")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == self._number == signal.SIGINT:  # the user is in a hurry; what comes from clusters comes twice
            raise Stopped(number)
        self._number = self._number or number

    def _agreed(self, step: int) -> int:
        """The signal that some process has got, the same answer on all; 0 if none has, or it is not yet time to ask."""
        if not is_distributed():
            return self._number
        if step < self._next_look:
            return 0
        now = time.monotonic()
        pace = (now - self._looked) / max(1, step - self._looked_at)
        told = torch.tensor([float(self._number), pace], dtype=torch.float64)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        number, slowest = int(told[0]), float(told[1])
        self._looked, self._looked_at = now, step
        self._next_look = step + max(1, min(MOST_STEPS, int(LOOK_SECONDS / max(slowest, 1e-9))))
        return number
