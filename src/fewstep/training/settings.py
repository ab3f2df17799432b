"""The settings of the trainer group: hardware and precision, and how often training logs and saves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.distributed.collectives import require_divisible_batch, world_size

ACCELERATORS = ("cpu", "gpu")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # weights in 32 bits: an average's small steps are lost in 16
PROFILERS = ("simple", "advanced", "pytorch")
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
    max_steps: int | None = None
    max_time: str | None = None
    accumulate_grad_batches: int = 1
    callbacks: tuple[Mapping[str, Any], ...] = ()
    profiler: Mapping[str, Any] | str | None = None

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
                f"{', '.join(PRECISIONS)} (weights are kept in 32 bits: the small steps of an average or a late "
                f"optimiser are lost in 16), got {self.accelerator} and {self.precision}"
            )
        if self.precision == "16-mixed" and (self.accelerator != "gpu" or self.strategy == "fsdp"):
            raise ValueError(
                "trainer.precision=16-mixed scales the loss, on a GPU and of replicated networks alone, got "
                f"trainer.accelerator={self.accelerator} and trainer.strategy={self.strategy}; use bf16-mixed"
            )
        if self.accumulate_grad_batches < 1 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError(
                "trainer.accumulate_grad_batches must be at least 1 and trainer.max_steps at least 1 or null, got "
                f"{self.accumulate_grad_batches} and {self.max_steps}"
            )
        if self.max_time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time):
            raise ValueError(
                f"trainer.max_time must be DAYS:HH:MM:SS, like '00:01:30:00', or null, got {self.max_time!r}"
            )
        if isinstance(self.profiler, str) and self.profiler not in PROFILERS:
            raise ValueError(
                f"trainer.profiler must be null, one of {', '.join(PROFILERS)}, or a class by _target_, got "
                f"{self.profiler!r}"
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
        """Refuse a batch size, capped by max_images, that does not divide over the processes and parts of a step.

        Raises:
            ValueError: names the numbers.
        """
        batch_size = min(batch_size, self.max_images or batch_size)
        require_divisible_batch(batch_size)
        if batch_size // world_size() % self.accumulate_grad_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches={self.accumulate_grad_batches} must divide the batch of each "
                f"process, {batch_size // world_size()} images; change it or stage.training.batch_size"
            )

    def capped(self, images: int, batch_size: int) -> int:
        """The budget of a phase in images, as trainer.max_images and trainer.max_steps allow."""
        caps = (self.max_images, self.max_steps and self.max_steps * min(batch_size, self.max_images or batch_size))
        return min([images, *(cap for cap in caps if cap is not None)])

    @property
    def notes(self) -> list[str]:
        """What of these settings does not go with bit-identical resuming, a line each."""
        lines = []
        if self.max_time is not None:
            lines.append(
                f"trainer.max_time={self.max_time} ends each phase by the clock: another run of it, or one that was "
                "interrupted, makes another model"
            )
        if self.callbacks:
            lines.append(
                "trainer.callbacks: an interrupted run goes on bit for bit only if they draw no random numbers and "
                "keep what they remember in state_dict"
            )
        return lines

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
