"""The planning process's side of a trial: what can be tried safely, and the watch on the process that tries it."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from fewstep.estimate.footprint import Footprint
from fewstep.estimate.request import MEASURED, Attempt, ask
from fewstep.system.hardware import memory_of_process

PACE = 0.2  # share of the speed of matrix products that a small network may reach
UPDATE_SECONDS = 6.0  # an update that would take longer is tried with fewer rows, or not at all
SNAPSHOT_SECONDS = 120.0  # of all that watches one training
SHARE = 0.8  # of the free memory that a trial may be expected to need; what needs all of it is ended
DEADLINE = 420.0  # seconds, for all trials
LOOK = 0.05  # seconds between looks
TOO_LARGE = "needed more memory than is free"
NO_MEMORY = ("out of memory", "allocate memory", "MemoryError")  # as torch for GPUs, torch for CPUs and Python say it
OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Room:
    """What a trial may use: bytes of memory, those that any process of ours holds, and operations a second."""

    memory: int
    base: int
    rate: float

    def seconds(self, flops: float) -> float:
        """How long so many operations take at most."""
        return flops / (PACE * self.rate)

    def rows(self, footprint: Footprint, stage: str, wanted: int, *, averaged: bool) -> int:
        """The most rows an update can be tried with, `wanted` or a part of them; 0 for none."""
        rows = wanted
        while rows:
            needed = self.base + footprint.training(stage, rows, averaged=averaged)
            if needed <= SHARE * self.memory and self.seconds(footprint.step_flops(stage, rows)) <= UPDATE_SECONDS:
                return rows
            rows //= 2
        return 0

    def images(self, footprint: Footprint, evaluations: int, wanted: int) -> int:
        """The most images that can be sampled in the time of a snapshot, `wanted` or fewer."""
        return min(wanted, int(SNAPSHOT_SECONDS / max(1e-9, self.seconds(evaluations * footprint.flops))))


def tried(folder: Path, attempts: Sequence[Attempt], limit: int, say: Callable[[str], None]) -> str | None:
    """Run the trials in a process of their own; what was measured is then in `folder`. Why it was ended, or None.

    Args:
        limit: bytes of main memory; a process that takes more is ended.
        say: is told the stage that is tried.

    Raises:
        ValueError: a setting that training refuses, in its words.
        RuntimeError: a trial failed, in a way that training would too.
    """
    ask(folder, attempts)
    environment = {key: value for key, value in os.environ.items() if key not in OF_A_LAUNCHER}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    output = folder / "output"
    with output.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "fewstep.estimate.trial", str(folder)], env=environment, stdout=said, stderr=said
        )
        try:
            reason = watched(process, folder, attempts, limit, say)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if reason is None and process.returncode:
        lines = output.read_text().strip().splitlines()
        error = next((line for line in reversed(lines) if line.startswith("error: ")), "").removeprefix("error: ")
        if any(words in error for words in NO_MEMORY):
            return TOO_LARGE
        if process.returncode == 2:
            raise ValueError(error)
        if process.returncode > 0:
            raise RuntimeError(error or "\n".join(lines[-5:]) or "the trial ended without a word")
        return f"was ended by signal {-process.returncode}, as the system does where memory is short"
    return reason


def watched(
    process: subprocess.Popen[bytes], folder: Path, attempts: Sequence[Attempt], limit: int, say: Callable[[str], None]
) -> str | None:
    """Wait for the process, at most until it takes too much memory or time; say which, or None if it ended itself."""
    until, shown = monotonic() + DEADLINE, ""
    while process.poll() is None:
        now = next((a.stage for a in attempts if not (folder / MEASURED.format(a.stage)).is_file()), shown)
        if now != shown:
            say(now)
            shown = now
        if memory_of_process(process.pid) > limit:
            return TOO_LARGE
        if monotonic() > until:
            return f"took longer than {DEADLINE / 60:.0f} minutes"
        sleep(LOOK)
    return None
