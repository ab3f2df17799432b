"""Policies over training seeds: the policies.json of one evaluation for each seed as one file and a table.

    for seed in 0 1 2; do
      python train.py dataset=obstacles method=vdd seed=$seed name=seed$seed logger=csv \
        +stage@stage.em_mixture=em_mixture +recipe@stage.em_mixture=obstacles_em_mixture \
        'stage.stages=[teacher,guidance,em_mixture,vdd,evaluate]'
    done
    python benchmarks/policies.py outputs/obstacles/pipeline/seed? --out benchmarks/results/policies.json
"""

import json
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from measure import machine

from fewstep.artifacts.run_folder import POLICIES
from fewstep.sweeps.results import Spread
from fewstep.system.files import write_json

COMMAND = (
    "python train.py dataset=obstacles method=vdd seed=SEED name=seedSEED logger=csv "
    "+stage@stage.em_mixture=em_mixture +recipe@stage.em_mixture=obstacles_em_mixture "
    "'stage.stages=[teacher,guidance,em_mixture,vdd,evaluate]'"
)


def main(
    folders: Annotated[list[Path], typer.Argument(help="Of evaluations, one a training seed.")],
    out: Annotated[Path, typer.Option(help="JSON.")],
) -> None:
    """Write every row of every folder, and print the means over the folders with their intervals."""
    runs = {folder.name: json.loads((folder / POLICIES).read_text()) for folder in folders}
    rows = [{"run": run} | row for run, own in runs.items() for row in own]
    write_json(out, {"command": COMMAND, "machine": machine() | {"hardware": "2 cores x86-64"}, "rows": rows})
    cells: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for rows in runs.values():
        for row in rows:
            cells.setdefault((row["model"], row["evaluations"], row["w"]), []).append(row)
    print("| model | evaluations | w | success, % | entropy of the ways | one action, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for (model, evaluations, w), rows in cells.items():
        success = spread([100 * row["success"] for row in rows], ".1f")
        entropy = spread([row["entropy"] for row in rows if row["entropy"] is not None], ".2f")
        seconds = [row["seconds_per_action"] for row in rows]
        milliseconds = "" if None in seconds else f"{1000 * mean(seconds):.1f}"
        print(f"| {model} | {evaluations} | {w:g} | {success} | {entropy} | {milliseconds} |")


def spread(values: list[float], digits: str) -> str:
    """The mean, and half of its 95 % interval (Student's) where there are several."""
    if (found := Spread.of(values)) is None:
        return ""
    half = "" if found.interval is None else f" ± {found.interval[1] - found.mean:{digits}}"
    return f"{found.mean:{digits}}{half}"


if __name__ == "__main__":
    typer.run(main)
