"""Stop training on a signal, with a checkpoint and at the same step on all ranks."""

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
from fewstep.training.checkpointing import ends_step

CHECK_SECONDS = 2.0  # about so often the ranks exchange signals; SLURM gives 30 s between SIGTERM and SIGKILL
MAX_STEPS_BETWEEN_CHECKS = 50


class StopOnSignal(Callback):
    """Stop training on a signal: after the running step it calls `save` and raises `Stopped`.

    Signals may reach some ranks only, or at different steps, yet all ranks must stop at the same step. The ranks
    all-reduce the signal at steps agreed on beforehand, on the CPU, so that no step waits for a device.

    Args:
        save: writes the checkpoint; called by all ranks at the same step.
    """

    def __init__(self, save: Callable[[Trainer], object]) -> None:
        self._save = save
        self._signal = 0  # received by this process; 0 is none
        self._check_time, self._check_step, self._next_check = time.monotonic(), 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replaces the handlers that Lightning has installed by now and removes in its teardown: its SIGTERM handler
        # broadcasts from within the handler and may deadlock, its SIGUSR1 handler requeues the SLURM job itself, and
        # its check of SIGTERM in every step broadcasts and waits for the device.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._check_time, self._check_step = time.monotonic(), trainer.global_step
        self._next_check = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx) and (number := self._reduced_signal(trainer.global_step)):
            self._save(trainer)
            raise Stopped(number, f"at step {trainer.global_step} of {trainer.max_steps}, which is saved")

    def end(self, trainer: Trainer) -> None:
        """Raise `Stopped` for a signal received since the last check; called after training, whose end is saved."""
        self._next_check = trainer.global_step
        if number := self._reduced_signal(trainer.global_step):
            raise Stopped(number, f"at step {trainer.global_step}, the last one, which is saved")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == self._signal == signal.SIGINT:  # a second Ctrl-C; clusters repeat the other signals
            raise Stopped(number)
        self._signal = self._signal or number

    def _reduced_signal(self, step: int) -> int:
        """The signal that some rank has received, the same on all ranks; 0 is none, or that no check is due."""
        if not is_distributed():
            return self._signal
        if step < self._next_check:
            return 0
        now = time.monotonic()
        seconds_per_step = (now - self._check_time) / max(1, step - self._check_step)
        largest = torch.tensor([float(self._signal), seconds_per_step], dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        number, slowest = int(largest[0]), float(largest[1])
        self._check_time, self._check_step = now, step
        self._next_check = step + max(1, min(MAX_STEPS_BETWEEN_CHECKS, int(CHECK_SECONDS / max(slowest, 1e-9))))
        return number
