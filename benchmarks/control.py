"""Do adapters that were trained on one model control the others? On digits: teacher, guided student, few-step students.

    python benchmarks/control.py --teacher T --guided G --student MODEL-8 --student MODEL-4 --student MODEL-1 \
        --adapters outputs/control --out benchmarks/results/control_digits.json --picture docs/control.png

Adapters that are missing below --adapters are trained, by the defaults of `fewstep adapt train`; those that are there
are measured as they are, and a row says how many images its adapter has seen. The effect is what a figure of samples
changes by from strength 0, with the same noise: slant as measured on the images, the class as the shipped classifier's
probability. Its interval is over seeds of sampling, not over trainings. Every model is sampled at w = 1.
"""

from collections.abc import Callable
from functools import cache
from math import inf
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from measure import report
from torch import Tensor

import fewstep
from fewstep import Model
from fewstep.artifacts.adapter_file import load_adapter_file
from fewstep.artifacts.pictures import save_png
from fewstep.control.attributes import slant
from fewstep.control.lessons import Lesson, attribute, concept, training_images
from fewstep.control.train import AdapterPlan, train_adapter
from fewstep.data.digits import DigitsData
from fewstep.evaluation.features import DigitsFeatures
from fewstep.evaluation.images import to_uint8
from fewstep.evaluation.intervals import interval

SEEDS, IMAGES, W = range(5), 50, 1.0
ANY_STEPS = 16  # of teacher and guided student
FROM, TO = 3, 8
NET = DigitsFeatures()
COLUMNS = ["adapter", "trained on", "model", "strength", "at 0", "effect", "low", "high", "accuracy"]


def probability(x: Tensor, label: int) -> Tensor:
    """Of a class, by the shipped classifier."""
    return NET(to_uint8(x, DigitsData.facts))[1].softmax(1)[:, label]


class Control(NamedTuple):
    """An adapter of the table: what it is, on which model it is trained, and what it should change.

    Args:
        model: number of the model in the table. classes: of the samples. strengths: compared with 0.
        measured: of samples, which should rise by strength and fall by minus strength.
    """

    name: str
    model: int
    lesson: Callable[[Model], Lesson]
    classes: tuple[int, ...]
    strengths: tuple[float, ...]
    measured: Callable[[Tensor], Tensor]


def along(name: str) -> Callable[[Model], Lesson]:
    return lambda model: attribute(model, name, *training_images(model.card), "digits' training set")


def from_to(model: Model) -> Lesson:
    return concept(model, FROM, TO, [], eta=1.0, seed=0)


ALL, TEACHER, STUDENT_1 = tuple(range(10)), 0, 4
CONTROLS = (
    Control("slant", TEACHER, along("slant"), ALL, (1.0, -1.0), slant),
    Control(f"{FROM} to {TO}", TEACHER, from_to, (FROM,), (1.0,), lambda x: probability(x, TO)),
    Control(f"{FROM} to {TO}", STUDENT_1, from_to, (FROM,), (1.0,), lambda x: probability(x, TO)),
)


def main(
    teacher: Annotated[Path, typer.Option(help="model.safetensors of stage=teacher on digits.")],
    guided: Annotated[Path, typer.Option(help="model.safetensors of stage=guidance.")],
    student: Annotated[list[Path], typer.Option(help="model-8, -4 and -1 of stage=progressive, then any others.")],
    adapters: Annotated[Path, typer.Option(help="Folder of the adapters; those that are missing are trained.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to write.")] = None,
) -> None:
    """Measure what each adapter changes in each model."""
    files = [teacher, guided, *student]
    models = [fewstep.load(file) for file in files]
    names = [name_of(model) for model in models]
    rows, made = [], []
    for control in CONTROLS:
        file = adapters / f"{control.name} of {names[control.model]}.safetensors".replace(" ", "-")
        made.append(file)
        if not file.is_file():
            own = models[control.model]
            train_adapter(own, files[control.model], control.lesson(own), AdapterPlan(), file)
        for name, model in zip(names, models, strict=True):
            for strength in control.strengths:
                seen = load_adapter_file(file)[1].images
                row = {"adapter": control.name, "trained on": names[control.model], "images": seen, "model": name}
                rows.append(row | {"strength": strength} | effect(control, model, file, strength))
        report("Adapters across models of digits: what a strength changes, with 95 % intervals", rows, COLUMNS, out)
    if picture is not None:
        save_png(sweep([models[0], *models[2:5]], [names[0], *names[2:5]], made[0], made[1]), picture)


def name_of(model: Model) -> str:
    card = model.card
    return f"{card.label} {card.num_steps or ANY_STEPS}"


def sampled(model: Model, classes: tuple[int, ...], seed: int) -> Tensor:
    """IMAGES samples of the classes in turn."""
    labels = [classes[number % len(classes)] for number in range(IMAGES)]
    return model.sample(labels, steps=model.card.num_steps or ANY_STEPS, w=W, seed=seed)


unadapted = cache(sampled)  # the same for every adapter


def effect(control: Control, model: Model, file: Path, strength: float) -> dict[str, Any]:
    """The mean change from strength 0 over images and seeds; accuracy is that of the wanted class, with the adapter."""
    adapted = fewstep.with_adapters(model, [(file, strength)])
    changes, before, hits = [], [], []
    for seed in SEEDS:
        plain, moved = unadapted(model, control.classes, seed), sampled(adapted, control.classes, seed)
        before.append(control.measured(plain).mean())
        changes.append(control.measured(moved).mean() - before[-1])
        wanted = torch.tensor([control.classes[n % len(control.classes)] for n in range(IMAGES)])
        hits.append((NET(to_uint8(moved, DigitsData.facts))[1].argmax(1) == wanted).float().mean())
    mean = float(torch.stack(changes).mean())
    low, high = interval(mean, torch.stack(changes), least=-inf)
    figures = {"at 0": torch.stack(before).mean(), "effect": mean, "low": low, "high": high}
    figures["accuracy"] = torch.stack(hits).mean()
    return {key: round(float(value), 4) for key, value in figures.items()}


def sweep(models: list[Model], names: list[str], slanted: Path, other: Path) -> Any:
    """A row for each model: the slider of slant from -2 to 2 on a 1 and a 4, and that of the class from 0 to 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    panels = [
        ("slant, class 1", slanted, 1, (-2, -1, 0, 1, 2)),
        ("slant, class 4", slanted, 4, (-2, -1, 0, 1, 2)),
        (f"{FROM} to {TO}, class {FROM}", other, FROM, (0, 0.25, 0.5, 0.75, 1)),
    ]
    figure = Figure(figsize=(11, 3.4), dpi=110, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(models), 15, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    for row, model in enumerate(models):
        for block, (title, file, label, strengths) in enumerate(panels):
            for column, strength in enumerate(strengths):
                adapted = fewstep.with_adapters(model, [(file, float(strength))])
                steps = model.card.num_steps or ANY_STEPS
                x = adapted.sample([label], steps=steps, w=W, seed=1)
                place = axes[row][5 * block + column]
                place.imshow(x[0, 0], cmap="gray_r", vmin=-1, vmax=1)
                place.set(xticks=[], yticks=[])
                if row == 0:
                    place.set_title(f"{title}\n{strength:g}" if column == 2 else f"{strength:g}", fontsize=8)
                if 5 * block + column == 0:
                    place.set_ylabel(names[row], fontsize=8, rotation=0, ha="right", va="center")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


if __name__ == "__main__":
    typer.run(main)
