"""How soon do help and misspelt settings answer, and in how much memory?

    python benchmarks/startup.py --out benchmarks/results/startup.json

Each command is a process of its own; its memory is what the system counted when it ended. torch is imported here only
after the last one: a process counts the memory of the one that started it.
"""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
FEWSTEP = ("-c", "from fewstep.commands.main import main; main()")
COMMANDS = {
    "fewstep --help": (*FEWSTEP, "--help"),
    "fewstep sample --help": (*FEWSTEP, "sample", "--help"),
    "train.py --help": ("train.py", "--help"),
    "train.py stage.trainnig=1": ("train.py", "stage.trainnig=1"),
    "train.py dataset=digit": ("train.py", "dataset=digit"),
    "import torch": ("-c", "import torch"),
}
COLUMNS = ["command", "seconds", "processor seconds", "MB"]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each command, in turns.")] = 7,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure the commands that need no network, beside an import of torch alone."""
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            measured[name].append(run(arguments))
    rows: list[dict[str, Any]] = [
        {"command": name, "seconds": f"{median(wall):.2f}", "processor seconds": f"{median(cpu):.2f}"}
        | {"MB": round(max(memory)), "rounds": runs}
        for name, runs in measured.items()
        for wall, cpu, memory in [zip(*runs, strict=True)]
    ]
    from measure import report

    report("start: commands that need no network, median of the processes", rows, COLUMNS, out)


def run(arguments: tuple[str, ...]) -> tuple[float, float, float]:
    """Seconds on the wall, seconds of the processor, and megabytes at most, of a process."""
    start = perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, _, usage = os.wait4(process.pid, 0)
    return perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
