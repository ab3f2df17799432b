"""`python train.py` in several processes of one run, as torchrun would start them, without their seconds of imports."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import train_as_typed

DEADLINE = 150  # seconds, for a run of several processes that share two cores with other tests


@dataclass(frozen=True)
class Ended:
    """How the processes of a run ended: their exit statuses, and all that they printed, rank by rank."""

    statuses: list[int]
    said: list[str]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(count: int, folder: Path, *settings: str, at_step: tuple[int, int, str] | None = None) -> list[Any]:
    """Processes that run `python train.py *settings`, forked from one that has done the imports.

    Args:
        folder: where what they print is kept.
        at_step: (step, rank or -1 for all, "stop", "kill", "fail" or "nan"): what happens after that step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fewstep.runs.pipeline", "hydra", "pytest", "fewstep.training.strategy"])
    folder.mkdir(parents=True, exist_ok=True)
    port, processes = free_port(), []
    for rank in range(count):
        log = folder / f"rank-{rank}.log"
        processes.append(context.Process(target=one, args=(rank, count, port, log, settings, at_step)))
        processes[-1].start()
    return processes


def ended(processes: list[Any], folder: Path) -> Ended:
    """Wait for them; none may outlive its fellows by more than a minute."""
    deadline = time.monotonic() + DEADLINE
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        assert not any(process.is_alive() for process in processes), [
            (folder / f"rank-{rank}.log").read_text() for rank in range(len(processes))
        ]
    finally:
        for process in processes:
            process.kill()
    said = [(folder / f"rank-{rank}.log").read_text() for rank in range(len(processes))]
    return Ended([int(process.exitcode) for process in processes], said)


def several(count: int, folder: Path, *settings: str, at_step: tuple[int, int, str] | None = None) -> Ended:
    """Run `python train.py *settings` in `count` processes, to their end."""
    return ended(start(count, folder, *settings, at_step=at_step), folder)


def one(
    rank: int, count: int, port: int, log: Path, settings: tuple[str, ...], at_step: tuple[int, int, str] | None
) -> None:
    """What each process does."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    if at_step is not None:
        happen(at_step[0], at_step[2], here=at_step[1] in (-1, rank))
    try:
        train_as_typed(*settings)
    finally:
        sys.stdout.flush()


def happen(step: int, what: str, *, here: bool) -> None:
    """Have something happen after that step."""
    from fewstep.data.batches import Batch
    from fewstep.data.digits import DigitsData
    from fewstep.system.signals import Stopped
    from fewstep.training.checkpointing import SaveCheckpoint

    save = SaveCheckpoint.on_train_batch_end

    def after(self, trainer, *others):
        save(self, trainer, *others)
        if trainer.global_step == step and here:
            if what == "stop":
                trainer.save_checkpoint(self.path)
                raise Stopped(signal.SIGTERM, f"at step {step}")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "fail":
                raise RuntimeError("a cable came loose")

    SaveCheckpoint.on_train_batch_end = after  # pyright: ignore[reportAttributeAccessIssue]
    if what == "nan" and here:
        rows = DigitsData.rows

        def spoilt(self, number):
            x, label = rows(self, number)
            return Batch(x * float("nan") if number == step else x, label)

        DigitsData.rows = spoilt  # pyright: ignore[reportAttributeAccessIssue]
