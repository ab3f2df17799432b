"""Checkpoints: written whole or not at all, read without running anything, and taken up where a run stopped."""

import time
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from fewstep.files import atomic

ORIGIN = "origin"  # key of a checkpoint: which stage and rung it belongs to, and the hash of its parent


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and are read without unpickling anything but tensors and numbers."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)  # to a file of Python's, whose errors say what was wrong

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU.

    Raises:
        ValueError: it is damaged, or holds anything but tensors and plain values.
    """
    try:
        if not is_zipfile(path):
            raise ValueError("it is cut short, or not what torch.save writes")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError("it holds no dictionary")
        return checkpoint
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnpicklingError):  # torch's own words would have the user run what is in there
            reason = "it holds more than tensors and plain values, and is not opened: that could run code"
        raise ValueError(
            f"{path} is damaged or not a checkpoint of fewstep ({reason}); delete it and run the same command again to "
            "train this stage or rung from its start"
        ) from error


class SaveLast(Callback):
    """Writes last.ckpt at most `every_seconds` apart and at the end."""

    def __init__(self, path: Path, every_seconds: float, origin: str) -> None:
        if every_seconds < 0:
            raise ValueError(f"trainer.checkpoint_seconds must be at least 0, got {every_seconds}")
        self.path, self.every_seconds, self.origin = path, every_seconds, origin
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._saved >= self.every_seconds:
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[ORIGIN] = self.origin
