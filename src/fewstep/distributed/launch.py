"""Launching the processes of a run: from here, by torchrun or by srun. torch is imported only where it is needed."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"  # forwarded to the processes
STOP_SECONDS = 45  # between SIGTERM and SIGKILL


def translate_slurm_environment() -> None:
    """Set torchrun's environment variables (RANK, WORLD_SIZE, ...) from those of a SLURM step of several tasks."""
    environ = os.environ
    if "RANK" in environ or int(environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    nodes = int(environ.get("SLURM_STEP_NUM_NODES", 1))
    environ["WORLD_SIZE"], environ["RANK"] = environ["SLURM_STEP_NUM_TASKS"], environ["SLURM_PROCID"]
    environ["LOCAL_WORLD_SIZE"] = str(int(environ["WORLD_SIZE"]) // nodes)
    environ["LOCAL_RANK"], environ["GROUP_RANK"] = environ["SLURM_LOCALID"], environ["SLURM_NODEID"]
    if "MASTER_ADDR" not in environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        port = 15000 + (int(environ["SLURM_JOB_ID"]) + 97 * int(environ["SLURM_STEP_ID"])) % 10000
        environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(environ["SLURM_STEP_NODELIST"])
        environ["MASTER_PORT"] = str(port)


def is_worker_process() -> bool:
    """Whether a launcher (torchrun, srun or `launch_workers`) started this process as one rank of a run."""
    translate_slurm_environment()
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_silent_rank() -> bool:
    """Whether this process prints no messages: every rank but rank 0."""
    return is_worker_process() and os.environ["RANK"] != "0"


def launch_workers(program: str, arguments: Sequence[str], count: int, num_nodes: int = 1) -> int:
    """Run a Python program in `count` processes on this machine with torch's elastic launcher; return the exit status.

    When one process fails, the others are terminated. Signals are forwarded to all.

    Raises:
        ValueError: more than one machine: processes on other machines cannot be started from here.
    """
    if num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={num_nodes} machines are started by torchrun on each of them, or by srun; see "
            "conf/trainer/ddp.yaml"
        )
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack for a lost connection
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=SIGNALS,
        shutdown_timeout=STOP_SECONDS,
    )
    logging.disable(logging.ERROR)  # the processes print their own errors, and `exit_status` how they ended
    try:
        elastic_launch(config, sys.executable)(program, *arguments)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        return exit_status({rank: failure.exitcode for rank, failure in failed.failures.items()})
    finally:
        logging.disable(logging.NOTSET)
    return 0


def exit_status(statuses: dict[int, int]) -> int:
    """Exit status of a run, from rank -> status of its processes (negative: ended by a signal); prints who was killed.

    SIGTERM does not count: the launcher sends it to the other processes after one has failed.
    """
    killed = {rank: -status for rank, status in statuses.items() if status < 0 and status != -signal.SIGTERM}
    for rank, number in killed.items():
        name = signal.Signals(number).name
        advice = " (is there enough memory?)" if number == signal.SIGKILL else ""
        print(
            f"error: rank {rank} was ended by {name}{advice}; the same command resumes the run",
            file=sys.stderr,
            flush=True,
        )
    if killed:
        return 128 + next(iter(killed.values()))
    return max((status for status in statuses.values() if status > 0), default=128 + signal.SIGTERM)
