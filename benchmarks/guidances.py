"""Two guidances at once on digits_styled: the figures over (w1, w2) in one file, and the picture of docs/guidances.md.

python benchmarks/guidances.py EVALUATION... --student MODEL --teacher MODEL --picture PNG --out RESULT.json

EVALUATION is the folder of a run of stage=evaluate with quality.json, of which all must have one protocol;
docs/guidances.md has the commands that make them. A student is told by its seed and its teacher_share, which are in its
run's config.yaml.
"""

import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from measure import machine
from PIL import Image, ImageDraw

import fewstep
from fewstep.artifacts.pictures import image_grid, save_png
from fewstep.data.digits_styled import STYLES, DigitsStyledData
from fewstep.diffusion.guidance import shared_weight
from fewstep.diffusion.prediction import diffuse
from fewstep.evaluation.images import evaluation_tensor
from fewstep.system.files import write_json

COMMANDS = (
    "python train.py dataset=digits_styled stage=teacher",
    "python train.py dataset=digits_styled stage=two_guidances stage.training.images=250000",
    "python train.py dataset=digits_styled stage=evaluate stage.num_images=600 stage.teacher_steps=[16] "
    "stage.guided_steps=[16] stage.models=[STUDENT]",
    "python train.py dataset=digits_styled stage=two_guidances stage.training.images=250000 stage.teacher_share=0.5",
    "python benchmarks/guidances.py EVALUATION --student STUDENT --teacher TEACHER --mixed STUDENT --mixed MIXED "
    "--picture docs/guidances.png --out benchmarks/results/guidances_digits.json",
)
FIGURES = ("fid", "accuracy", "style_accuracy", "recall", "diversity", "same_noise_rmse")
WEIGHTS, DIGITS, STEPS, MARGIN = (0.0, 1.0, 2.0), (0, 2, 3, 5, 8), 16, 18  # of the picture; pixels


def students_of(folder: Path, provenance: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that tell the trained models of an evaluation apart, by their names in it."""
    found = {}
    for model in provenance["models"]:
        config = yaml.safe_load((folder / model["run"] / "config.yaml").read_text())
        stage = config["stage"]
        settings = {"stage": stage["name"], "seed": config["seed"], "images": stage["training"]["images"]}
        found[model["model"]] = settings | {k: stage[k] for k in ("teacher_share",) if k in stage}
    return found


def cells_of(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The protocol of an evaluation, and its rows with the settings of their models."""
    provenance = json.loads((folder / "provenance.json").read_text())
    models = students_of(folder, provenance)
    rows = json.loads((folder / "quality.json").read_text())
    kept = ("steps", "nfe", "w", "w2", *FIGURES)
    cells = [
        {**models[row["model"]], **{key: row[key] for key in kept}, "fid_interval": row["intervals"]["fid"]}
        for row in rows
    ]
    return provenance["protocol"]["id"], cells


def picture_of(student: Path) -> Image.Image:
    """A block of digits, a style a row, for each w2 across and each w1 down, all from the same noise."""
    model, blocks = fewstep.load(student), []
    label = torch.tensor([digit + STYLES.num_classes * style for style in range(STYLES.num_styles) for digit in DIGITS])
    for w1 in WEIGHTS:
        x = [model.sample(label, steps=STEPS, w=w1, w2=w2, seed=1) for w2 in WEIGHTS]
        blocks.append([image_grid(evaluation_tensor(each, model.card.data), len(DIGITS)) for each in x])
    width, height = (size + MARGIN for size in blocks[0][0].size)
    whole = Image.new("L", (MARGIN + width * len(WEIGHTS), height * len(WEIGHTS)), 255)
    draw = ImageDraw.Draw(whole)
    for row, (w1, own) in enumerate(zip(WEIGHTS, blocks, strict=True)):
        for column, (w2, block) in enumerate(zip(WEIGHTS, own, strict=True)):
            place = (MARGIN + column * width, row * height + MARGIN)
            whole.paste(block.convert("L"), place)
            draw.text((place[0] + 2, place[1] - 14), f"w1 = {w1:g} (class), w2 = {w2:g} (style)", fill=0)
    return whole


@torch.no_grad()
def mixed_gaps(student: Path, teacher: Path) -> list[dict[str, float]]:
    """How far a student of mixed supervision is from D* at (w1, w2), and at (lambda w1, lambda w2), lambda its share.

    Gaps are rms(v - v*) / rms(v*) on the held-out digits, noised to times spread over [0, 1].
    """
    share = yaml.safe_load((student.parent / "config.yaml").read_text())["stage"]["teacher_share"]
    own, other = fewstep.load(student), fewstep.load(teacher)
    x, label = DigitsStyledData(any_style=0.2, batch_size=1, stream="facts").reference()
    t = (torch.arange(len(x)) + 0.5) / len(x)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noised, found = diffuse(x=x, eps=eps, log_snr=own.card.schedule.log_snr(t)), []
    for w in product(WEIGHTS, WEIGHTS):
        at, weaker = shared_weight(w, len(x)), share * shared_weight(w, len(x))
        v = own.denoise(noised.z, noised.log_snr, label, at).v
        goals = [other.denoise(noised.z, noised.log_snr, label, each).v for each in (at, weaker)]
        gaps = [float((v - goal).norm() / goal.norm()) for goal in goals]
        found.append({"teacher_share": share, "w": w[0], "w2": w[1], "gap": gaps[0], "gap_to_weaker": gaps[1]})
    return found


def main(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders with quality.json.")],
    student: Annotated[Path, typer.Option(help="A student of stage=two_guidances, for the picture.")],
    picture: Annotated[Path, typer.Option(help="PNG.")],
    out: Annotated[Path, typer.Option(help="JSON.")],
    teacher: Annotated[Path, typer.Option(help="The students' teacher.")],
    mixed: Annotated[list[Path] | None, typer.Option(help="A student of mixed supervision, or several.")] = None,
) -> None:
    """Collect the figures of several evaluations, draw samples of a student, and compare those of mixed supervision."""
    found = [cells_of(folder) for folder in evaluations]
    protocols = sorted({protocol for protocol, _ in found})
    if len(protocols) > 1:
        raise ValueError(f"figures of one table need one protocol, got {', '.join(protocols)}; evaluate alike")
    cells = {json.dumps(cell, sort_keys=True): cell for _, own in found for cell in own}  # a teacher is judged again
    write_json(
        out,
        {
            "commands": COMMANDS,
            "machine": machine(),
            "protocol": json.loads((evaluations[0] / "provenance.json").read_text())["protocol"],
            "cells": [*cells.values()],
            "mixed_supervision": [row for each in mixed or () for row in mixed_gaps(each, teacher)],
        },
    )
    save_png(picture_of(student), picture)


if __name__ == "__main__":
    typer.run(main)
