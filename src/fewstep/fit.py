"""One Trainer.fit of one stage or rung, which goes on where an interrupted one stopped."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import Logger

from fewstep.data.batches import Data
from fewstep.files import atomic
from fewstep.folder import LAST, RunFolder
from fewstep.stages import NonFiniteLossError, Stage
from fewstep.tracking.progress import Progress
from fewstep.tracking.training_log import TrainingLog

# Lightning has torch look for GPUs through NVML, and torch's optimisers look every step: on a machine without a driver
# that opens a library each time, half a millisecond. CUDA's own count is remembered; no data worker of ours is forked.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

ORIGIN = "origin"  # key of a checkpoint: which stage and rung it belongs to, and the hash of its parent
ACCELERATORS = ("cpu", "gpu")
PRECISIONS = ("32-true", "bf16-mixed")  # not 16-mixed: its scaled gradients would be clipped as they are


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


@dataclass(frozen=True)
class TrainerSettings:
    """The trainer group: see conf/trainer/cpu.yaml for what each means.

    Raises:
        ValueError: a cap below 1, or fewer than 0 snapshots.
    """

    accelerator: str
    precision: Any
    compile: bool
    max_images: int | None
    checkpoint_seconds: float
    log_every_images: int
    snapshots: int
    snapshot_images: int
    gradient_checkpointing: bool
    channels_last: bool
    toy: bool
    features: str
    generated_data: bool  # read by the data sets, in conf/dataset

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"trainer.max_images must be at least 1 or null, got {self.max_images}")
        if self.snapshots < 0 or self.snapshot_images < 1:
            raise ValueError(
                "trainer.snapshots must be at least 0 and trainer.snapshot_images at least 1, got "
                f"{self.snapshots} and {self.snapshot_images}"
            )
        if self.accelerator not in ACCELERATORS or self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.accelerator must be one of {', '.join(ACCELERATORS)} and trainer.precision one of "
                f"{', '.join(PRECISIONS)}, got {self.accelerator} and {self.precision}"
            )
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer=gpu needs a CUDA device, and torch sees none; use trainer=cpu")


def fit(
    stage: Stage,
    data: Data,
    folder: RunFolder,
    settings: TrainerSettings,
    *,
    parent_sha256: str | None,
    loggers: Sequence[Logger],
    snapshots: Callback,
    rung: int | None = None,
    images_before: int = 0,
) -> None:
    """Train `stage` to its budget; it goes on from a last.ckpt in `folder` of the same stage, rung and parent.

    Raises:
        NonFiniteLossError: with the checkpoint that is still good.
        ValueError: last.ckpt is damaged.
        OSError: the disk is full or outputs cannot be written.
    """
    training = stage.training_plan
    last = folder.path / LAST
    origin = f"{stage.stream} from {parent_sha256}"
    resume = last.is_file() and read_checkpoint(last).get(ORIGIN) == origin
    progress = Progress(stage=stage.name, batch_size=training.batch_size, rung=rung)
    log = TrainingLog(
        batch_size=training.batch_size,
        every_images=settings.log_every_images,
        images_before=images_before,
        rung=rung,
        on_loss=progress.show_loss,
    )
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=1,
        precision=settings.precision,
        max_steps=training.num_steps,
        max_epochs=-1,
        logger=list(loggers),
        callbacks=[log, progress, snapshots, SaveLast(last, settings.checkpoint_seconds, origin)],
        plugins=[AtomicCheckpoints()],
        default_root_dir=folder.path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if settings.compile:
        stage.student.network.compile()
    try:
        trainer.fit(stage, data, ckpt_path=last if resume else None, weights_only=True)
    except NonFiniteLossError as error:
        kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint had been written yet"
        raise NonFiniteLossError(f"{error}; {kept}") from error
