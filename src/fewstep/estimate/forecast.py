"""What each stage, rung and the evaluation need: what was measured, scaled to their size, or estimated from shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from fewstep.estimate.attempts import Room
from fewstep.estimate.footprint import FORWARDS, Footprint
from fewstep.estimate.request import Measured
from fewstep.estimate.work import Grid, Leg
from fewstep.runs.build import Setup

How = Literal["measured", "scaled", "estimated"]
KEPT_CHECKPOINTS = 2  # the last and the one before
OPTIMISER = 3  # of a checkpoint, in units of the weights: the student and Adam's two moments
COPIES = 3  # of all images of a cell, in floats: the samples, those compared with, and what is judged


@dataclass(frozen=True)
class Machine:
    """Where it is to run: processes in all and on this machine, and what a trial may use of it."""

    device: str
    processes: int
    here: int
    strategy: str
    room: Room

    @property
    def shared(self) -> int:
        """How many processes share the cores that a trial had for itself: all those here, where there is no GPU."""
        return self.here if self.device == "cpu" else 1

    @property
    def speed_up(self) -> float:
        """Of work that is divided over the processes, against a trial by one."""
        return self.processes / self.shared

    def of_several(self, whole: int, footprint: Footprint, leg: Leg) -> int:
        """What one of several processes needs, where a single one with its rows needs `whole`.

        DistributedDataParallel keeps the gradients once more, in the buckets that it sends. FSDP keeps its share of all
        weights, and for a moment one layer.
        """
        if self.processes == 1:
            return whole
        if self.strategy == "fsdp":
            weights = footprint.training(leg.stage, 0, averaged=leg.averaged) - footprint.fixed
            return whole - round(weights * (1 - 1 / self.processes))
        return whole + footprint.weight_bytes


@dataclass(frozen=True)
class Needs:
    """One line of the plan.

    Args:
        how: measured; tried with less and scaled; or estimated from shapes alone.
        memory: bytes of main memory a process, None where nothing is known. device_memory: of its GPU.
        seconds: at least, where they are estimated.
        disk: bytes that stay; checkpoint: bytes of another one while it is written.
    """

    name: str
    how: How
    memory: int | None
    device_memory: int
    seconds: float
    disk: int
    checkpoint: int = 0
    parameters: int | None = None
    images: int | None = None
    batch_size: int | None = None
    updates: int | None = None
    seconds_per_update: float | None = None


@dataclass(frozen=True)
class Forecast:
    """The whole plan, and what there is: bytes of memory (of a GPU, `device_memory`) and of disk."""

    title: str
    machine: Machine
    lines: tuple[Needs, ...]
    free_memory: int
    free_device_memory: int
    free_disk: int
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(line.seconds for line in self.lines)

    @property
    def memory(self) -> int:
        """Of a process at its peak: it does one after the other."""
        return max((line.memory for line in self.lines if line.memory is not None), default=0)

    @property
    def device_memory(self) -> int:
        return max((line.device_memory for line in self.lines), default=0)

    @property
    def disk(self) -> int:
        """At its fullest: while one more checkpoint is written."""
        return sum(line.disk for line in self.lines) + max((line.checkpoint for line in self.lines), default=0)


def estimated(leg: Leg, footprint: Footprint, machine: Machine) -> Needs:
    """What a training needs that was not tried: its memory from shapes, its time at the speed of matrix products."""
    rows, weights = leg.batch_size // machine.processes, footprint.weight_bytes
    whole = machine.of_several(footprint.training(leg.stage, rows, averaged=leg.averaged), footprint, leg)
    on_gpu = machine.device == "cuda"
    seconds = machine.shared * footprint.step_flops(leg.stage, rows) / machine.room.rate
    checkpoint = weights * (OPTIMISER + leg.averaged)
    return Needs(
        name=leg.name,
        how="estimated",
        memory=machine.room.base + (weights if on_gpu else whole),
        device_memory=whole if on_gpu else 0,
        seconds=leg.updates * seconds,
        disk=weights + KEPT_CHECKPOINTS * checkpoint * leg.is_first,
        checkpoint=checkpoint,
        parameters=footprint.parameters,
        images=leg.images,
        batch_size=leg.batch_size,
        updates=leg.updates,
        seconds_per_update=seconds,
    )


def scaled(
    leg: Leg, measured: Measured, footprint: Footprint, machine: Machine, setup: Setup, per_evaluation: float
) -> Needs:
    """What a training needs whose stage was tried.

    Args:
        per_evaluation: seconds of one evaluation of one image.
    """
    rows = leg.batch_size // machine.processes
    seconds = machine.shared * measured.seconds_per_update * rows / measured.rows
    untried = leg.snapshot_steps - (measured.seconds_per_snapshot > 0)
    evaluations = untried * leg.branches * setup.settings.snapshot_images
    snapshot = measured.seconds_per_snapshot + evaluations * per_evaluation
    looked = measured.seconds_per_look > 0
    tried = leg.look_evaluations(1 if leg.rung is not None else leg.look_steps) * looked
    look = measured.seconds_per_look + (leg.look_evaluations(leg.look_steps) - tried) * per_evaluation
    watching = (leg.snapshots * snapshot + leg.looks * look) / machine.speed_up
    needed = [footprint.training(leg.stage, n, averaged=leg.averaged) for n in (rows, measured.rows)]
    memory, on_device = measured.memory, measured.device_memory
    if machine.device == "cuda":
        on_device = machine.of_several(on_device + needed[0] - needed[1], footprint, leg)
    else:
        memory = machine.of_several(memory + needed[0] - needed[1], footprint, leg)
    return Needs(
        name=leg.name,
        how="measured" if rows == measured.rows and (looked or not leg.looks) else "scaled",
        memory=memory,
        device_memory=on_device,
        seconds=measured.seconds_around + leg.updates * seconds + watching,
        disk=measured.model_bytes
        + leg.snapshots * measured.picture_bytes
        + KEPT_CHECKPOINTS * measured.checkpoint_bytes * leg.is_first,
        checkpoint=measured.checkpoint_bytes,
        parameters=measured.parameters,
        images=leg.images,
        batch_size=leg.batch_size,
        updates=leg.updates,
        seconds_per_update=seconds,
    )


def judged(grid: Grid, measured: Measured | None, machine: Machine, setup: Setup, known: Mapping[str, float]) -> Needs:
    """What the evaluation needs.

    Args:
        known: seconds of one evaluation of one image by each role, from trials of training: for what was not tried.
    """
    spent = dict(known) | dict(measured.seconds_per_evaluation if measured else {})
    slowest = max(spent.values(), default=0.0)
    count = grid.plan.num_images
    sampling = sum(grid.sampled(each) * spent.get(each.role, slowest) for each in grid.contestants)
    if measured is None:
        return Needs("evaluate", "estimated", None, 0, sampling / machine.speed_up, 0, images=grid.images)
    judging = grid.cells * measured.seconds_per_cell * count / measured.rows
    more = max(0, count - measured.rows) * COPIES * 4 * prod(setup.facts.shape)
    return Needs(
        name="evaluate",
        how="measured" if count == measured.rows else "scaled",
        memory=measured.memory + more,
        device_memory=measured.device_memory,
        seconds=measured.seconds_around + (sampling + judging) / machine.speed_up,
        disk=grid.cells * measured.picture_bytes,
        images=grid.images,
    )


def per_evaluation(measured: Measured) -> float:
    """Seconds of one evaluation of one image, as far as a trial of training tells."""
    return measured.seconds_per_update / measured.rows / FORWARDS[measured.stage]
