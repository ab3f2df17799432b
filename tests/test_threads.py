"""OpenMP's threads: idle ones are kept while the cores are contended, and a run notes how many it has."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewstep.artifacts.run_folder import THREADS, threads_of_run
from fewstep.system import threads
from fewstep.system.hardware import cores
from fewstep.system.threads import considerate_threads, number_of_threads, seconds_without_core

linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux says how long threads wait")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(threads, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(threads, "HOLD_SECONDS", 0.05)
    for name in threads.OWN_POLICY:
        monkeypatch.delenv(name, raising=False)


def soon(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


@linux
@pytest.mark.skipif(cores() < 2, reason="two threads on one core never spin for long")
def test_idle_threads_are_kept_while_others_need_the_cores(quick):
    contended = threading.Event()
    clock = lambda: time.monotonic() if contended.is_set() else 0.0  # noqa: E731
    running = lambda: len(os.listdir("/proc/self/task"))  # noqa: E731
    with number_of_threads(2):
        product = torch.ones(200, 200) @ torch.ones(200, 200)  # makes the pool that works
        before = running()
        with considerate_threads(clock):
            assert running() == before + 1
            contended.set()
            assert soon(lambda: running() >= before + 1 + 2 * (cores() - 1))
            assert torch.equal(torch.ones(200, 200) @ torch.ones(200, 200), product)
            contended.clear()
            assert soon(lambda: running() == before + 1)
            contended.set()
            assert soon(lambda: running() > before + 1)
        assert soon(lambda: running() == before)


@pytest.mark.parametrize("own", [*threads.OWN_POLICY, "one thread"])
def test_a_policy_of_the_user_stays(own: str, quick, monkeypatch):
    if own != "one thread":
        monkeypatch.setenv(own, "1")
    before = threading.active_count()
    with number_of_threads(1 if own == "one thread" else 2), considerate_threads(time.monotonic):
        assert threading.active_count() == before


@linux
def test_the_time_without_a_core_is_read():
    before = seconds_without_core()
    assert 0 <= before <= seconds_without_core() < 1e6


def test_a_run_goes_on_with_its_threads(tmp_path):
    assert threads_of_run(tmp_path, 2, processes=1, most=4) == 2
    assert threads_of_run(tmp_path, 1, processes=1, most=4) == 2
    assert threads_of_run(tmp_path, 1, processes=1, most=1) == 1, "a machine of fewer cores"
    assert threads_of_run(tmp_path, 2, processes=2, most=4) == 2, "another number of processes"
    assert json.loads((tmp_path / THREADS).read_text()) == {"threads": 2, "processes": 2}


@pytest.mark.parametrize("text", ["", "[2]", '{"threads": "two"}'])
def test_a_damaged_note_is_said(tmp_path, text: str):
    (tmp_path / THREADS).write_text(text)
    with pytest.raises(ValueError, match=r"threads\.json is damaged .* delete it, and the run goes on with 2 threads"):
        threads_of_run(tmp_path, 2, processes=1, most=4)
