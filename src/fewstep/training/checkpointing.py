"""Training checkpoints: written atomically, verified by their checksum, and read without executing anything.

During training a folder keeps two: last.ckpt, and previous.ckpt, the one before it and the fallback if it is damaged.
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
from fewstep.system.validation import Count, checked

ORIGIN = "origin"  # key of a checkpoint: the stage and phase that it belongs to, and the SHA-256 of the parent
CHECKSUM = b"fewstep sha256 "  # begins the zip comment of a checkpoint, before the hex digest
COMMENT_BYTES = len(CHECKSUM) + 64
CHUNK = 2**20
PARTS = {
    "state_dict": dict[str, Any],
    "global_step": Count,
    "epoch": Count,
    "loops": dict[str, dict[str, Any]],
    "callbacks": dict[str, dict[str, Any]],
    "optimizer_states": list[dict[str, Any]],
    "lr_schedulers": list[dict[str, Any]],
    ORIGIN: str,
}
MAX_STEPS_BETWEEN_CHECKS = 50  # of whether a checkpoint is due, where there are several processes


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoint files written atomically, and read without unpickling anything but tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        with atomic_write(path, keep=path.with_name(PREVIOUS)) as temporary:
            with temporary.open("wb") as file:  # not torch's own file, whose errors hide their cause
                torch.save(checkpoint, file)
            append_checksum(temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return consolidated(read_checkpoint(Path(path)), Path(path).parent)


def append_checksum(path: Path) -> None:
    """Append the SHA-256 of a zip file to it, as the comment at its end."""
    digest = prefix_digest(path, path.stat().st_size - 2)
    with path.open("r+b") as file:
        file.seek(-2, 2)  # the last field of a zip file: the length of its comment, 0 so far
        file.write(COMMENT_BYTES.to_bytes(2, "little") + CHECKSUM + digest)


def has_valid_checksum(path: Path) -> bool:
    """Whether a file ends with the checksum of its content, as `append_checksum` writes it."""
    length = path.stat().st_size - COMMENT_BYTES - 2
    if length < 0:
        return False
    with path.open("rb") as file:
        file.seek(length)
        end = file.read()
    return end[:-64] == COMMENT_BYTES.to_bytes(2, "little") + CHECKSUM and end[-64:] == prefix_digest(path, length)


def prefix_digest(path: Path, length: int) -> bytes:
    """Hex SHA-256 of the first `length` bytes of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest().encode()


def read_checkpoint(path: Path, *, check_shards: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU; of a sharded one all but the shards.

    Args:
        check_shards: verify the checksums of its shards too.

    Raises:
        ValueError: it is damaged, or holds anything but tensors and plain values.
        OSError, MemoryError, RuntimeError: it cannot be read at present, and may be sound.
    """
    try:
        if not has_valid_checksum(path):  # then it is not opened at all
            raise ValueError("it is cut short, or its checksum is not that of what it holds")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        check_types(checkpoint)
        if check_shards:
            verify_shards(checkpoint, path.parent)
        return checkpoint
    except Exception as error:  # torch raises many types for a damaged file
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno != errno.ENOENT):  # a shard is gone
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnpicklingError):  # torch's own message advises to run what is in there
            reason = "it holds more than tensors and plain values, and is not opened: that could run code"
        raise ValueError(
            f"{path} is damaged or not a checkpoint of fewstep ({reason}); delete it and run the same command again to "
            "train this stage or phase from its start"
        ) from error


def check_types(checkpoint: Any) -> None:
    """Check the parts of a checkpoint that Lightning takes as they are.

    Raises:
        ValueError: names the first of another type.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError("it holds no dictionary")
    for key, hint in PARTS.items():
        if key in checkpoint:
            checked(checkpoint[key], hint, f"its {key}")


def checkpoint_to_resume(last: Path, origin: str) -> Path | None:
    """`last`, if it is a checkpoint of this stage and phase; a damaged one is replaced by the checkpoint before it.

    Args:
        origin: of the stage and phase; checkpoints of another origin are not used.

    Raises:
        ValueError: `last` is damaged and there is no good one before it.
    """
    previous = last.with_name(PREVIOUS)
    if last.exists():
        try:
            return last if read_checkpoint(last, check_shards=True).get(ORIGIN) == origin else None
        except ValueError as error:
            try:
                fallback = read_checkpoint(previous, check_shards=True)
            except (ValueError, OSError):
                raise error from None
            damaged = last.with_name(DAMAGED)
            move(last, damaged)  # else the next checkpoint would move it over the good one
            reason = str(error).partition(";")[0]
            if fallback.get(ORIGIN) != origin:
                warnings.warn(f"{reason}; it is now {damaged.name}, and this phase starts anew", stacklevel=2)
                return None
            step = fallback.get("global_step")
            warnings.warn(
                f"{reason}; it is now {damaged.name}, and the one before it is used, of step {step}", stacklevel=2
            )
    elif not previous.exists() or read_checkpoint(previous, check_shards=True).get(ORIGIN) != origin:
        return None
    move(previous, last)
    return last


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether that batch is the last one accumulated into an optimiser step; between them nothing is saved."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class SaveCheckpoint(Callback):
    """Save last.ckpt every `every_seconds`, after the step then running, and at the end of training."""

    def __init__(self, path: Path, every_seconds: float, origin: str) -> None:
        if every_seconds < 0:
            raise ValueError(f"trainer.checkpoint_seconds must be at least 0, got {every_seconds}")
        self.path, self.every_seconds, self.origin = path, every_seconds, origin
        self._save_time = self._check_time = time.monotonic()
        self._check_step, self._next_check = 0, 0
        self.went_on = False  # whether a step was made since the checkpoint was read

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_time = self._check_time = time.monotonic()
        self._check_step, self._next_check = trainer.global_step, trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.went_on = True
        if ends_step(trainer, batch_idx) and self._is_due(trainer.global_step):
            trainer.save_checkpoint(self.path)
            self._save_time = time.monotonic()

    def _is_due(self, step: int) -> bool:
        """Whether to save now, by the clock of rank 0; the same on all ranks."""
        if not is_distributed():
            return time.monotonic() - self._save_time >= self.every_seconds
        if step < self._next_check:
            return False
        is_due, wait = on_main_process(lambda: self._check(step))
        self._check_step, self._next_check = step, step + wait
        return is_due

    def _check(self, step: int) -> tuple[bool, int]:
        """Whether to save now, and the number of steps until the next check: half of those until a save is due."""
        now = time.monotonic()
        seconds_per_step = max(1e-9, (now - self._check_time) / max(1, step - self._check_step))
        self._check_time = now
        left = self.every_seconds - (now - self._save_time)
        steps = int((left if left > 0 else self.every_seconds) / seconds_per_step / 2)
        return left <= 0, max(1, min(MAX_STEPS_BETWEEN_CHECKS, steps))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            self.path.with_name(PREVIOUS).unlink(missing_ok=True)  # a finished phase keeps one

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[ORIGIN] = self.origin
