"""Do few steps edit, fill in and transfer as well as the teacher's many? On the held-out digits.

Every student (and the encoder beside it) does each task with the sources, targets and noise that the teacher does it
with at 64 steps of two evaluations. The classifier that the package ships says which class came out; what was kept of
the source is a correlation over images of what is left of features, slant and thickness when the mean of each class is
taken away. A fresh sample of the target class, which knows nothing of the source, is what to be better than.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from jaxtyping import Bool, Float, Int
from measure import report
from torch import Tensor

import fewstep
from fewstep import Model
from fewstep.control.attributes import slant, thickness
from fewstep.data.digits import DigitsData
from fewstep.diffusion.edit import steps_for
from fewstep.evaluation.features import DigitsFeatures
from fewstep.evaluation.images import to_uint8

TEACHER_STEPS = 64
STRENGTHS = (0.5, 0.75)

Digits = Float[Tensor, "count 1 8 8"]
Labels = Int[Tensor, "count"]


class Way(NamedTuple):
    """A model and what encodes for it, at their steps."""

    name: str
    model: Model
    encoder: Model
    steps: int
    encode_steps: int

    def transfer(self, x: Digits, source: Labels, target: Labels, w: float) -> Digits:
        return fewstep.transfer(
            self.model,
            x,
            source,
            target,
            encoder=self.encoder,
            steps=self.steps,
            encode_steps=self.encode_steps,
            w=w,
            encode_w=0.0,
        )


def main(
    teacher: Annotated[Path, typer.Option(help="model.safetensors of stage=teacher.")],
    student: Annotated[list[Path], typer.Option(help="model-N.safetensors of stage=progressive; may be repeated.")],
    encoder: Annotated[list[Path], typer.Option(help="model-N.safetensors of stage=encoder, one for each student.")],
    w: Annotated[list[float] | None, typer.Option(help="Guidance; may be repeated.  [default: 0 1 2]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure edit, inpaint, transfer and the cycle of students beside the teacher's."""
    torch.set_num_threads(threads or torch.get_num_threads())
    if len(student) != len(encoder):
        raise typer.BadParameter(f"give one --encoder for each --student, got {len(encoder)} for {len(student)}")
    loaded = fewstep.load(teacher)
    ways = [Way(f"teacher, {TEACHER_STEPS} x 2", loaded, loaded, TEACHER_STEPS, TEACHER_STEPS)]
    for file, encoding in zip(student, encoder, strict=True):
        model, reverse = fewstep.load(file), fewstep.load(encoding)
        name = f"student, {model.default_steps} + {reverse.default_steps}"
        ways.append(Way(name, model, reverse, model.default_steps, reverse.default_steps))
    held_out = DigitsData(batch_size=1, stream="facts").reference()
    rows = [measure(way, held_out.x, held_out.label, weight) for way in ways for weight in (w or [0.0, 1.0, 2.0])]
    teachers = {row["w"]: row["cycle_rmse"] for row in rows if row["model"] == ways[0].name}
    for row in rows:
        row["cycle_ratio"] = row["cycle_rmse"] / teachers[row["w"]]
    rows = [{key: round(value, 4) if isinstance(value, float) else value for key, value in r.items()} for r in rows]
    columns = ["model", "w", "transfer_hits", "transfer_slant", "cycle_ratio", "inpaint_hits", "edit_0.75_hits"]
    report(
        "Tasks on the held-out digits: class that was asked for, and what was kept of the source", rows, columns, out
    )


def measure(way: Way, x: Digits, label: Labels, w: float) -> dict[str, Any]:
    """One row: all tasks of one way at one w. The encoder is not guided, so that the cycle of w > 0 does not close."""
    target = (label + 1 + torch.arange(len(x)) % 9) % 10  # another class for every image, all of them in turn
    row: dict[str, Any] = {
        "model": way.name,
        "w": w,
        "evaluations": way.steps * way.model.evaluations_per_step,
        "encoder_evaluations": way.encode_steps * way.encoder.evaluations_per_step,
        "num_sources": len(x),
    }
    fresh = way.model.sample(target, steps=way.steps, w=w, seed=1)
    row |= compared("fresh", x, label, fresh, target)
    row |= compared("transfer", x, label, way.transfer(x, label, target, w), target)
    row["cycle_rmse"] = float((way.transfer(x, label, label, w) - x).square().mean().sqrt())
    for strength in STRENGTHS:
        edited = fewstep.edit(way.model, x, target, strength=strength, steps=way.steps, w=w, seed=1)
        row |= compared(f"edit_{strength:g}", x, label, edited, target)
        row[f"edit_{strength:g}_steps"] = steps_for(strength, way.model.card.sampling.grid(way.steps))
    return row | inpainting(way, x, label, w)


def inpainting(way: Way, x: Digits, label: Labels, w: float) -> dict[str, Any]:
    """Each half filled in with the image's own class; beside it, the class of the known half alone."""
    row: dict[str, Any] = {}
    hits, alone, exact = [], [], []
    for name, missing in halves(x).items():
        filled = fewstep.inpaint(way.model, x, missing, label, steps=way.steps, w=w, seed=1)
        hits.append(row.setdefault(f"inpaint_{name}_hits", accuracy(filled, label)))
        alone.append(accuracy(torch.where(missing, torch.tensor(-1.0), x), label))
        exact.append(bool((pixels(filled) == pixels(x))[~missing].all()))
    return row | {
        "inpaint_hits": sum(hits) / len(hits),
        "known_half_hits": sum(alone) / len(alone),
        "known_pixels_exact": all(exact),
    }


def halves(x: Digits) -> dict[str, Bool[Tensor, "count 1 8 8"]]:
    row = torch.arange(8).reshape(8, 1).expand(8, 8)
    parts = {"top": row < 4, "bottom": row >= 4, "left": row.T < 4, "right": row.T >= 4}
    return {name: part.expand_as(x) for name, part in parts.items()}


def compared(name: str, source: Digits, sources: Labels, made: Digits, target: Labels) -> dict[str, float]:
    """How often `made` is of its target class, and how much of each source is left in it."""
    kept: dict[str, Callable[[Digits], Float[Tensor, "count values"]]] = {
        "features": features,
        "slant": lambda x: slant(x)[:, None],
        "thickness": lambda x: thickness(x)[:, None],
        "pixels": lambda x: x.flatten(1),
    }
    found = {f"{name}_{what}": correlation(of(source), sources, of(made), target) for what, of in kept.items()}
    return {f"{name}_hits": accuracy(made, target)} | found


def pixels(x: Digits) -> Tensor:
    return to_uint8(x, DigitsData.facts)


NET = DigitsFeatures()


def accuracy(x: Digits, label: Labels) -> float:
    return float((NET(pixels(x))[1].argmax(1) == label).float().mean())


def features(x: Digits) -> Float[Tensor, "count 64"]:
    return NET(pixels(x))[0]


def correlation(
    a: Float[Tensor, "count values"], labels_a: Labels, b: Float[Tensor, "count values"], labels_b: Labels
) -> float:
    """Correlation over all images and values of what is left of each when its class's mean is taken away."""
    a, b = without_class_means(a, labels_a), without_class_means(b, labels_b)
    return float((a * b).sum() / (a.norm() * b.norm()))


def without_class_means(values: Float[Tensor, "count values"], label: Labels) -> Float[Tensor, "count values"]:
    sums = torch.zeros(10, values.shape[1]).index_add(0, label, values)
    return values - (sums / label.bincount(minlength=10).clamp(min=1)[:, None])[label]


if __name__ == "__main__":
    typer.run(main)
