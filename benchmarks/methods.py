"""FID of several methods at one budget of network evaluations, from one guided student, with 95 % intervals over seeds.

    python benchmarks/methods.py GUIDED --dataset mixture --out benchmarks/results/methods_mixture.json

GUIDED is the model file of a guided student (python train.py makes one below outputs/). Each seed trains every method
anew and draws new noise for the evaluation; ratios to the teacher are of the same seed. What is there already is kept,
so that an interrupted command goes on.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from measure import machine

from fewstep.artifacts.lineage import models_in_folder
from fewstep.artifacts.model_file import load_model
from fewstep.system.files import write_json

ROOT = Path(__file__).parents[1]
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 %, by the number of seeds
STEPS, TEACHER_STEPS = (4, 2, 1), 64
WEIGHTS = (0.0, 1.0, 2.0, 4.0)


def train(*settings: str) -> None:
    """`python train.py *settings`.

    Raises:
        SystemExit: it failed, and said why.
    """
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *settings], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def interval(values: list[float]) -> dict[str, float]:
    """Mean and half the width of the 95 % interval (Student's t)."""
    return {"mean": mean(values), "interval": STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5}


def cells_of(rows: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The figures of each model, steps and w over the seeds, and their ratios to the teacher's of the same seed."""

    def figure(name: str, seed: int, model: str, steps: int, w: float) -> float:
        (row,) = [r for r in rows[seed] if (r["model"], r["steps"], r["w"]) == (model, steps, w)]
        return row[name]

    def exact_error(model: str, steps: int, w: float) -> dict[str, Any]:
        """The error to the exact solution from the same noise, where the data have one."""
        if rows[0][0]["exact_rmse"] is None:
            return {}
        return {"exact_rmse": interval([figure("exact_rmse", seed, model, steps, w) for seed in seeds])}

    fid = partial(figure, "fid")

    seeds = range(len(rows))
    asked = [(r["model"], r["steps"]) for r in rows[0] if r["w"] == WEIGHTS[0]]
    asked = [(model, steps) for model, steps in asked if steps in STEPS or (model, steps) == ("teacher", TEACHER_STEPS)]
    return [
        {
            "model": model,
            "steps": steps,
            "w": w,
            "fid": interval([fid(seed, model, steps, w) for seed in seeds]),
            "ratio": interval([fid(s, model, steps, w) / fid(s, "teacher", TEACHER_STEPS, w) for s in seeds]),
            **exact_error(model, steps, w),
        }
        for model, steps in asked
        for w in WEIGHTS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guided", type=Path)
    parser.add_argument("--methods", nargs="+", default=["progressive", "tract", "consistency", "dmd2"])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument(
        "--evaluations", type=int, default=1_500_000, help="budget of each method, backward passes as 2"
    )
    parser.add_argument("--seeds", type=int, default=3, choices=STUDENT_T)
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows, costs, shared = [], {}, [f"dataset={given.dataset}", "logger=csv", f"outputs={given.outputs}"]
    for seed in range(given.seeds):
        models = []
        for method in given.methods:
            own = [f"stage={method}", f"stage.training.evaluations={given.evaluations}", f"teacher={given.guided}"]
            train(*own, f"seed={seed}", f"name=equal{seed}", *shared)
            made = models_in_folder(given.outputs / given.dataset / method / f"equal{seed}")
            cards = [load_model(model)[1] for model in made]
            costs[method] = {
                "evaluations": sum(card.evaluations or 0 for card in cards),
                "images": sum(card.images for card in cards),
            }
            models += [str(m) for m in made if (load_model(m)[1].num_steps or 0) in STEPS]
        grid = [f"stage.w={[*WEIGHTS]}", f"stage.teacher_steps=[{TEACHER_STEPS}]", f"stage.guided_steps={[*STEPS]}"]
        own = ["stage=evaluate", f"stage.models={models}", *grid, "stage.baselines=[]", f"stage.seed={seed}"]
        train(*own, f"seed={seed}", f"name=equal{seed}", *shared)
        quality = given.outputs / given.dataset / "evaluate" / f"equal{seed}" / "quality.json"
        rows.append(json.loads(quality.read_text()))
    command = f"python benchmarks/methods.py GUIDED --dataset {given.dataset} --methods {' '.join(given.methods)}"
    budget = f"--evaluations {given.evaluations} --seeds {given.seeds}"
    about = {"command": f"{command} {budget}", "costs": costs, **machine()}
    write_json(given.out, about | {"protocols": [seed[0]["protocol"] for seed in rows], "cells": cells_of(rows)})


if __name__ == "__main__":
    main()
