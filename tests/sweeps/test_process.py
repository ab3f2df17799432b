"""The process of one job: its status and words, a GPU of its own."""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from fewstep.sweeps import process
from fewstep.sweeps.process import LOGS, gpu_of, gpus_here, last_words, run_to_its_end


def test_a_jobs_words_are_those_of_its_latest_attempt(tmp_path: Path):
    log = tmp_path / "job.log"
    log.write_text("$ python train.py\nerror: the disk is full\nby\n$ python train.py\nall is well\n\n")
    assert last_words(log) == "all is well"
    log.write_text(log.read_text() + "$ python train.py\nerror: w_max is wrong\nwarning: so it was\n")
    assert last_words(log) == "w_max is wrong"


def test_the_status_is_the_jobs(tmp_path: Path):
    with (tmp_path / "log").open("w") as log:
        assert run_to_its_end([sys.executable, "-c", "exit(3)"], {}, log.fileno()) == 3
        assert (
            run_to_its_end([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}, log.fileno())
            == -signal.SIGKILL
        )


def test_each_job_has_the_first_gpu_that_no_other_holds(tmp_path: Path, monkeypatch):
    (tmp_path / LOGS).mkdir()
    monkeypatch.setattr(process, "gpus_here", lambda: ["0", "1"])
    with ExitStack() as first:
        assert first.enter_context(gpu_of(tmp_path, True))["CUDA_VISIBLE_DEVICES"] == "0"
        with gpu_of(tmp_path, True) as second:
            assert second["CUDA_VISIBLE_DEVICES"] == "1"
        with gpu_of(tmp_path, False) as all_of_them:
            assert all_of_them.get("CUDA_VISIBLE_DEVICES") == process.os.environ.get("CUDA_VISIBLE_DEVICES")
    with gpu_of(tmp_path, True) as freed:
        assert freed["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(("visible", "gpus"), [("2,3", ["2", "3"]), ("", [])])
def test_gpus_are_those_that_this_process_may_use(visible: str, gpus: list[str], monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_here() == gpus
