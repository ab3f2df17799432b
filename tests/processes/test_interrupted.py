"""Runs of several processes that end early: exit statuses, messages, how soon they end, and how they resume."""

import time
from pathlib import Path

import pytest
from launching import run_processes, start_processes, wait_for
from running import TINY
from test_same_numbers import BATCH, LEARNS, STEPS, is_close

from fewstep.training.checkpointing import read_checkpoint

pytest_plugins = ("running",)
pytestmark = pytest.mark.slow

TEACHER = [
    *TINY,
    "stage=teacher",
    "name=run",
    f"trainer.max_images={BATCH * STEPS}",
    f"trainer.log_every_images={3 * BATCH}",
    *(f"stage.training.{setting}" for setting in LEARNS),
]
DDP, FSDP = "trainer.strategy=ddp", "trainer.strategy=fsdp"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert run_processes(1, outputs / "logs", *TEACHER, f"outputs={outputs / 'out'}").statuses == [0]
    return outputs / "out"


@pytest.mark.parametrize(
    "launches",
    [[(1, DDP), (2, DDP), (4, DDP), (1, DDP)], [(2, FSDP), (4, FSDP), (2, DDP), (1, FSDP)]],
    ids=["ddp", "fsdp"],
)
def test_it_resumes_with_another_number_of_processes(undisturbed, tmp_path, launches):
    """Sharded checkpoints resume unsharded runs, and the other way round; a stop is printed once."""
    out = tmp_path / "out"
    for number, (count, strategy) in enumerate(launches):
        stop = None if number == len(launches) - 1 else (3 * number + 3, -1, "stop")
        run = run_processes(count, tmp_path / f"logs{number}", *TEACHER, strategy, f"outputs={out}", fault=stop)
        if stop is None:
            assert run.statuses == [0] * count, run
        else:
            assert run.statuses == [128 + 15] * count, run
            assert "".join(run.printed).count("stopped by SIGTERM") == 1
            assert read_checkpoint(out / "digits/teacher/run/last.ckpt")["global_step"] == stop[0]
    for shards in out.rglob("*.shards"):
        for file in shards.iterdir():
            file.unlink()
        shards.rmdir()
    for leftover in ("previous.ckpt", "last.ckpt"):
        for root in (out, undisturbed):
            for file in root.rglob(leftover):
                file.unlink()
    is_close(out, undisturbed)


def test_a_killed_process_takes_the_others_down(tmp_path):
    begun = time.monotonic()
    run = run_processes(2, tmp_path / "logs", *TEACHER, DDP, f"outputs={tmp_path / 'out'}", fault=(5, 1, "kill"))
    assert run.statuses[1] == -9
    assert run.statuses[0] == 1
    assert (
        run.printed[0]
        .splitlines()[-1]
        .startswith("rank 0: error: another process of this run ended without an error message")
    )
    assert time.monotonic() - begun < 60


def test_a_process_that_fails_prints_its_error(tmp_path):
    run = run_processes(2, tmp_path / "logs", *TEACHER, DDP, f"outputs={tmp_path / 'out'}", fault=(5, 1, "fail"))
    assert run.statuses == [1, 1]
    assert run.printed[1].splitlines()[-1] == "rank 1: error: a cable came loose"
    assert "error" not in run.printed[0]


@pytest.mark.parametrize("strategy", [DDP, FSDP])
def test_a_nan_in_one_process_is_found_and_printed_once(tmp_path, strategy):
    outputs = f"outputs={tmp_path / 'out'}"
    run = run_processes(2, tmp_path / "logs", *TEACHER, strategy, outputs, fault=(5, 1, "nan"))
    assert run.statuses == [2, 2], run
    assert run.printed[1] == ""
    error = run.printed[0].splitlines()[-1]
    assert error.startswith("error: the loss must stay finite, got nan")
    assert "stage teacher at step 5, t = " in error


def test_users_errors_are_printed_once(tmp_path):
    outputs = f"outputs={tmp_path / 'out'}"
    for setting, *words in (
        ("stage.training.batch_size=33", "a batch must divide over the processes", "33 images for 2"),
        ("stage.label_dropout=2", "label_dropout"),
        ("trainer.snapshot_images=1", "trainer.snapshot_images=1 for 2 processes"),
        ("recipe=nothing", "recipe"),
        ("stage.training.imagess=3", "imagess"),
    ):
        run = run_processes(2, tmp_path / "logs", *TEACHER, DDP, outputs, setting)
        assert run.statuses == [2, 2], run
        assert run.printed[1] == "", run
        error = run.printed[0].splitlines()[-1]
        assert error.startswith("error: "), run
        assert all(word in error for word in words), error


def test_a_folder_locked_by_another_run_is_no_traceback(tmp_path):
    outputs = f"outputs={tmp_path / 'out'}"
    slow = ("trainer.max_images=20000", "trainer.checkpoint_seconds=0")
    first = start_processes(1, tmp_path / "first", *TEACHER, *slow, outputs)
    try:
        while not (tmp_path / "out/digits/teacher/run/last.ckpt").exists():
            assert first[0].is_alive()
            time.sleep(0.05)
        run = run_processes(2, tmp_path / "logs", *TEACHER, *slow, DDP, outputs)
        assert run.statuses == [2, 2], run
        assert "is being written by another process" in run.printed[0]
        assert run.printed[1] == ""
    finally:
        for process in first:
            process.terminate()
        wait_for(first, tmp_path / "first")
