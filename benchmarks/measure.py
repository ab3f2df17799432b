"""What the benchmarks share: the machine, ratios measured in turns, and the result as a file and a table."""

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from fewstep.system.files import atomic_write


class Seconds(NamedTuple):
    """Time on the wall and time of the processor, all threads together.

    The first is what a user waits; the second is the fairer ratio on a machine that others use too, with one thread.
    """

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(perf_counter(), process_time())

    def since(self, start: "Seconds") -> "Seconds":
        return Seconds(self.wall - start.wall, self.cpu - start.cpu)


class Spread(NamedTuple):
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


def percent(ours: Sequence[Seconds], theirs: Sequence[Seconds], clock: str) -> str:
    """How much longer ours took than theirs, in turns: the median over the rounds, and the quartiles."""
    ratios = [100 * (getattr(a, clock) / getattr(b, clock) - 1) for a, b in zip(ours, theirs, strict=True)]
    middle, low, high = Spread.of(ratios)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def in_turns(sides: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 8) -> dict[str, list[Seconds]]:
    """The time of every call: one call of each side per round, another first in each, at least `rounds` rounds."""
    names = list(sides)
    times: dict[str, list[Seconds]] = {name: [] for name in names}
    began = Seconds.now()
    while Seconds.now().since(began).wall < seconds or len(times[names[0]]) < rounds:
        names.append(names.pop(0))
        for name in names:
            start = Seconds.now()
            sides[name]()
            times[name].append(Seconds.now().since(start))
    return times


def machine() -> dict[str, Any]:
    """Where and when a result was measured."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def report(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], out: Path | None) -> None:
    """Print `columns` of the rows as a table; write everything to `out`, whole or not at all."""
    facts = machine()
    table = Table(title=title, caption=", ".join(f"{key} {value}" for key, value in facts.items()))
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{row[c]:,}" if isinstance(row[c], int) else str(row[c]) for c in columns))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps({"benchmark": title, "machine": facts, "rows": rows}, indent=2) + "\n")
