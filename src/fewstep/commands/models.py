"""The argument MODEL of every command that takes one: a file, a run folder, or `latest`."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

LATEST = "latest"
OUTPUTS = Path("outputs")
PREFERRED_STEPS = 4


def find_model(context: typer.Context, model: Path) -> Path:
    """The model file that MODEL names.

    Raises:
        ValueError: a run folder that holds none or several models, or no finished student to be `latest`.
    """
    if str(model) == LATEST and not model.exists():
        found = latest_student(context.params.get("outputs", OUTPUTS))
    elif model.is_dir():
        from fewstep.artifacts.lineage import only_model

        found = only_model(model, "MODEL")
    else:
        return model
    typer.echo(f"model: {found}", err=True)
    return found


ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        callback=find_model,
        help="A model.safetensors or model-N.safetensors, the folder of a run that made one model, or `latest`: the "
        "newest few-step student below --outputs, of 4 steps where there is one.",
    ),
]
# Read by `find_model` alone: eager, so that it is there when MODEL is read.
Outputs = Annotated[Path, typer.Option(is_eager=True, help="Where `latest` looks for runs.")]


def latest_student(outputs: Path) -> Path:
    """The student of 4 steps, or of the most, of the newest run that has finished few-step students of any data set."""
    from fewstep.artifacts.lineage import find_newest_students
    from fewstep.artifacts.run_folder import made_at, rung_file

    found: list[list[Path]] = []
    for folder in sorted(outputs.glob("*/")):
        with suppress(ValueError):  # no student of this data set
            found.append(find_newest_students(outputs, folder.name))
    if not found:
        raise ValueError(
            f"MODEL={LATEST} is the newest few-step student below {outputs}, and there is none; `python train.py` "
            "makes some"
        )
    models = max(found, key=lambda models: made_at(models[0].parent))
    preferred = models[0].with_name(rung_file(PREFERRED_STEPS))
    return preferred if preferred in models else models[0]
