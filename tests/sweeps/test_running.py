"""Parents before children, failures that end nothing but themselves, each way of launching."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewstep.sweeps.jobs import Job
from fewstep.sweeps.parents import Step
from fewstep.sweeps.running import LaunchMode, Result, Sweep
from fewstep.sweeps.status import DONE, FAILED, FINISHED, HELD_BACK, JobState, Objective

GOOD: Result = {"status": 0, "words": ""}


def outcome(name: str, *after: str, until: str | None = None) -> JobState:
    return JobState(Step(Job(name, (), {}), until, after), Path("nowhere"), [])


def names(outcomes: Sequence[JobState]) -> list[str]:
    return [outcome.step.job.name for outcome in outcomes]


@pytest.fixture
def family() -> Sweep:
    parents = [outcome("teacher", until="teacher"), outcome("guided", "teacher", until="guidance")]
    return Sweep([*parents, outcome("a", "teacher", "guided"), outcome("b", "teacher"), outcome("c")], Objective())


@pytest.mark.parametrize("way", list(LaunchMode))
def test_no_child_is_launched_before_its_parents_are_done(family: Sweep, way: LaunchMode):
    launched: list[str] = []

    def launch(batch: Sequence[JobState]) -> list[Result]:
        for one in batch:
            states = {name: o.state for o in family.outcomes for name in [o.step.job.name]}
            assert all(states[name] == DONE for name in one.step.after)
        launched.extend(names(batch))
        return [GOOD] * len(batch)

    family.run(launch, way, at_once=2)
    assert sorted(launched) == ["a", "b", "c", "guided", "teacher"]
    assert not family.failures


@pytest.mark.parametrize("way", list(LaunchMode))
def test_a_failure_holds_back_its_children_and_nothing_else(family: Sweep, way: LaunchMode, capsys):
    def launch(batch: Sequence[JobState]) -> list[Result]:
        return [{"status": 2, "words": "no such thing"} if n == "guided" else GOOD for n in names(batch)]

    family.run(launch, way, at_once=2)
    assert {o.step.job.name: o.state for o in family.outcomes} == {
        "teacher": DONE, "guided": FAILED, "a": HELD_BACK, "b": DONE, "c": DONE,
    }  # fmt: skip
    family.show()
    said = capsys.readouterr().out
    assert "no such thing" in said
    assert "its parent guided failed" in said


def test_what_is_finished_is_not_launched(family: Sweep):
    for each in family.outcomes[:3]:
        each.state = FINISHED
    launched: list[str] = []
    family.run(lambda batch: [launched.append(batch[0].step.job.name) or GOOD], LaunchMode.EACH, 1)
    assert launched == ["b", "c"]


def test_a_job_that_leaves_nothing_has_failed(tmp_path: Path):
    sweep = Sweep([JobState(Step(Job("a", (), {})), tmp_path, ["quality.json"])], Objective())
    sweep.run(lambda batch: [GOOD], LaunchMode.EACH, 1)
    assert (sweep.outcomes[0].state, sweep.outcomes[0].words) == (FAILED, "it left no quality.json")


def test_threads_wait_for_so_many_jobs_at_a_time_and_for_one_that_the_launcher_drops():
    sweep = Sweep([outcome(f"job{n}") for n in range(6)], Objective())
    running, most, lock = 0, 0, threading.Lock()

    def launch(batch: Sequence[JobState]) -> list[Result]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        if names(batch) == ["job3"]:
            raise RuntimeError("the queue lost it")
        return [GOOD]

    sweep.run(launch, LaunchMode.THREADS, at_once=2)
    assert most == 2
    assert [(o.step.job.name, o.words) for o in sweep.failures] == [("job3", "the queue lost it")]
