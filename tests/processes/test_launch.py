"""Launching processes, dividing rows over them, and what is refused before any is started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from running import ROOT, TINY

from fewstep.data.batches import ImagesInMemory
from fewstep.distributed import launch
from fewstep.distributed.collectives import local_rows, local_slice
from fewstep.distributed.launch import exit_status, is_worker_process, launch_workers
from fewstep.training.settings import require_gpus

pytest_plugins = ("running",)

SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_JOB_ID": "41234",
    "SLURM_STEP_ID": "0",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without a launcher's variables."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "RANK", "WORLD", "MASTER"))}
    monkeypatch.setattr(os, "environ", kept)
    return kept


def test_variables_of_srun_become_those_of_torchrun(environment):
    environment |= SRUN
    assert is_worker_process()
    assert [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == [
        "3",
        "4",
        "1",
        "2",
    ]
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("node07", "16234")


def test_a_job_of_one_task_is_not_distributed(environment):
    environment |= SRUN | {"SLURM_STEP_NUM_TASKS": "1"}
    assert not is_worker_process()


def test_variables_of_torchrun_are_left_as_they_are(environment):
    environment |= SRUN | {"RANK": "0", "WORLD_SIZE": "2"}
    assert is_worker_process()
    assert environment["RANK"] == "0"


def test_shares_are_even_and_of_all(environment):
    for count in (1, 2, 3, 4):
        for total in (4, 7, 2000):
            shares = []
            for rank in range(count):
                environment |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
                shares.append(local_slice(total))
            assert [n for share in shares for n in range(total)[share]] == list(range(total))
            sizes = [share.stop - share.start for share in shares]
            assert max(sizes) - min(sizes) <= 1


def test_rows_are_in_the_order_of_the_ranks(environment):
    environment |= {"RANK": "1", "WORLD_SIZE": "2"}
    assert local_rows(torch.arange(6)).tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match=r"a batch must divide over the processes, got 5 images for 2"):
        local_rows(torch.arange(5))


def test_more_processes_than_gpus_are_refused():
    require_gpus(2, None)
    require_gpus(2, 2)
    with pytest.raises(ValueError, match=r"got 4 for 2 GPUs .* trainer.devices"):
        require_gpus(4, 2)


def test_exit_statuses(capsys):
    assert exit_status({0: -15, 1: -9}) == 128 + 9  # the launcher ended the first after the second had been killed
    assert "rank 1 was ended by SIGKILL (is there enough memory?)" in capsys.readouterr().err
    assert exit_status({0: 1, 1: 2}) == 2
    assert capsys.readouterr().err == ""
    assert exit_status({0: -11}) == 128 + 11
    assert "SIGSEGV" in capsys.readouterr().err


def test_several_machines_are_not_started_from_here():
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2 machines are started by torchrun"):
        launch_workers("train.py", [], 2, num_nodes=2)


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("trainer.devices=0", "trainer.devices"),
        ("trainer.devices=two", "trainer.devices"),
        ("trainer.strategy=pipeline", "trainer.strategy"),
        ("trainer.num_nodes=2", "torchrun"),
    ],
)
def test_bad_numbers_of_processes_are_one_line(commands, tmp_path, setting, word):
    commands.train(*TINY, "stage=teacher", f"outputs={tmp_path}", setting).is_one_error(word)
    assert not list(tmp_path.iterdir())


def test_devices_are_started_with_the_same_command(commands, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(launch, "launch_workers", lambda *call: calls.append(call) or 7)
    settings = (*TINY, "trainer.devices=3", f"outputs={tmp_path}")
    assert commands.train(*settings).status == 7
    assert calls == [(str(ROOT / "train.py"), list(settings), 3, 1)]


LONG = ["stage=teacher", "trainer.max_images=400000", "trainer.checkpoint_seconds=0", "name=run"]


def begin(outputs: Path, *command: str) -> subprocess.Popen[str]:
    """A run of several processes that has written a checkpoint."""
    settings = [*TINY, *LONG, "trainer.strategy=ddp", "stage.training.batch_size=32", f"outputs={outputs}"]
    run = subprocess.Popen(
        [sys.executable, *command, *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (outputs / "digits/teacher/run/last.ckpt").exists():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return run


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


@pytest.mark.integration
def test_a_killed_process_ends_the_run_within_a_minute(tmp_path):
    run = begin(tmp_path, "train.py", "trainer.devices=2")
    victim = next(pid for pid in children(run.pid) if b"RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
    begun = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _, printed = run.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert run.returncode == 128 + 9
    assert "error: rank 1 was ended by SIGKILL" in printed
    assert "Traceback" not in printed


@pytest.mark.integration
@pytest.mark.parametrize(
    "command",
    [["train.py", "trainer.devices=2"], ["-m", "torch.distributed.run", "--nproc-per-node=2", "train.py"]],
    ids=["train.py", "torchrun"],
)
def test_a_signal_reaches_every_process_and_the_run_is_saved(tmp_path, command):
    run = begin(tmp_path, *command)
    run.terminate()
    _, printed = run.communicate(timeout=60)
    assert printed.count("stopped by SIGTERM at step ") == 1, printed
    assert run.returncode != 0
    assert "error: " not in printed


def test_a_process_reads_its_rows_of_a_batch_alone(environment):
    images = torch.randint(0, 256, (40, 1, 2, 2), dtype=torch.uint8)
    data = ImagesInMemory(images=images, labels=torch.arange(40) % 3, batch_size=12, stream="0/teacher", flip=True)
    for step in (0, 3, 7):  # the fourth runs into the next epoch
        whole, shares = data.batch(step), []
        for rank in range(3):
            environment |= {"RANK": str(rank), "WORLD_SIZE": "3"}
            shares.append(data.rows(step))
        for part in ("x", "label"):
            assert torch.equal(torch.cat([getattr(share, part) for share in shares]), getattr(whole, part))
