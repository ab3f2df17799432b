"""How the processes of a run come to be: started here, by torchrun or by srun. torch is imported only where needed."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"  # passed on to the processes
STOP_SECONDS = 45  # for a process to end when it is asked to, before it is killed


def translate_slurm_environment() -> None:
    """Translate what srun tells each of several processes to torchrun's names, which all else here and torch read."""
    told = os.environ
    if "RANK" in told or int(told.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    nodes = int(told.get("SLURM_STEP_NUM_NODES", 1))
    told["WORLD_SIZE"], told["RANK"] = told["SLURM_STEP_NUM_TASKS"], told["SLURM_PROCID"]
    told["LOCAL_WORLD_SIZE"] = str(int(told["WORLD_SIZE"]) // nodes)
    told["LOCAL_RANK"], told["GROUP_RANK"] = told["SLURM_LOCALID"], told["SLURM_NODEID"]
    if "MASTER_ADDR" not in told:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        told["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(told["SLURM_STEP_NODELIST"])
        told["MASTER_PORT"] = str(15000 + (int(told["SLURM_JOB_ID"]) + 97 * int(told["SLURM_STEP_ID"])) % 10000)


def is_worker_process() -> bool:
    """Whether this process was started as one of a run's."""
    translate_slurm_environment()
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_silent_rank() -> bool:
    """Whether another process says what both have to say."""
    return is_worker_process() and os.environ["RANK"] != "0"


def launch_workers(program: str, arguments: Sequence[str], count: int, num_nodes: int = 1) -> int:
    """Run a Python program in `count` processes on this machine, by torch's elastic launcher; give the exit status.

    Where one ends with an error the others are ended too. Signals are passed on.

    Raises:
        ValueError: more than one machine, on which nothing can be started from here.
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
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # not ten lines of C++ about a connection that is gone
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
    logging.disable(logging.ERROR)  # the processes say themselves what is wrong, and this function how they ended
    try:
        elastic_launch(config, sys.executable)(program, *arguments)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        ended = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        return exit_status(ended)
    finally:
        logging.disable(logging.NOTSET)
    return 0


def exit_status(ended: dict[int, int]) -> int:
    """The exit status of a run whose processes ended so: rank -> status, negative for a signal; says who was killed.

    Those ended by SIGTERM were asked to, after another one had failed.
    """
    killed = {rank: -status for rank, status in ended.items() if status < 0 and status != -signal.SIGTERM}
    for rank, number in killed.items():
        name = signal.Signals(number).name
        advice = " (is there enough memory?)" if number == signal.SIGKILL else ""
        print(f"error: rank {rank} was ended by {name}{advice}; the same command goes on", file=sys.stderr, flush=True)
    if killed:
        return 128 + next(iter(killed.values()))
    statuses = [status for status in ended.values() if status > 0]
    return max(statuses, default=128 + signal.SIGTERM)
