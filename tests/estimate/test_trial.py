"""Times of methods whose updates are of several kinds, and what is tried."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.estimate import machine as machine_module
from fewstep.estimate.machine import Machine
from fewstep.estimate.shapes import Footprint
from fewstep.estimate.trial import REPEATS, UpdateTimes

ALONE = Machine("cpu", processes=1, here=1, sharded=False, rate=1e6)


class Alternating:
    """A method whose student moves in every third update."""

    def moving(self, step: int) -> tuple[str, ...]:
        return ("fake",) if step % 3 else ("student", "fake")


def test_updates_of_two_kinds_count_as_often_as_they_come() -> None:
    times, ends = UpdateTimes(Alternating(), "cpu"), 0.0  # pyright: ignore[reportArgumentType]
    assert times.least == 1 + REPEATS  # the first update, and both kinds after it
    for step in range(10):
        ends += 100 if step == 0 else 1 if step % 3 else 4
        times.ends.append(ends)
    assert times.seconds == pytest.approx(sum(1 if step % 3 else 4 for step in range(1, 64)) / 63)


def test_it_ends_when_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("fewstep.estimate.trial.perf_counter", lambda: next(clock))
    times, trainer = UpdateTimes(Alternating(), "cpu"), SimpleNamespace(should_stop=False)  # pyright: ignore
    given: Any = (trainer, None, None, None, 0)
    for _ in range(REPEATS):
        times.on_train_batch_end(*given)
        assert not trainer.should_stop
    times.on_train_batch_end(*given)
    assert trainer.should_stop


def test_trials_keep_to_free_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "free_memory", lambda device: 1000)
    assert ALONE.to_try(64, flops=1) == 64
    assert ALONE.to_try(64, flops=1, bytes_each=20, fixed=100) == 32  # 0.8 * 1000 - 100 for 32 examples
    assert ALONE.to_try(64, flops=1, fixed=801) == 0
    assert ALONE.to_try(64, flops=0.2 * 6 * 1e6 / 32) == 32  # six seconds at a fifth of the rate
    assert ALONE.to_try(64, flops=1e9) == 0


def test_several_processes_share_rows_cores_and_where_they_shard_weights() -> None:
    two = replace(ALONE, processes=2, here=2)
    assert (two.rows(8), two.part(5), two.slowdown) == (4, 3, 2)
    assert replace(two, device="cuda").slowdown == 1
    found = Footprint(parameters=25, model_bytes=100, checkpoint_bytes=300, at_rest=600, kept=1, flops=1, evaluations=1)
    assert (two.unsharded(found), replace(two, sharded=True).unsharded(found)) == (0, 300)
    with pytest.raises(ValueError, match="batch_size=7 for 2"):
        two.rows(7)
