"""The settings of the trainer group: hardware and precision, and how often training logs and saves."""

from dataclasses import dataclass
from typing import Any

import torch

from fewstep.distributed.collectives import require_divisible_batch

ACCELERATORS = ("cpu", "gpu")
PRECISIONS = ("32-true", "bf16-mixed")  # not 16-mixed: its scaled gradients would be clipped as they are
STRATEGIES = ("auto", "ddp", "fsdp")
AUTO = "auto"


@dataclass(frozen=True)
class TrainerSettings:
    """The trainer group; conf/trainer/cpu.yaml says what each setting means.

    Raises:
        ValueError: a value out of its range, or no GPU for accelerator "gpu".
    """

    accelerator: str
    precision: Any
    compile: bool
    devices: int | str
    num_nodes: int
    strategy: str
    max_images: int | None
    checkpoint_seconds: float
    log_every_images: int
    snapshots: int
    snapshot_images: int
    diagnostics: int
    gradient_checkpointing: bool
    channels_last: bool
    toy: bool
    features: str
    generated_data: bool  # used by conf/dataset

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"trainer.max_images must be at least 1 or null, got {self.max_images}")
        if self.snapshots < 0 or self.snapshot_images < 1:
            raise ValueError(
                "trainer.snapshots must be at least 0 and trainer.snapshot_images at least 1, got "
                f"{self.snapshots} and {self.snapshot_images}"
            )
        if self.diagnostics < 0:
            raise ValueError(f"trainer.diagnostics must be at least 0, got {self.diagnostics}; 0 is none")
        if self.accelerator not in ACCELERATORS or self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.accelerator must be one of {', '.join(ACCELERATORS)} and trainer.precision one of "
                f"{', '.join(PRECISIONS)}, got {self.accelerator} and {self.precision}"
            )
        counted = isinstance(self.devices, int) and self.devices >= 1
        if not (counted or self.devices == AUTO) or self.num_nodes < 1 or self.strategy not in STRATEGIES:
            raise ValueError(
                f"trainer.devices must be at least 1 or {AUTO}, trainer.num_nodes at least 1 and trainer.strategy one "
                f"of {', '.join(STRATEGIES)}, got {self.devices}, {self.num_nodes} and {self.strategy!r}"
            )
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer=gpu needs a CUDA device, and torch sees none; use trainer=cpu")

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch size, capped by max_images, that does not divide over the processes."""
        require_divisible_batch(min(batch_size, self.max_images or batch_size))

    @property
    def device(self) -> str:
        """The accelerator, as torch names it."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def processes(self) -> int:
        """Number of processes of a run on each machine.

        Raises:
            ValueError: more than there are GPUs.
        """
        num_gpus = torch.cuda.device_count() if self.accelerator == "gpu" else None
        if self.devices == AUTO:
            return num_gpus or 1
        count = int(self.devices)
        require_gpus(count, num_gpus)
        return count


def require_gpus(count: int, num_gpus: int | None) -> None:
    """Refuse more processes on a machine than it has GPUs; None for a run that uses no GPU.

    Raises:
        ValueError: names both numbers.
    """
    if num_gpus is not None and count > num_gpus:
        raise ValueError(
            f"each process on a machine has a GPU of its own, got {count} for {num_gpus} GPUs that torch sees; lower "
            "trainer.devices, or let each process see all GPUs of its machine"
        )
