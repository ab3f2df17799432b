"""Parents before children, failures that end nothing but themselves, each way of launching."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fewstep.sweeps.jobs import Job
from fewstep.sweeps.objective import Objective
from fewstep.sweeps.running import Launch, Result, Sweep
from fewstep.sweeps.status import DONE, FAILED, FINISHED, SKIPPED, JobState

GOOD: Result = {"status": 0, "message": ""}
WAYS = pytest.mark.parametrize(
    "run",
    [
        lambda sweep, launch: sweep.run(launch, one_by_one=True),
        lambda sweep, launch: sweep.run(launch, one_by_one=False),
        lambda sweep, launch: sweep.run_in_threads(launch, at_once=2),
    ],
    ids=["one by one", "together", "threads"],
)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., JobState]:
    """Makes jobs that leave all that they should."""

    def made(name: str, parent: str = "", stages: tuple[str, ...] = (), products: Sequence[str] = ()) -> JobState:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").touch()
        (folder / "products.json").write_text(json.dumps(products))
        return JobState(Job(name, (), {}, stages, parent), folder)

    return made


def names(states: Sequence[JobState]) -> list[str]:
    return [state.job.name for state in states]


@pytest.fixture
def family(job: Callable[..., JobState]) -> Sweep:
    parents = [job("teacher", stages=("teacher",)), job("guided", "teacher", ("guidance",))]
    return Sweep([*parents, job("a", "guided"), job("b", "teacher"), job("c")], Objective())


@WAYS
def test_no_child_is_launched_before_its_parents_are_done(family: Sweep, run: Callable[[Sweep, Launch], None]):
    launched: list[str] = []

    def launch(batch: Sequence[JobState]) -> list[Result]:
        states = {state.job.name: state.state for state in family.states}
        assert all(states[each.job.parent] == DONE for each in batch if each.job.parent)
        launched.extend(names(batch))
        return [GOOD] * len(batch)

    run(family, launch)
    assert sorted(launched) == ["a", "b", "c", "guided", "teacher"]
    assert not family.failures


@WAYS
def test_the_children_of_a_failure_are_skipped_and_nothing_else(
    family: Sweep, run: Callable[[Sweep, Launch], None], capsys
):
    def launch(batch: Sequence[JobState]) -> list[Result]:
        return [{"status": 2, "message": "no such thing"} if n == "guided" else GOOD for n in names(batch)]

    run(family, launch)
    assert {o.job.name: o.state for o in family.states} == {
        "teacher": DONE, "guided": FAILED, "a": SKIPPED, "b": DONE, "c": DONE,
    }  # fmt: skip
    family.show()
    out = capsys.readouterr().out
    assert "no such thing" in out
    assert "its parent guided failed" in out


def test_what_is_finished_is_not_launched(family: Sweep):
    for each in family.states[:3]:
        each.state = FINISHED
    launched: list[str] = []
    family.run(lambda batch: [launched.append(batch[0].job.name) or GOOD], one_by_one=True)
    assert launched == ["b", "c"]


def test_a_job_that_leaves_nothing_has_failed(job: Callable[..., JobState]):
    sweep = Sweep([job("a", products=["quality.json"])], Objective())
    sweep.run(lambda batch: [GOOD], one_by_one=True)
    assert (sweep.states[0].state, sweep.states[0].message) == (FAILED, "it left no quality.json")


def test_threads_wait_for_so_many_jobs_at_a_time_and_for_one_that_the_launcher_drops(job: Callable[..., JobState]):
    sweep = Sweep([job(f"job{n}") for n in range(6)], Objective())
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

    sweep.run_in_threads(launch, at_once=2)
    assert most == 2
    assert [(o.job.name, o.message) for o in sweep.failures] == [("job3", "the queue lost it")]
