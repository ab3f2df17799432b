"""Where a run takes place: how its processes share work and memory, and what may be tried here."""

from dataclasses import dataclass

import torch

from fewstep.distributed.collectives import world_size
from fewstep.estimate.shapes import Footprint
from fewstep.system.hardware import cores, free_memory, product_rate
from fewstep.training.settings import TrainerSettings

MEMORY_SHARE = 0.8  # of the free memory, which what is tried may need
PACE = 0.2  # of the speed of matrix products, which small networks reach at least
TRIAL_SECONDS = 6.0  # an update or a snapshot's step that would take longer is tried with fewer examples


@dataclass(frozen=True)
class Machine:
    """The processes of a run and the devices that they share.

    Args:
        processes: in all; here: on this machine. sharded: whether each has a part of every network (FSDP).
        rate: floating-point operations a second in matrix products.
    """

    device: str
    processes: int
    here: int
    sharded: bool
    rate: float

    @classmethod
    def of(cls, trainer: TrainerSettings) -> "Machine":
        """This machine, and the processes that the settings ask for or that there are."""
        processes = max(world_size(), trainer.processes * trainer.num_nodes)
        dtype = torch.float32 if trainer.precision == "32-true" else torch.bfloat16
        rate = product_rate(trainer.device, dtype)
        return cls(trainer.device, processes, trainer.processes, trainer.strategy == "fsdp", rate)

    @property
    def title(self) -> str:
        on = "GPU" if self.device == "cuda" else f"CPU, {cores()} cores"
        return f"{self.processes} process{'es' * (self.processes > 1)}, {on}"

    @property
    def slowdown(self) -> int:
        """How many processes share the cores that one was timed on."""
        return 1 if self.device == "cuda" else self.here

    def rows(self, batch_size: int) -> int:
        """A process's examples of a batch.

        Raises:
            ValueError: it does not divide.
        """
        if batch_size % self.processes:
            raise ValueError(
                f"a batch must divide over the processes, got stage.training.batch_size={batch_size} for "
                f"{self.processes}; change it or trainer.devices"
            )
        return batch_size // self.processes

    def part(self, number: int) -> int:
        """A process's part of what need not divide, at most."""
        return -(-number // self.processes)

    def unsharded(self, found: Footprint) -> int:
        """Bytes of networks that a single process has and one of several has not."""
        return round(found.at_rest * (1 - 1 / self.processes)) if self.sharded else 0

    def to_try(self, number: int, *, flops: float, bytes_each: float = 0.0, fixed: int = 0) -> int:
        """`number` of examples or a part of them, which time and memory allow to try; 0 for none."""
        free = MEMORY_SHARE * free_memory(self.device) - fixed
        while number and (number * bytes_each > free or number * flops > TRIAL_SECONDS * PACE * self.rate):
            number //= 2
        return number if free > 0 else 0
