"""Diversity of students and of hybrids (a base's first steps, then the student's) beside their teacher's, over seeds.

    python benchmarks/diversity.py outputs/sweeps/methods-DIGEST --out benchmarks/results/diversity_digits.json

The argument is the folder of `python train.py sweeps=methods`, whose students are judged as they are: nothing is
trained. Each seed has other students and other noise, and ratios to the teacher are of the same seed, w and noise.
Intervals are Student's over the seeds. What is judged already is kept, so that an interrupted command goes on.
"""

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from measure import machine
from methods import STEPS, STUDENT_T, TEACHER_STEPS, WEIGHTS, interval

from fewstep.artifacts.lineage import models_in_folder
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.grid import EvaluationPlan, quality_grid
from fewstep.runs.build import data_of
from fewstep.runs.evaluate import candidates_of, protocol_of, with_ancestors, with_hybrids
from fewstep.system.files import sha256_of, write_json

FIGURES = ("fid", "recall", "diversity", "vendi", "accuracy", "energy_distance", "images_per_second")
RATIOS = ("recall", "diversity", "vendi")  # of which those to the teacher's are given too

Row = dict[str, Any]


class Base(NamedTuple):
    """Steps of the base and its guidance."""

    steps: int
    w: float

    @classmethod
    def of(cls, text: str) -> "Base":
        """Of "STEPS,W"."""
        steps, w = text.split(",")
        return cls(int(steps), float(w))


def judged(given: argparse.Namespace, seed: int) -> tuple[str, list[Row]]:
    """The protocol and the rows of one seed's teacher, students and hybrids."""
    files = [
        path
        for method in given.methods
        for path in models_in_folder(given.sweep / given.dataset / method / f"seed={seed},method={method}")
    ]
    if not files:
        raise SystemExit(f"{given.sweep} has no students of seed {seed}")
    models = with_ancestors(files)
    data = data_of(given.dataset, [], batch_size=1)
    evaluator = Evaluator.of(data)
    plan = EvaluationPlan(
        w=WEIGHTS, teacher_steps=(TEACHER_STEPS,), guided_steps=(), baselines=(), seed=seed, num_images=given.images
    )
    digests = {path: sha256_of(path) for path in models}
    teacher, *others = candidates_of(models, plan, evaluator.exact, digests=digests)
    students = [replace(each, steps=tuple(n for n in each.steps if n in STEPS)) for each in others]
    students = [each for each in students if each.steps]
    hybrids = [
        each
        for base in given.bases
        for each in with_hybrids([teacher, *students], replace(plan, base_steps=base.steps, base_w=base.w))
        if each.first is not None
    ]
    protocol = protocol_of(evaluator, plan, teacher)
    cells = quality_grid(
        [teacher, *students, *hybrids],
        plan,
        facts=evaluator.facts,
        net=evaluator.net,
        reference_statistics=evaluator.reference_statistics,
        protocol=protocol,
        labels=data.conditions(plan.num_images),
        exact=evaluator.exact,
        folder=given.outputs / "samples",
    )
    rows = []
    for row in cells:
        print(f"seed {seed}: {row.name}, {row.steps} steps, w = {row.w:g}, diversity {row.diversity}", flush=True)
        rows.append(row.as_dict())
    return protocol.id, rows


def rows_of(given: argparse.Namespace, seed: int) -> tuple[str, list[Row]]:
    """Those of one seed, kept in a file."""
    bases = "_".join(f"{base.steps},{base.w:g}" for base in given.bases)
    file = given.outputs / f"diversity-{given.dataset}-{'-'.join(given.methods)}-{bases}-{given.images}-{seed}.json"
    if not file.is_file():
        write_json(file, judged(given, seed))
    protocol, rows = json.loads(file.read_text())
    return protocol, rows


Key = tuple[str, int, int, float | None]


def key_of(row: Row) -> Key:
    return row["model"], row["steps"], row["base_steps"], row["base_w"]


def cells_of(seeds: list[dict[tuple[Key, float], Row]]) -> list[Row]:
    """The figures of each model, steps and w over the seeds that have it, and their ratios to the teacher's."""
    keys = dict.fromkeys(key for rows in seeds for key, _ in rows)
    teacher = next(key for key in keys if key[0] == "teacher")
    cells = []
    for key, w in product(keys, WEIGHTS):
        pairs = [(rows[key, w], rows[teacher, w]) for rows in seeds if (key, w) in rows]
        first = pairs[0][0]
        cell: Row = {name: first[name] for name in ("model", "steps", "base_steps", "base_w", "nfe", "w")}
        cell |= {"seeds": len(pairs)}
        for figure in FIGURES:
            if first[figure] is not None:
                cell[figure] = spread([own[figure] for own, _ in pairs])
        for figure in RATIOS if key != teacher else ():
            cell[f"{figure}_ratio"] = spread([own[figure] / other[figure] for own, other in pairs])
        if first["energy_floor"] is not None:
            cell["energy_floor"] = spread([own["energy_floor"] for own, _ in pairs])
        cells.append(cell)
    return cells


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and half the width of its interval, None of a single seed; to six digits."""
    found = interval(values) if len(values) > 1 else {"mean": values[0], "interval": None}
    return {name: value if value is None else float(f"{value:.6g}") for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    methods = ["progressive", "consistency", "lcm", "knowledge_distillation", "pid", "dmd2"]
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--seeds", type=int, default=3, choices=[1, *STUDENT_T])
    parser.add_argument("--images", type=int, default=EvaluationPlan.num_images)
    parser.add_argument("--bases", nargs="+", type=Base.of, default=[Base(1, 0.0)], metavar="STEPS,W")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = [rows_of(given, seed) for seed in range(given.seeds)]
    seeds = [{(key_of(row), row["w"]): row for row in rows} for _, rows in found]
    bases = " ".join(f"{base.steps},{base.w:g}" for base in given.bases)
    command = f"python benchmarks/diversity.py outputs/sweeps/methods-DIGEST --dataset {given.dataset}"
    counts = f"--seeds {given.seeds} --images {given.images}"
    about = {"command": f"{command} --methods {' '.join(given.methods)} --bases {bases} {counts}"}
    write_json(
        given.out, about | machine() | {"protocols": [protocol for protocol, _ in found], "cells": cells_of(seeds)}
    )


if __name__ == "__main__":
    main()
