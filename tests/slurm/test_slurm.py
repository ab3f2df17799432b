"""A real SLURM of two nodes: a sweep whose jobs are pre-empted, and one run on both nodes."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from cluster import Cluster, cluster, free_ports, missing, until
from running import ROOT, run_as_composed
from safetensors.torch import load_file
from test_resume import rows_of

from fewstep.training.checkpointing import read_checkpoint

pytest_plugins = ("running",)
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.usefixtures("as_users_run"),
]

TRAIN = str(ROOT / "train.py")
BATCH, STEPS = 50, 1500
TRAINING = [
    "stage=guidance",
    "dataset=mixture",
    "teacher=exact",
    "trainer.snapshots=0",
    "logger=csv",
    f"stage.training.batch_size={BATCH}",
    "stage.training.warmup_images=100",
    f"trainer.max_images={BATCH * STEPS}",
    f"trainer.log_every_images={5 * BATCH}",
]
SWEEP = [
    *TRAINING,
    "trainer=debug",
    "seed=0,1",
    "launcher=slurm",
    "name=swept",
    "hydra.launcher.partition=main",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as here:
        yield here


@contextmanager
def started(slurm: Cluster, log: Path, *command: str) -> Iterator[subprocess.Popen]:
    """The command as a process, its words in `log`; ended with the test."""
    with log.open("w") as words:
        process = subprocess.Popen(command, env=slurm.environment, cwd=ROOT, stdout=words, stderr=words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def undisturbed(outputs: Path, *settings: str) -> Path:
    """The folder of the same run made here, by one process, in one go."""
    run_as_composed(*TRAINING, *settings, f"outputs={outputs}", "name=run")
    return outputs / "mixture" / "guidance" / "run"


def trains(folder: Path) -> bool:
    """Whether it has come some steps far."""
    return (folder / "metrics.csv").is_file() and len(rows_of(folder / "metrics.csv")) > 3


def job_of(*words: str) -> str:
    """The number of SLURM's job in which train.py runs with these words; empty if there is none yet."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline()[1:2] == [TRAIN] and all(word in process.cmdline() for word in words):
                return process.environ().get("SLURM_JOB_ID", "")
    return ""


def assert_equal(folder: Path, expected: Path) -> None:
    """The same weights to the last bit, and the same rows of metrics.csv but for the clock's."""
    tensors, others = (load_file(each / "model.safetensors") for each in (folder, expected))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert rows_of(folder / "metrics.csv") == rows_of(expected / "metrics.csv")


def stops(log: Path) -> list[tuple[str, int]]:
    """By what signal and at which step a job was stopped, as its log says."""
    found = re.findall(r"stopped by (\w+) at step (\d+) of", log.read_text())
    return [(name, int(step)) for name, step in found]


def test_jobs_that_are_stopped_by_slurm_end_as_if_nothing_had_happened(slurm: Cluster, tmp_path: Path):
    """One is told as before a time-out, one is cancelled by the user, started again by hand and pre-empted."""
    sweep = tmp_path / "sweeps" / "swept"
    folders = {seed: sweep / "mixture" / "guidance" / f"seed={seed}" for seed in (0, 1)}
    logs = {seed: sweep / "logs" / f"seed={seed}.log" for seed in (0, 1)}
    line = [sys.executable, TRAIN, "--multirun", *SWEEP, f"outputs={tmp_path}"]

    with started(slurm, tmp_path / "first.txt", *line) as first:
        until(
            lambda: first.poll() is not None or all(map(trains, folders.values())),
            120,
            (tmp_path / "first.txt").read_text,
        )
        warned, cancelled = (job_of(f"name='seed={seed}'") for seed in (0, 1))
        slurm.run("scancel", "--signal=USR2", warned)
        slurm.run("scancel", cancelled)
        assert first.wait(150) == 1, (tmp_path / "first.txt").read_text()
    assert slurm.job(warned)["Restarts"] == "1"
    assert slurm.job(warned)["JobState"] == "COMPLETED"
    ((name, step),) = stops(logs[0])
    assert (name, 0 < step < STEPS) == ("SIGUSR2", True)
    assert slurm.job(cancelled)["JobState"] == "CANCELLED"
    assert slurm.job(cancelled)["Restarts"] == "0"
    ((name, step),) = stops(logs[1])
    assert name == "SIGTERM"
    assert read_checkpoint(folders[1] / "last.ckpt")["global_step"] == step < STEPS
    said = (tmp_path / "first.txt").read_text()
    assert "seed=0: done" in said
    assert "seed=1: failed" in said
    assert "1 of 2 failed; the same line runs what is missing" in said

    before = logs[0].read_text()
    with started(slurm, tmp_path / "second.txt", *line) as second:
        until(lambda: job_of("name='seed=1'"), 60, (tmp_path / "second.txt").read_text)
        preempted = job_of("name='seed=1'")
        until(lambda: len(rows_of(folders[1] / "metrics.csv")) > 1 + step // 5, 60, logs[1].read_text)
        slurm.run("sbatch", "--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
        assert second.wait(150) == 0, (tmp_path / "second.txt").read_text()
    assert slurm.job(preempted)["Restarts"] == "1"
    assert [name for name, _ in stops(logs[1])] == ["SIGTERM"] * 2
    assert step < stops(logs[1])[1][1] < STEPS
    assert logs[0].read_text() == before  # what was finished was let be

    for seed, folder in folders.items():
        assert_equal(folder, undisturbed(tmp_path / f"undisturbed-{seed}", "trainer=debug", f"seed={seed}"))


def test_a_run_on_two_nodes_stops_on_both_and_goes_on(slurm: Cluster, tmp_path: Path):
    """Started by srun, a process on each node: as one process would have done it, to rounding."""
    settings = ["trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2", "trainer.toy=true"]
    run_line = [TRAIN, *TRAINING, *settings, f"outputs={tmp_path}", "name=run"]
    # The nodes' names are SLURM's alone here; where they are known to the machines, nobody has to say this.
    meet = f"--export=ALL,MASTER_ADDR=127.0.0.1,MASTER_PORT={free_ports(1)[0]}"
    command = [
        "srun",
        meet,
        "--partition=main",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--mem=1G",
        sys.executable,
        *run_line,
    ]
    folder = tmp_path / "mixture" / "guidance" / "run"
    with started(slurm, tmp_path / "first.txt", *command) as first:
        until(lambda: first.poll() is not None or trains(folder), 120, (tmp_path / "first.txt").read_text)
        slurm.run("scancel", "--signal=USR1", job_of("name=run"))
        assert first.wait(60) == 128 + signal.SIGUSR1, (tmp_path / "first.txt").read_text()
    ((name, step),) = stops(tmp_path / "first.txt")  # said once
    assert name == "SIGUSR1"
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == step < STEPS
    with started(slurm, tmp_path / "second.txt", *command) as second:
        assert second.wait(120) == 0, (tmp_path / "second.txt").read_text()
    expected = undisturbed(tmp_path / "alone", "trainer=cpu", "trainer.toy=true")
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, expected))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
