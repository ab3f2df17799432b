"""The process of one job: its status and last message, signals, a GPU of its own."""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, chdir
from pathlib import Path

import pytest

from fewstep.sweeps import process
from fewstep.sweeps.process import environment_of_job, last_message, run_to_end, visible_gpus
from fewstep.system.signals import Stopped


def test_a_jobs_message_is_of_its_latest_attempt(tmp_path: Path):
    log = tmp_path / "job.log"
    log.write_text("$ python train.py\nerror: the disk is full\nby\n$ python train.py\nall is well\n\n")
    assert last_message(log) == "all is well"
    log.write_text(log.read_text() + "$ python train.py\nerror: w_max is wrong\nwarning: so it was\n")
    assert last_message(log) == "w_max is wrong"


def test_the_status_is_the_jobs(tmp_path: Path):
    with (tmp_path / "log").open("w") as log:
        assert run_to_end([sys.executable, "-c", "exit(3)"], {}, log.fileno()) == 3
        assert (
            run_to_end([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}, log.fileno())
            == -signal.SIGKILL
        )


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_signal_is_passed_on_and_ends_the_sweep_once_the_job_has_ended(tmp_path: Path, ends_well: bool):
    """The job takes its time to write a checkpoint."""
    end = f"time.sleep(0.5), open('saved', 'w'), exit({0 if ends_well else 143})"
    job = f"import signal, time; signal.signal(signal.SIGTERM, lambda *_: ({end})); open('begun', 'w'); time.sleep(60)"

    def interrupt() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with (tmp_path / "log").open("w") as log, pytest.raises(Stopped, match="SIGTERM"), chdir(tmp_path):
        run_to_end([sys.executable, "-c", job], dict(os.environ), log.fileno())
    assert (tmp_path / "saved").exists()


def test_each_job_has_the_first_gpu_that_no_other_has(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(process, "visible_gpus", lambda: ["0", "1"])
    with ExitStack() as first:
        assert first.enter_context(environment_of_job(tmp_path, True))["CUDA_VISIBLE_DEVICES"] == "0"
        with environment_of_job(tmp_path, True) as second:
            assert second["CUDA_VISIBLE_DEVICES"] == "1"
        with environment_of_job(tmp_path, False) as all_of_them:
            assert all_of_them.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
    with environment_of_job(tmp_path, True) as freed:
        assert freed["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(("visible", "gpus"), [("2,3", ["2", "3"]), ("", []), (None, ["0", "1", "2"])])
def test_gpus_are_those_that_this_process_may_use(visible: str | None, gpus: list[str], monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == gpus
