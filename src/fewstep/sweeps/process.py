"""One job as a process of its own: `python train.py ...`, its words in a log, signals passed on."""

import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewstep.sweeps.requeue import begin_again
from fewstep.system.signals import Stopped

LOGS = "logs"
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
POLL = 0.2  # s
GRACE = 60.0  # seconds in which a job that was told to stop writes its checkpoint
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec it would be too late
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
        """Run the job whose settings Hydra composed here, to its end; give its exit status and its last words."""
        overrides = list(HydraConfig.get().overrides.task)
        folder = Path(config.outputs)
        log = folder / LOGS / f"{config.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, self.script, *overrides, "hydra.mode=RUN"]
        with gpu_of(folder, self.one_gpu) as environment, log.open("a") as words:
            words.write(f"{STARTED}{shlex.join(command)}\n")
            words.flush()
            status = run_to_its_end(command, environment, words.fileno())
        return {"status": status, "words": last_words(log)}


def run_to_its_end(command: list[str], environment: dict[str, str], output: int) -> int:
    """The exit status of a process that is told to stop when we are, or when we are gone."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, preexec_fn=die_with_parent
    )

    told: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        told.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        while child.poll() is None:  # not wait(): what it holds while it waits would keep a handler from asking
            time.sleep(POLL)
    except BaseException:  # of a signal that the launcher takes, or Ctrl-C
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if told and child.returncode:
        begin_again(child.returncode, before[signal.SIGUSR2])
        if "SUBMITIT_EXECUTOR" not in os.environ:  # it was the whole sweep that was told
            raise Stopped(told[0])
    return child.returncode


def die_with_parent() -> None:
    """Have Linux tell this process to stop when the one that started it is gone, however it went."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def last_words(log: Path) -> str:
    """The last error that the latest attempt said, else its last line."""
    lines: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        lines = [] if line.startswith(STARTED) else [*lines, line.strip()] if line.strip() else lines
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


@contextmanager
def gpu_of(folder: Path, one: bool) -> Iterator[dict[str, str]]:
    """The environment of a job: if it is to have `one` GPU, of this machine's the first that no other job holds."""
    environment = dict(os.environ)
    gpus = gpus_here() if one else []
    held = None
    for gpu in gpus:
        held = (folder / LOGS / f".gpu-{gpu}").open("w")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            continue
        environment["CUDA_VISIBLE_DEVICES"] = gpu
        break
    try:
        yield environment
    finally:
        if held is not None:
            held.close()


def gpus_here() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
