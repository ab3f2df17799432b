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
from fewstep.system import load, threads
from fewstep.system.hardware import cores
from fewstep.system.load import LoadOfOthers
from fewstep.system.threads import choose_threads, considerate_threads, number_of_threads, seconds_without_core

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


@pytest.mark.parametrize(
    ("others", "own", "count"), [(0.0, None, 4), (0.4, None, 4), (1.2, None, 3), (9.0, None, 1), (3.0, "4", 4)]
)
def test_the_cores_that_are_left(others: float, own: str | None, count: int, monkeypatch, capsys):
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    with number_of_threads(4):
        choose_threads(others)
        assert torch.get_num_threads() == count
    assert capsys.readouterr().out.startswith(f"{count} of 4 threads: others use" if count < 4 else "")


def test_the_load_of_others_is_measured(tmp_path, monkeypatch):
    """Two cores, one of which has been used by a process that is not this one, and one by one that gives way."""
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2}, raising=False)
    line = "cpu 9 9 9 9\ncpu0 {0} 50 30 900 7 1 2 3 0 0\ncpu1 {0}00 0 0 0 0 0 0 0 0 0\ncpu2 5 {0} 5 5 5 5 5 5 0 0\n"
    load.STAT.write_text(line.format(100))
    before = LoadOfOthers()
    load.STAT.write_text(line.format(100 + 3600 * os.sysconf("SC_CLK_TCK")))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert before.cores() == pytest.approx(1, abs=0.01)
    load.STAT.unlink()
    assert LoadOfOthers().cores() == 0


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


@pytest.mark.parametrize("text", ["", "[2]", '{"threads": "two"}', "[" * 100_000])
def test_a_damaged_note_is_said(tmp_path, text: str):
    (tmp_path / THREADS).write_text(text)
    with pytest.raises(ValueError, match=r"threads\.json is damaged .* delete it, and the run goes on with 2 threads"):
        threads_of_run(tmp_path, 2, processes=1, most=4)
