"""Diversity of students and of hybrids (a base's first steps, then the student's) beside their teacher's, over seeds.

    python benchmarks/diversity.py outputs/sweeps/methods-DIGEST --out benchmarks/results/diversity_digits.json

The argument is the folder of `python train.py sweeps=methods`, whose students are judged as they are: nothing is
trained. Each seed has other students and other noise, and ratios to the teacher are of the same seed, w and noise.
Intervals are Student's over the seeds; of one seed, those of its images. The teacher's samples may come from another
run, so that speeds are not among the figures: those are in quality.json. What is judged already is kept, so that an
interrupted command goes on.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from judged import TEACHER_STEPS, WEIGHTS, Students
from measure import machine

from fewstep.artifacts.quality_file import read_rows
from fewstep.artifacts.run_folder import QUALITY
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.runs.candidates import with_hybrids
from fewstep.sweeps.results import Spread
from fewstep.system.files import write_json

FIGURES = ("fid", "recall", "diversity", "vendi", "accuracy", "energy_distance", "energy_floor")
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


class Seed:
    """The models of one seed, and what judges them."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given, self.seed = given, seed
        self.models = Students(given.sweep, given.dataset, given.methods, seed)
        self.plan = EvaluationPlan(
            w=given.w, teacher_steps=(TEACHER_STEPS,), guided_steps=(), baselines=(), seed=seed, num_images=given.images
        )
        self.teacher, self.students = self.models.candidates(self.plan)
        self.protocol = self.models.protocol(self.plan, self.teacher)

    def hybrids(self, base: Base) -> list[Candidate]:
        plan = replace(self.plan, base_steps=base.steps, base_w=base.w)
        return [each for each in with_hybrids([self.teacher, *self.students], plan) if each.first is not None]

    def file(self, name: str) -> Path:
        """Where rows are kept, by all that they depend on."""
        key = repr((self.given.sweep.name, self.given.methods, self.given.w))
        about = f"{self.given.dataset}-{self.protocol.id}-{sha256(key.encode()).hexdigest()[:8]}"
        return self.given.outputs / f"diversity-{about}-{name}.json"

    def judged(self, candidates: Sequence[Candidate], name: str) -> list[Row]:
        """Their rows, kept in a file."""
        if (file := self.file(name)).is_file():
            return json.loads(file.read_text())
        judged = self.models.judge([self.teacher, *candidates], self.plan, self.given.outputs / "samples")
        rows = [row.as_dict() for row in judged]
        write_json(file, rows)
        return rows

    def rows(self) -> list[Row]:
        """Those of teacher and students, and of the hybrids with each base."""
        alone = self.of_sweep() if self.given.as_judged and not self.file("students").is_file() else []
        alone = alone or self.judged(self.students, "students")
        names = [f"base-{base.steps}-{base.w:g}" for base in self.given.bases]
        pairs = zip(self.given.bases, names, strict=True)
        return [*alone, *(row for base, name in pairs for row in self.judged(self.hybrids(base), name))]

    def of_sweep(self) -> list[Row]:
        """The students' rows as the sweep has them, where they are of the same protocol."""
        files = [
            self.given.sweep / self.given.dataset / "pipeline" / f"seed={self.seed},method={method}" / QUALITY
            for method in self.given.methods
        ]
        rows = [row for file in files if file.is_file() for row in read_rows(file)]
        return [row.as_dict() for row in rows if row.is_few_step and row.protocol == self.protocol.id]


Key = tuple[str, int, int, float | None]


def key_of(row: Row) -> Key:
    return row["model"], row["steps"], row["base_steps"], row["base_w"]


def cells_of(seeds: list[dict[tuple[Key, float], Row]]) -> list[Row]:
    """The figures of each model, steps and w over the seeds that have it, and their ratios to the teacher's."""
    keys = dict.fromkeys(key for rows in seeds for key, _ in rows)
    teacher = next(key for key in keys if key[0] == "teacher")
    cells = []
    for key, w in product(keys, dict.fromkeys(w for rows in seeds for _, w in rows)):
        pairs = [(rows[key, w], rows[teacher, w]) for rows in seeds if (key, w) in rows]
        first = pairs[0][0]
        cell: Row = {name: first[name] for name in ("model", "steps", "base_steps", "base_w", "nfe", "w")}
        cell |= {"seeds": len(pairs)}
        for figure in FIGURES:
            cell[figure] = spread([own[figure] for own, _ in pairs])
        for figure in RATIOS if key != teacher else ():
            known = [(own[figure], other[figure]) for own, other in pairs if own[figure] is not None]
            cell[f"{figure}_ratio"] = spread([own / other for own, other in known])
        cell["intervals"] = first["intervals"] if len(pairs) == 1 else None
        cells.append({name: value for name, value in cell.items() if value is not None or name == "base_w"})
    return cells


def spread(values: list[float | None]) -> dict[str, float | int | None] | None:
    """Mean and half the width of its interval, None of a single seed, and how many are known; None of none."""
    if (found := Spread.of(values)) is None:
        return None
    half = None if found.interval is None else float(f"{found.interval[1] - found.mean:.6g}")
    return {"mean": float(f"{found.mean:.6g}"), "interval": half, "seeds": found.count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    methods = ["progressive", "consistency", "lcm", "knowledge_distillation", "pid", "dmd2"]
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--w", type=float, nargs="+", default=WEIGHTS)
    parser.add_argument(
        "--as-judged",
        action="store_true",
        help="take the students' rows from the sweep, without figures that it lacks, instead of judging them again",
    )
    parser.add_argument("--images", type=int, default=EvaluationPlan.num_images)
    parser.add_argument("--bases", nargs="+", type=Base.of, default=[Base(1, 0.0)], metavar="STEPS,W")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.w = tuple(given.w)
    seeds = [Seed(given, seed) for seed in given.seeds]
    found = [{(key_of(row), row["w"]): row for row in seed.rows()} for seed in seeds]
    bases = " ".join(f"{base.steps},{base.w:g}" for base in given.bases)
    settings = {"seeds": " ".join(map(str, given.seeds)), "w": " ".join(f"{w:g}" for w in given.w), "bases": bases}
    words = [f"--{name} {value}" for name, value in settings.items()]
    words += [f"--dataset {given.dataset} --images {given.images} --methods", *given.methods]
    command = " ".join(["python benchmarks/diversity.py outputs/sweeps/methods-DIGEST", *words])
    protocols = [seed.protocol.as_dict() for seed in seeds]
    write_json(given.out, {"command": command} | machine() | {"protocols": protocols, "cells": cells_of(found)})


if __name__ == "__main__":
    main()
