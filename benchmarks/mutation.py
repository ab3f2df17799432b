"""Which faults do the tests notice? A random sample of the mutants of diffusion/ and methods/, by mutmut.

    pip install mutmut==3.8.1                                    # not among the requirements; set up in pyproject.toml
    mutmut run nothing         # generates the mutants and times the tests, then says that none has this name
    python benchmarks/mutation.py draw --count 150 --seed 1 > drawn
    xargs -d "\\n" --arg-file drawn mutmut run --max-children 1
    python benchmarks/mutation.py report drawn --out benchmarks/results/mutation.json

A mutant is the code with one small change: another operator, constant or argument. It is killed where a fast test of
tests/diffusion or tests/methods fails. Of the share killed stands Wilson's interval at 95 %: the sample is one of all.
"""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from measure import machine

from fewstep.evaluation.intervals import share_interval
from fewstep.system.files import write_json

MUTANTS = Path("mutants/src")
STATUS = {0: "survived", 1: "killed", 3: "killed", 5: "no tests", 33: "no tests", 24: "timeout", 36: "timeout"}
DETECTED = ("killed", "timeout")

app = typer.Typer(add_completion=False, help=__doc__)


def mutants() -> dict[str, int | None]:
    """Names and what pytest ended with, None for those that were not run."""
    found: dict[str, int | None] = {}
    for path in sorted(MUTANTS.rglob("*.meta")):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    if not found:
        raise FileNotFoundError(f"there are no mutants below {MUTANTS}; generate them with `mutmut run nothing`")
    return found


@app.command()
def draw(count: Annotated[int, typer.Option()], seed: Annotated[int, typer.Option()]) -> None:
    """Print the names of a random sample of the mutants, those of code without a test among them."""
    print(*random.Random(seed).sample(sorted(mutants()), count), sep="\n")


@app.command()
def report(
    drawn: Annotated[Path, typer.Argument(help="Names, one a line.")], out: Annotated[Path, typer.Option(help="JSON.")]
) -> None:
    """Write how many of the sample are killed, and which are not.

    Raises:
        ValueError: one of them was not run.
    """
    every = mutants()
    codes = {name: every[name] for name in drawn.read_text().splitlines()}
    if waiting := [name for name, code in codes.items() if code is None]:
        raise ValueError(f"{len(waiting)} of {len(codes)} were not run, the first is {waiting[0]}; run mutmut again")
    statuses = {name: STATUS.get(abs(code), "other") for name, code in codes.items() if code is not None}
    counts = Counter(statuses.values())
    total, killed = len(statuses), sum(counts[status] for status in DETECTED)
    interval = share_interval(killed / total, total)
    figures = {"mutants": len(every), "run": total, "killed": killed, "share": killed / total, "interval": interval}
    left = sorted(name for name, status in statuses.items() if status not in DETECTED)
    write_json(out, machine() | figures | {"statuses": dict(counts), "not_killed": left})
    print("{} of {} killed: {:.0%} ({:.0%} to {:.0%})".format(killed, total, killed / total, *interval))


if __name__ == "__main__":
    app()
