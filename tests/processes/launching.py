"""`python train.py` in several processes of one run, as torchrun would start them, without the time to import."""

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
class Finished:
    """The exit statuses and the printed text of the processes of a run, by rank."""

    statuses: list[int]
    printed: list[str]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start_processes(count: int, folder: Path, *settings: str, fault: tuple[int, int, str] | None = None) -> list[Any]:
    """Processes that run `python train.py *settings`, forked from one that has done the imports.

    Args:
        folder: of the files with what they print.
        fault: (step, rank or -1 for all, "stop", "kill", "fail" or "nan"), injected after that step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fewstep.runs.pipeline", "hydra", "pytest", "fewstep.training.strategy"])
    folder.mkdir(parents=True, exist_ok=True)
    port, processes = free_port(), []
    for rank in range(count):
        log = folder / f"rank-{rank}.log"
        processes.append(context.Process(target=run_rank, args=(rank, count, port, log, settings, fault)))
        processes[-1].start()
    return processes


def wait_for(processes: list[Any], folder: Path) -> Finished:
    """Wait for the processes, which must end within DEADLINE."""
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
    printed = [(folder / f"rank-{rank}.log").read_text() for rank in range(len(processes))]
    return Finished([int(process.exitcode) for process in processes], printed)


def run_processes(count: int, folder: Path, *settings: str, fault: tuple[int, int, str] | None = None) -> Finished:
    """Run `python train.py *settings` in `count` processes and wait for them."""
    return wait_for(start_processes(count, folder, *settings, fault=fault), folder)


def run_rank(
    rank: int, count: int, port: int, log: Path, settings: tuple[str, ...], fault: tuple[int, int, str] | None
) -> None:
    """The main function of each process."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    if fault is not None:
        inject_fault(fault[0], fault[2], here=fault[1] in (-1, rank))
    try:
        train_as_typed(*settings)
    finally:
        sys.stdout.flush()


def inject_fault(step: int, fault: str, *, here: bool) -> None:
    """Let a fault happen after a step, on this rank if `here`."""
    from fewstep.data.batches import Batch
    from fewstep.data.digits import DigitsData
    from fewstep.system.signals import Stopped
    from fewstep.training.checkpointing import SaveCheckpoint

    save = SaveCheckpoint.on_train_batch_end

    def after(self, trainer, *others):
        save(self, trainer, *others)
        if trainer.global_step == step and here:
            if fault == "stop":
                trainer.save_checkpoint(self.path)
                raise Stopped(signal.SIGTERM, f"at step {step}")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "fail":
                raise RuntimeError("a cable came loose")

    SaveCheckpoint.on_train_batch_end = after  # pyright: ignore[reportAttributeAccessIssue]
    if fault == "nan" and here:
        rows = DigitsData.rows

        def spoilt(self, number):
            x, label = rows(self, number)
            return Batch(x * float("nan") if number == step else x, label)

        DigitsData.rows = spoilt  # pyright: ignore[reportAttributeAccessIssue]
