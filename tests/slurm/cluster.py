"""A SLURM of two nodes on this machine, in a folder of its own, started and ended by the tests.

Debian's packages `slurm-wlm munge` have all it needs; nothing outside the folder is written, its ports and socket are
its own. Two partitions: `main`, whose jobs are pre-empted and started again by those of `urgent`.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
NODES = ("one", "two")
GRACE_SECONDS = 20  # between a pre-emption's SIGTERM and its SIGKILL

CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=30
MpiDefault=none
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str | None:
    """What this machine lacks for a SLURM of its own, or None."""
    absent = [program for program in PROGRAMS if which(program) is None]
    return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge" if absent else None


def which(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass(frozen=True)
class Cluster:
    """A running SLURM: `environment` is what its commands and jobs need."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands; give what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (command, done.stderr, self.logs())
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job, by its own names."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def jobs(self) -> list[str]:
        """Numbers of the jobs that wait or run, the parts of an array one by one."""
        return self.run("squeue", "--noheader", "--array", "--format=%i").split()

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))


def until(happened: Callable[[], object], seconds: float, told: Callable[[], object]) -> None:
    """Wait for it; fail with what is `told` of the state of things."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def output(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints; it may fail, as SLURM's do while it starts."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start munged, slurmctld and a slurmd for each node; end them and their jobs."""
    host = socket.gethostname()
    ports = free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    conf, key, munge = folder / "slurm.conf", folder / "munge.key", folder / "munge.socket"
    (folder / "state").mkdir()
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    conf.write_text(CONF.format(folder=folder, host=host, user=user, ports=ports, nodes=nodes, grace=GRACE_SECONDS))
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    environment = dict(os.environ) | {"SLURM_CONF": str(conf)}
    with ExitStack() as running:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", "--num-threads=2",
             f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"],
            ["slurmctld", "-D", "-f", str(conf)],
            *(["slurmd", "-D", "-f", str(conf), "-N", name] for name in NODES),
        ):  # fmt: skip
            running.enter_context(service(command, folder, environment))
            if command[0] == "munged":
                until(munge.exists, 20, lambda: "munged does not start")
        here = Cluster(folder, environment)
        idle = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"]
        until(lambda: output(idle, environment).split() == ["idle"] * len(NODES), 60, here.logs)
        try:
            yield here
        finally:
            for job in here.jobs():
                subprocess.run(["scancel", "--signal=KILL", "--full", job], env=environment, check=False)
                subprocess.run(["scancel", job], env=environment, check=False)
            until(lambda: not here.jobs(), 60, here.logs)


@contextmanager
def service(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    program = which(command[0])
    assert program is not None
    with (folder / "services.log").open("a") as log:
        process = subprocess.Popen([program, *command[1:]], env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
