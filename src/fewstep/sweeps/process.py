"""One job as a process of its own: `python train.py ...`, its output in a log, signals passed on."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewstep.artifacts.run_folder import locked
from fewstep.sweeps.requeue import begin_again
from fewstep.system.signals import Stopped, stop_signals

LOGS = "logs"
GRACE = 60.0  # seconds in which a job that is asked to stop writes its checkpoint
STARTED = "$ "


@dataclass(frozen=True)
class JobProcess:
    """What a launcher calls, here or on another machine, for each job.

    Attributes:
        script: the train.py that the sweep was started with.
        one_gpu: whether each job gets one of this machine's GPUs for itself.
    """

    script: str
    one_gpu: bool = False

    def __call__(self, config: DictConfig) -> dict[str, Any]:
        """Run the job whose settings Hydra composed here, to its end; give its exit status and its last message."""
        folder = Path(config.outputs)
        log = folder / LOGS / f"{config.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, self.script, *job_arguments()]
        with environment_of_job(folder, self.one_gpu) as environment, log.open("a") as output:
            output.write(f"{STARTED}{shlex.join(command)}\n")
            output.flush()
            status = run_to_end(command, environment, output.fileno())
        return {"status": status, "message": last_message(log)}


def job_arguments() -> list[str]:
    """The command line of the job that Hydra composed here."""
    composed = HydraConfig.get()
    folders = [source.path for source in composed.runtime.config_sources if source.provider == "command-line"]
    search_path = [text for text in composed.overrides.hydra if text.startswith("hydra.searchpath=")]
    given = [argument for folder in folders for argument in ("--config-dir", folder)]
    return [*given, *composed.overrides.task, *search_path, "hydra.mode=RUN"]


def run_to_end(command: list[str], environment: dict[str, str], output: int) -> int:
    """The exit status of a process that is asked to stop when this one is.

    Raises:
        Stopped: the whole sweep was asked to stop, and not one of its jobs on a cluster.
    """
    requeue = signal.getsignal(signal.SIGUSR2)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        with stop_signals():
            return child.wait()
    except Stopped as stopped:
        with stop_signals(lambda number, frame: None):  # clusters and launchers ask twice
            status = stop(child, stopped.number)
        if status:
            begin_again(status, requeue)
        if "SUBMITIT_EXECUTOR" in os.environ:
            return status
        raise


def stop(child: subprocess.Popen[bytes], number: int) -> int:
    """Pass a signal on; give the exit status."""
    # Ctrl-C has reached the job too, and a second one would have it end without a checkpoint.
    child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
    try:
        return child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def last_message(log: Path) -> str:
    """The last error of the latest attempt, else its last line."""
    attempt = f"\n{log.read_text(errors='replace')}".rpartition(f"\n{STARTED}")[2]
    lines = [line.strip() for line in attempt.splitlines()[1:] if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


@contextmanager
def environment_of_job(folder: Path, one_gpu: bool) -> Iterator[dict[str, str]]:
    """The environment of a job: if it is to have one GPU, of this machine's the first that no other job has locked."""
    environment = dict(os.environ)
    with ExitStack() as stack:
        for gpu in visible_gpus() if one_gpu else ():
            if stack.enter_context(locked(folder / LOGS / f".gpu-{gpu}")):
                environment["CUDA_VISIBLE_DEVICES"] = gpu
                break
        yield environment


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    from torch.cuda import device_count

    everything = ",".join(map(str, range(device_count())))
    return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", everything).split(",") if gpu]
