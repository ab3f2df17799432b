"""Checkpoints: written whole or not at all, known by their checksum, and read without running anything.

While it is trained in, a folder keeps two: last.ckpt and the one before it, previous.ckpt, which serves when the disk
has damaged the last.
"""

import errno
import time
import warnings
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from fewstep.artifacts.run_folder import DAMAGED, PREVIOUS
from fewstep.distributed.collectives import is_distributed, on_main_process
from fewstep.distributed.sharded_checkpoint import consolidated, verify_shards
from fewstep.system.files import atomic_write, is_out_of_memory, move

ORIGIN = "origin"  # key of a checkpoint: which stage and rung it belongs to, and the hash of its parent
SEAL = b"fewstep sha256 "  # begins the comment at the end of a checkpoint, which is a zip file
SEAL_BYTES = len(SEAL) + 64
CHUNK = 2**20
MAX_STEPS_BETWEEN_CHECKS = 50  # between looks at the clock where there are several processes


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and are read without unpickling anything but tensors and numbers."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        with atomic_write(path, keep=path.with_name(PREVIOUS)) as temporary:
            with temporary.open("wb") as file:  # a file of Python's, whose errors say what was wrong
                torch.save(checkpoint, file)
            seal(temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return consolidated(read_checkpoint(Path(path)), Path(path).parent)


def seal(path: Path) -> None:
    """Add the SHA-256 of a zip file to its end, as the comment that zip files may have there."""
    digest = digest_of(path, path.stat().st_size - 2)
    with path.open("r+b") as file:
        file.seek(-2, 2)  # of the end record: the length of the comment, 0 as yet
        file.write(SEAL_BYTES.to_bytes(2, "little") + SEAL + digest)


def is_sealed(path: Path) -> bool:
    """Whether a file is, to the last bit, what was sealed."""
    length = path.stat().st_size - SEAL_BYTES - 2
    if length < 0:
        return False
    with path.open("rb") as file:
        file.seek(length)
        end = file.read()
    return end[:-64] == SEAL_BYTES.to_bytes(2, "little") + SEAL and end[-64:] == digest_of(path, length)


def digest_of(path: Path, length: int) -> bytes:
    """Hex SHA-256 of the first `length` bytes of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest().encode()


def read_checkpoint(path: Path, *, with_parts: bool = False) -> dict[str, Any]:
    """A checkpoint, on the CPU; of one in parts what is not divided.

    Args:
        with_parts: look at the checksums of its parts too.

    Raises:
        ValueError: it is damaged, or holds anything but tensors and plain values.
        OSError, MemoryError, RuntimeError: it cannot be read now, which says nothing of it.
    """
    try:
        if not is_sealed(path):  # so it is not opened at all
            raise ValueError("it is cut short, or its checksum is not that of what it holds")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError("it holds no dictionary")
        if with_parts:
            verify_shards(checkpoint, path.parent)
        return checkpoint
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same here
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno != errno.ENOENT):  # a part is gone
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnpicklingError):  # torch's own words would have the user run what is in there
            reason = "it holds more than tensors and plain values, and is not opened: that could run code"
        raise ValueError(
            f"{path} is damaged or not a checkpoint of fewstep ({reason}); delete it and run the same command again to "
            "train this stage or rung from its start"
        ) from error


def checkpoint_to_resume(last: Path, origin: str) -> Path | None:
    """`last`, if it is a checkpoint of this stage or rung; one that is damaged is replaced by the one before it.

    Args:
        origin: of the stage or rung; a checkpoint of another is not for it.

    Raises:
        ValueError: `last` is damaged and there is no good one before it.
    """
    previous = last.with_name(PREVIOUS)
    if last.exists():
        try:
            return last if read_checkpoint(last, with_parts=True).get(ORIGIN) == origin else None
        except ValueError as error:
            try:
                before = read_checkpoint(previous, with_parts=True)
            except (ValueError, OSError):
                raise error from None
            aside = last.with_name(DAMAGED)
            move(last, aside)  # and not in the place of the good one, where the next checkpoint would put it
            reason = str(error).partition(";")[0]
            if before.get(ORIGIN) != origin:
                warnings.warn(f"{reason}; it is now {aside.name}, and this rung starts anew", stacklevel=2)
                return None
            step = before.get("global_step")
            warnings.warn(
                f"{reason}; it is now {aside.name}, and the one before it is used, of step {step}", stacklevel=2
            )
    elif not previous.exists() or read_checkpoint(previous, with_parts=True).get(ORIGIN) != origin:
        return None
    move(previous, last)
    return last


class SaveCheckpoint(Callback):
    """Writes last.ckpt at most `every_seconds` apart and at the end."""

    def __init__(self, path: Path, every_seconds: float, origin: str) -> None:
        if every_seconds < 0:
            raise ValueError(f"trainer.checkpoint_seconds must be at least 0, got {every_seconds}")
        self.path, self.every_seconds, self.origin = path, every_seconds, origin
        self._saved = time.monotonic()
        self._looked, self._looked_at, self._next_look = self._saved, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = self._looked = time.monotonic()
        self._looked_at, self._next_look = trainer.global_step, trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_time(trainer.global_step):
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()

    def _is_time(self, step: int) -> bool:
        """Whether to save now: the same answer for all processes, by the clock of the first."""
        if not is_distributed():
            return time.monotonic() - self._saved >= self.every_seconds
        if step < self._next_look:
            return False
        due, wait = on_main_process(lambda: self._look(step))
        self._looked_at, self._next_look = step, step + wait
        return due

    def _look(self, step: int) -> tuple[bool, int]:
        """Whether it is time, and after how many steps to look again: at most half of those until it will be."""
        now = time.monotonic()
        pace, self._looked = max(1e-9, (now - self._looked) / max(1, step - self._looked_at)), now
        left = self.every_seconds - (now - self._saved)
        return left <= 0, max(
            1, min(MAX_STEPS_BETWEEN_CHECKS, int((left if left > 0 else self.every_seconds) / pace / 2))
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            self.path.with_name(PREVIOUS).unlink(missing_ok=True)  # what was trained keeps one

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[ORIGIN] = self.origin
