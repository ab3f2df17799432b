"""From what was measured to what is needed, by hand; and what is said where it does not fit."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fewstep.estimate.attempts import Room
from fewstep.estimate.footprint import Footprint
from fewstep.estimate.forecast import Forecast, Machine, Needs, estimated, scaled
from fewstep.estimate.request import Measured
from fewstep.estimate.table import size, summary, warnings_of
from fewstep.estimate.work import Leg
from fewstep.system.durations import duration
from fewstep.system.hardware import GIB

LEG = Leg("progressive", 4, 1000, 10, 100, 2, 4, 1, 0, 4, averaged=False)
SHAPES = Footprint(parameters=25, weight_bytes=100, fixed=0, kept=20, flops=1000)
FOUND = Measured("progressive", 10, 5000, 0, 3.0, 0.5, 7.0, 0.0, 25, 100, 300, 30)
ALONE = Machine("cpu", 1, 1, "auto", Room(10_000, 1000, 1e6))
SETUP = cast(Any, SimpleNamespace(settings=SimpleNamespace(snapshot_images=5)))


def test_time_is_that_of_updates_snapshots_and_the_rest() -> None:
    found = scaled(LEG, FOUND, SHAPES, ALONE, SETUP, 0.01)
    # 100 updates of half a second, two snapshots of 7 s and three more steps of five images, and what is around
    assert found.seconds == pytest.approx(3 + 100 * 0.5 + 2 * (7 + 3 * 5 * 0.01))
    assert found.memory == 5000
    assert found.disk == 100 + 2 * 30 + 2 * 300


def test_what_was_tried_with_less_is_scaled() -> None:
    found = scaled(LEG, replace(FOUND, rows=5), SHAPES, ALONE, SETUP, 0.01)
    assert found.seconds_per_update == pytest.approx(1.0)
    assert found.memory == 5000 + round(1.15 * 5 * 20)
    assert found.how == "scaled"


def test_several_processes_share_rows_and_cores() -> None:
    two = replace(ALONE, processes=2, here=2, strategy="ddp")
    found = scaled(LEG, replace(FOUND, rows=5), SHAPES, two, SETUP, 0.01)
    assert found.memory == 5000 + 100  # the gradients once more
    assert found.seconds_per_update == pytest.approx(1.0)  # two trials at once on the same cores
    sharded = scaled(LEG, replace(FOUND, rows=5), SHAPES, replace(two, strategy="fsdp"), SETUP, 0.01)
    assert sharded.memory == 5000 - 5 * 100 // 2  # student, gradient, two moments and teacher, half of each


def test_what_was_not_tried_is_estimated() -> None:
    found = estimated(LEG, SHAPES, ALONE)
    assert found.seconds == pytest.approx(100 * 5 * 10 * 1000 / 1e6)
    assert found.memory == 1000 + 5 * 100 + round(1.15 * 10 * 20)
    assert found.disk == 100 + 2 * 300


def test_trials_keep_to_what_is_free() -> None:
    room = Room(memory=3000, base=1000, rate=1e9)
    assert room.rows(SHAPES, "progressive", 16, averaged=False) == 16
    assert room.rows(SHAPES, "progressive", 64, averaged=False) == 32  # 1000 + 500 + 1.15 * 20 * 32 <= 0.8 * 3000
    assert replace(room, memory=1800).rows(SHAPES, "progressive", 64, averaged=False) == 0
    assert replace(room, rate=1e3).rows(SHAPES, "progressive", 16, averaged=False) == 0  # it would take minutes
    assert room.images(SHAPES, 1, 10) == 10


def forecast(*lines: Needs, processes: int = 1) -> Forecast:
    machine = replace(ALONE, processes=processes, here=processes)
    return Forecast("stage=teacher", machine, lines, 4 * GIB, 0, 10 * GIB, ("a note",))


def test_warnings_say_what_does_not_fit() -> None:
    small = Needs("teacher", "measured", 3 * GIB, 0, 60.0, GIB, GIB)
    assert warnings_of(forecast(small), Path("outputs")) == []
    (memory,) = warnings_of(forecast(small, processes=2), Path("outputs"))
    assert "6.00 GiB of memory will not fit into 4.00 GiB" in memory
    (disk,) = warnings_of(forecast(replace(small, disk=10 * GIB)), Path("outputs"))
    assert "11.0 GiB of disk will not fit into 10.0 GiB at outputs" in disk


def test_the_sums() -> None:
    one, two = Needs("a", "measured", 5, 0, 60.0, 100, 10), Needs("b", "estimated", None, 0, 40.0, 200, 50)
    found = forecast(one, two)
    assert (found.seconds, found.memory, found.disk) == (100.0, 5, 350)
    assert any(line.startswith("time: at least 1 min 40 s") for line in summary(found, Path("outputs")))
    assert "note: a note" in summary(found, Path("outputs"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0084, "8.4 ms"), (35, "35 s"), (440, "7 min 20 s"), (11100, "3 h 5 min"), (12 * 86400, "12 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(3000, "3 KiB"), (820 * 2**20, "820 MiB"), (1.31 * GIB, "1.31 GiB")])
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
