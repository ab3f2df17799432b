"""Totals of an estimate, what is printed beside them, and what is said where it does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.estimate.table import Estimate, Row, size
from fewstep.system.durations import duration
from fewstep.system.hardware import GIB

SMALL = Row("teacher", "measured", 3 * GIB, 0, 60.0, disk=GIB, checkpoint=GIB)


def estimate(*rows: Row, processes: int = 1) -> Estimate:
    return Estimate("stage=teacher", processes, rows, 4 * GIB, 0, 10 * GIB, Path("outputs"), ("a note",))


def test_what_does_not_fit_is_said_with_what_to_do() -> None:
    assert estimate(SMALL).warnings == []
    (memory,) = estimate(SMALL, processes=2).warnings
    assert "6.00 GiB of memory will not fit into 4.00 GiB; lower stage.training.batch_size" in memory
    (disk,) = estimate(replace(SMALL, disk=10 * GIB)).warnings
    assert "12.0 GiB of disk will not fit into 10.0 GiB; choose outputs=PATH" in disk
    (gpu,) = estimate(replace(SMALL, device_memory=GIB)).warnings
    assert "GPU memory" in gpu


def test_totals_are_sums_of_time_and_disk_and_the_largest_memory() -> None:
    one = Row("a", "measured", 5, 0, 60.0, disk=100, checkpoint=10)
    two = Row("b", "estimated", 7, 0, 40.0, disk=200, checkpoint=50)
    found = estimate(one, two)
    assert (found.seconds, found.needs["memory"][0], found.needs["disk"][0]) == (100.0, 7, 300 + 2 * 50)
    assert any(line.startswith("time: at least 1 min 40 s") for line in found.lines)
    assert "note: a note" in found.lines
    assert any(line.startswith(">") for line in found.lines)
    assert not any(line.startswith((">", "~")) for line in estimate(one).lines)
    assert any(line.startswith("~") for line in estimate(replace(one, how="scaled")).lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0084, "8.4 ms"), (35, "35 s"), (440, "7 min 20 s"), (11100, "3 h 5 min"), (12 * 86400, "12 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(3000, "3 KiB"), (820 * 2**20, "820 MiB"), (1.31 * GIB, "1.31 GiB")])
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
