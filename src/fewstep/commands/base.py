"""The base of a sample, and other models that options name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fewstep.inference.model import Base, Model

BaseFile = Annotated[
    Path | None,
    typer.Option(metavar="TEACHER", help="A model that takes the first steps, for the diversity of its samples."),
]
BaseSteps = Annotated[int | None, typer.Option(help="Steps of the base, in place of the first of MODEL's [1].")]
BaseWeight = Annotated[
    float | None, typer.Option(help="Guidance weight of the base [0, the most diverse: one evaluation a step].")
]
BaseLevel = Annotated[int | None, typer.Option(help="Steps of MODEL that those of the base stand in for [1].")]


def opened_base(file: Path | None, steps: int | None, w: float | None, level: int | None) -> "Base | None":
    """The base of a sample, None for none; refuses settings of a base that there is not."""
    given = {"steps": steps, "w": w, "level": level}
    given = {name: value for name, value in given.items() if value is not None}
    if file is None:
        if given:
            raise ValueError(f"--base-{next(iter(given))} is of a base, and there is none: give --base TEACHER too")
        return None
    import fewstep

    return fewstep.Base(opened_model(file, "--base"), **given)


def opened_model(path: Path, option: str) -> "Model":
    """The model file, or the only one of the run folder, that an option names."""
    import fewstep
    from fewstep.artifacts.lineage import only_model

    return fewstep.load(only_model(path, option) if path.is_dir() else path)
