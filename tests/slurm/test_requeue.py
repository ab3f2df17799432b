"""What a job does that SLURM has stopped, with a SLURM that says what the test wants."""

import signal
import time
from pathlib import Path

import pytest

from fewstep.sweeps import requeue
from fewstep.sweeps.requeue import begin_again


class Requeued(BaseException):
    """Stands for submitit's handler, which asks SLURM and exits."""


def ask(number: int, frame: object) -> None:
    raise Requeued(number)


def asked_for(status: int) -> list[int]:
    """The signals by which SLURM was asked to start the job again."""
    asked: list[int] = []
    begin_again(status, lambda number, frame: asked.append(number))
    return asked


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A scontrol that knows one job, in the state that the test gives."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def says(line: str, restarted: int = 0) -> None:
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f'#!/bin/sh\ntest "$*" = "--oneliner show job 7" && echo "{line}"\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarted))

    return says


def test_a_job_that_was_stopped_while_it_could_run_is_started_again(slurm):
    slurm("JobId=7 JobName=fewstep JobState=RUNNING Restarts=0 PreemptTime=2026-11-21T09:51:29")
    with pytest.raises(Requeued) as asked:
        begin_again(143, ask)
    assert asked.value.args == (signal.SIGUSR2,)


def test_a_job_that_the_user_cancelled_is_not(slurm):
    slurm("JobId=7 JobState=COMPLETING Restarts=1", restarted=1)
    assert asked_for(143) == []


def test_what_slurm_starts_again_by_itself_leaves_no_result_of_this_attempt(slurm):
    slurm("JobId=7 JobState=COMPLETING Restarts=2", restarted=1)
    with pytest.raises(SystemExit, match="143"):
        begin_again(143, ask)


def test_the_others_of_a_job_of_several_tasks_wait_for_the_first(slurm, monkeypatch):
    monkeypatch.setattr(requeue, "SLURM_WAITS", 0.3)
    slurm("JobId=7 JobState=RUNNING Restarts=0")
    asked: list[int] = []
    start = time.monotonic()
    begin_again(143, lambda number, frame: asked.append(number))
    assert asked == [signal.SIGUSR2]
    assert time.monotonic() - start >= 0.3


def test_without_slurm_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    assert asked_for(143) == []


def test_a_slurm_that_does_not_answer_starts_nothing(slurm):
    slurm("")
    assert asked_for(143) == []
