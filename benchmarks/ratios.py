"""FID of students over that of their guided teacher, paired by noise, over seeds of training and of noise.

    python benchmarks/ratios.py outputs/sweeps/methods-DIGEST --out benchmarks/results/ratios_digits.json --readme

A ratio is that of a student and its teacher from the same noise under the same protocol. The mean over the seeds of
noise is the figure of a seed of training; the interval is Student's over the seeds of training, which are what a reader
who trains again would draw anew, and is stated for the mean over them. --readme writes the table of the README.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from judged import TEACHER_STEPS, WEIGHTS, Students
from measure import machine

from fewstep.evaluation.plan import EvaluationPlan
from fewstep.sweeps.results import Spread
from fewstep.system.files import atomic_write, write_json

README = Path(__file__).parents[1] / "README.md"
TABLE = re.compile(r"(\| student \| steps \|.*\n\| --- .*\n)(?:\|.*\n)+")  # head, and rows to replace
METHODS = ["progressive", "single_fold", "tract", "pi_flow", "scm", "consistency", "lcm", "ect"]
METHODS += ["knowledge_distillation", "pid"]
BEST = 3  # students in the README of each number of steps

Cell = tuple[str, int, float]
"""(method, steps, w)"""


def ratios_of(students: Students, noise: int, num_images: int, samples: Path) -> dict[Cell, float]:
    """FID of each student over the teacher's, from one seed of noise."""
    plan = EvaluationPlan(
        w=WEIGHTS,
        teacher_steps=(TEACHER_STEPS,),
        guided_steps=(),
        baselines=(),
        trace_images=0,
        seed=noise,
        num_images=num_images,
    )
    teacher, others = students.candidates(plan)
    first, *rows = students.judge([teacher, *others], plan, samples)
    fids = {row.w: row.fid for row in (first, *rows) if row.name == first.name}
    return {(row.model, row.steps, row.w): row.fid / fids[row.w] for row in rows if row.name != first.name}


def cells_of(found: Mapping[int, Mapping[int, Mapping[Cell, float]]]) -> list[dict[str, Any]]:
    """Mean and interval of each cell. found: by the seeds of training and of noise."""
    cells = []
    for model, steps, w in dict.fromkeys(cell for own in found.values() for each in own.values() for cell in each):
        ratios = {
            seed: [each[model, steps, w] for each in own.values() if (model, steps, w) in each]
            for seed, own in found.items()
        }
        spread = Spread.of(mean(own) for own in ratios.values() if own)
        assert spread is not None, "a cell has a ratio"
        low, high = spread.interval or (None, None)
        cell = {"model": model, "steps": steps, "w": w, "ratio": spread.mean, "low": low, "high": high}
        cells.append(
            cell | {"seeds": spread.count, "ratios": [[round(each, 5) for each in own] for own in ratios.values()]}
        )
    return cells


def table(cells: list[dict[str, Any]]) -> list[str]:
    """Rows of the README: the best of each number of steps by their mean over w, and `progressive` in any case."""
    by_model: dict[tuple[str, int], dict[float, str]] = {}
    means: dict[tuple[str, int], list[float]] = {}
    for cell in cells:
        key = cell["model"], cell["steps"]
        half = "" if cell["high"] is None else f" ± {cell['high'] - cell['ratio']:.2f}"
        by_model.setdefault(key, {})[cell["w"]] = f"{cell['ratio']:.2f}{half}"
        means.setdefault(key, []).append(cell["ratio"])
    rows = []
    for steps in sorted({steps for _, steps in by_model}, reverse=True):
        ranked = sorted((key for key in by_model if key[1] == steps), key=lambda key: mean(means[key]))
        chosen = [key for key in ranked if key in ranked[:BEST] or key[0] == "progressive"]
        rows += ["| {} | {} | {} |".format(*key, " | ".join(by_model[key][w] for w in WEIGHTS)) for key in chosen]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--noise", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of noise")
    parser.add_argument("--images", type=int, default=EvaluationPlan.num_images)
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    found: dict[int, dict[int, dict[Cell, float]]] = {}
    for seed in given.seeds:
        students = Students(given.sweep, given.dataset, given.methods, seed)
        found[seed] = {
            noise: ratios_of(students, noise, given.images, given.outputs / "samples") for noise in given.noise
        }
    cells = cells_of(found)
    seeds = {"seeds": given.seeds, "noise": given.noise, "images": given.images}
    command = f"python benchmarks/ratios.py outputs/sweeps/methods-DIGEST --dataset {given.dataset}"
    write_json(given.out, {"command": command, "machine": machine(), **seeds, "cells": cells})
    if given.readme:
        rows = "".join(f"{row}\n" for row in table(cells))
        with atomic_write(README) as temporary:
            temporary.write_text(TABLE.sub(lambda match: match[1] + rows, README.read_text()))


if __name__ == "__main__":
    main()
