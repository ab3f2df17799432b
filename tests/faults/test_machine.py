"""Faults of the machine: a full disk, a clock set back, exhausted memory, killed workers, bad data."""

import errno
import os
import resource
import signal
import subprocess
import threading
from datetime import datetime
from pathlib import Path

import pytest
import torch
from running import TINY, config_of, train_as_typed
from safetensors.torch import load_file
from torch.utils.data import IterableDataset, get_worker_info

from fewstep.artifacts import run_folder as run_folders
from fewstep.artifacts.run_folder import locked, open_run
from fewstep.data import workers
from fewstep.data.batch import Batch
from fewstep.data.digits import DigitsData
from fewstep.training.checkpointing import read_checkpoint

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
SMALL = (*TINY, "stage=teacher", "stage.training.batch_size=64", "trainer.max_images=6400",
         "trainer.log_every_images=64", "trainer.snapshots=0")  # fmt: skip


def folder_of(outputs: Path) -> Path:
    (folder,) = (outputs / "digits" / "teacher").glob("*/")
    return folder


# The disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 600 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "fewstep", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.integration
def test_a_full_disk_is_one_line_and_the_run_resumes_with_more_room(commands, small_disk, tmp_path):
    settings = (*SMALL, "model.network.width=64", "trainer.checkpoint_seconds=0")
    result = commands.train(*settings, f"outputs={small_disk}")
    result.is_one_error("No space left on device", "make room", "run the same command again")
    checkpoints = [path for path in small_disk.rglob("*.ckpt") if path.is_file()]
    steps = [read_checkpoint(path)["global_step"] for path in checkpoints]
    assert not [*small_disk.rglob(".*.tmp")]
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert commands.train(*settings, f"outputs={small_disk}").status == 0
    assert commands.train(*settings, f"outputs={tmp_path / 'large'}").status == 0
    ours, theirs = (load_file(folder_of(at) / "model.safetensors") for at in (small_disk, tmp_path / "large"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert steps == sorted(steps, reverse=True)


@pytest.mark.integration
def test_a_disk_that_becomes_read_only_is_one_line(commands, small_disk, monkeypatch):
    subprocess.run(["mount", "-o", "remount,size=60m,ro", str(small_disk)], check=True)
    result = commands.train(*SMALL, f"outputs={small_disk}")
    result.is_one_error("Read-only file system", str(small_disk))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


# The clock ----------------------------------------------------------------------------------------------------------


def run_of(outputs: Path, seed: int, stage: str = "teacher", name: str | None = None) -> Path:
    with open_run(outputs, "digits", stage, f"seed: {seed}", ["product"], name) as folder:
        (folder.path / "product").touch()
        return folder.path


class Earlier(datetime):
    @classmethod
    def now(cls, tz=None) -> datetime:
        return datetime(2001, 2, 3, 4, 5, 6)


def test_later_runs_sort_later_though_the_clock_was_set_back(tmp_path, monkeypatch):
    made = [run_of(tmp_path, 1)]
    monkeypatch.setattr(run_folders, "datetime", Earlier)
    made += [run_of(tmp_path, seed) for seed in (2, 3)]
    made += [run_of(tmp_path, 4, "guidance")]  # and over the stages of a pipeline, which share a name
    assert [path.name for path in made] == sorted({path.name for path in made})
    assert sorted(made[:3], key=run_folders.made_at) == made[:3]


def test_named_runs_sort_by_the_time_of_their_settings(tmp_path):
    first, named = run_of(tmp_path, 1), run_of(tmp_path, 2, name="zebra")
    os.utime(named / "config.yaml", (0, 0))
    assert sorted([named, first], key=run_folders.made_at) == [named, first]
    os.utime(named / "config.yaml", (2**32, 2**32))
    assert sorted([named, first], key=run_folders.made_at) == [first, named]


@pytest.mark.parametrize("content", ["\0" * 100, "a: [", "- 1", "\xff", ""])
def test_damaged_settings_of_one_run_do_not_stop_another(tmp_path, content):
    damaged = run_of(tmp_path, 1)
    (damaged / "config.yaml").write_bytes(content.encode("latin-1"))
    assert run_of(tmp_path, 1) != damaged
    with pytest.raises(ValueError, match=r"config\.yaml is damaged or not of fewstep"):
        run_of(tmp_path, 2, name=damaged.name)


# Processes ----------------------------------------------------------------------------------------------------------


def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_folder(tmp_path):
    (end_reader, end_writer), (ready_reader, ready_writer) = os.pipe(), os.pipe()
    with locked(tmp_path) as acquired:
        assert acquired
        child = os.fork()
        if not child:
            os.write(ready_writer, b"x")
            os.read(end_reader, 1)
            os._exit(0)
    try:
        os.read(ready_reader, 1)
        with locked(tmp_path) as acquired:
            assert acquired
    finally:
        os.write(end_writer, b"x")
        os.waitpid(child, 0)


class Numbers(IterableDataset):
    """One row of each step from each worker; the first worker kills itself once at step 13."""

    def __init__(self, start: int, stop: int, proof: Path) -> None:
        self.start, self.stop, self.proof = start, stop, proof

    def __iter__(self):
        worker = get_worker_info()
        for step in range(self.start, self.stop):
            if worker.id == 0 and step == 13 and not self.proof.exists():
                self.proof.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield [[step, f"row of {step}"]]


@pytest.mark.integration
def test_a_killed_data_worker_is_replaced_and_no_row_is_lost(tmp_path):
    with pytest.warns(UserWarning, match=r"DataLoader worker .*; new ones read on from step \d+"):
        rows = list(workers.rows_of_steps(lambda step: Numbers(step, 30, tmp_path / "once"), 2, 5, 30))
    assert rows == [[[step, f"row of {step}"]] * 2 for step in range(5, 30)]


def test_workers_that_are_always_killed_are_an_error(monkeypatch):
    def read(*_):
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
        yield

    monkeypatch.setattr(workers, "read", read)
    with pytest.warns(UserWarning, match="new ones"), pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(workers.rows_of_steps(lambda step: Numbers(step, 3, Path()), 2, 0, 3))


def test_an_error_raised_in_a_worker_is_not_retried(monkeypatch):
    def read(*_):
        raise RuntimeError("Caught ValueError in DataLoader worker process 0.")
        yield

    monkeypatch.setattr(workers, "read", read)
    with pytest.raises(RuntimeError, match="Caught ValueError"):
        list(workers.rows_of_steps(lambda step: Numbers(step, 3, Path()), 2, 0, 3))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried\n"),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_memory_that_runs_out_is_one_line(commands, tmp_path, monkeypatch, error):
    def out_of_memory(*_):
        raise error

    monkeypatch.setattr(DigitsData, "rows", out_of_memory)
    result = commands.train(*SMALL, f"outputs={tmp_path}")
    result.is_one_error("memory ran out", "batch_size", "resumes the run")


def limited(*settings: str) -> None:
    """Train with no more memory than is mapped after the start."""
    threading.Timer(0.0, lambda: None).start()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**26, mapped + 2**26))
    train_as_typed(*settings)


@pytest.mark.integration
def test_a_batch_that_exceeds_the_memory_limit_is_one_line(tmp_path):
    """RLIMIT_AS leaves 64 MB."""
    import multiprocessing

    processes = multiprocessing.get_context("forkserver")
    settings = [*SMALL, "stage.training.batch_size=60000", "trainer.max_images=120000", f"outputs={tmp_path / 'o'}"]
    process = processes.Process(target=train_limited, args=(tmp_path / "log", *settings))
    process.start()
    process.join(120)
    lines = (tmp_path / "log").read_text().splitlines()
    assert process.exitcode == 2, lines
    assert lines[-1].startswith("error: "), lines
    assert "memory" in lines[-1], lines
    assert not any("Traceback" in line for line in lines)


def train_limited(log: Path, *settings: str) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    limited(*settings)


# The data -----------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_not_finite_is_named(commands, tmp_path, monkeypatch):
    batch = DigitsData.batch

    def broken(self, step: int) -> Batch:
        x, label = batch(self, step)
        x = x.clone()
        if step == 7:
            x[[3, 5]] = float("nan")
        return Batch(x, label)

    with monkeypatch.context() as patched:
        patched.setattr(DigitsData, "batch", broken)
        patched.setattr(DigitsData, "rows", broken)
        result = commands.train(*SMALL, "trainer.checkpoint_seconds=0", f"outputs={tmp_path}")
    result.is_one_error("batch of step 7", "in 2 of 64 images", "number 3", "fewstep data check", "last.ckpt")
    checkpoint = read_checkpoint(folder_of(tmp_path) / "last.ckpt")
    assert checkpoint["global_step"] == 7
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint["state_dict"].values())
    assert commands.train(*SMALL, "trainer.checkpoint_seconds=0", f"outputs={tmp_path}").status == 0  # repaired
    assert config_of(*SMALL).trainer.max_images == 6400
