"""The argument MODEL of every command that takes one: a file, a run folder, or `latest`."""

from glob import escape, glob
from pathlib import Path
from typing import Annotated

import typer

LATEST = "latest"
OUTPUTS = Path("outputs")
PREFERRED_STEPS = 4
MOST_LISTED = 4  # in an error


def find_model(context: typer.Context, model: Path) -> Path:
    """The model file that MODEL names.

    Raises:
        ValueError: a run folder that holds none or several models, or no finished student to be `latest`.
    """
    if str(model) == LATEST and not model.exists():
        found = latest_student(context.params.get("outputs", OUTPUTS), context.params.get("steps"))
    elif model.is_dir():
        from fewstep.artifacts.lineage import only_model

        found = only_model(model, "MODEL")
    else:
        return model
    typer.echo(f"model: {found}", err=True)
    return found


def completed(incomplete: str) -> list[str]:
    """What MODEL may be that begins so, for a shell's completion: `latest`, a model below outputs, or another path."""
    models = (str(path) for path in OUTPUTS.glob("*/*/*/model*.safetensors"))
    found = [each for each in (LATEST, *sorted(models, reverse=True)) if each.startswith(incomplete)]
    return found or sorted(f"{path}/" if Path(path).is_dir() else path for path in glob(f"{escape(incomplete)}*"))


ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        callback=find_model,
        autocompletion=completed,
        help="A model.safetensors or model-N.safetensors, the folder of a run that made one model, or `latest`: the "
        "newest few-step student below --outputs, made for --steps where they are given, else of 4 steps where there "
        "is one.",
    ),
]
# Read by `find_model` alone: eager, so that it is there when MODEL is read.
Outputs = Annotated[Path, typer.Option(is_eager=True, help="Where `latest` looks for runs.")]


def latest_student(outputs: Path, steps: int | None = None) -> Path:
    """The student of the newest run of any data set that has finished few-step students.

    Args:
        steps: the newest that was made for so many; None for the one of 4 steps, or else of the most, of its run.

    Raises:
        ValueError: there is none; says what there is.
    """
    from fewstep.artifacts.lineage import student_runs
    from fewstep.artifacts.model_file import read_card
    from fewstep.artifacts.run_folder import made_at, rung_file

    datasets = [folder.name for folder in sorted(outputs.glob("*/"))]
    if steps is None:
        newest = (next(student_runs(outputs, dataset), None) for dataset in datasets)
        found = [models for models in newest if models is not None]
    else:
        found = [models for dataset in datasets for models in student_runs(outputs, dataset)]
    if not found:
        raise ValueError(
            f"MODEL={LATEST} is the newest few-step student below {outputs}, and there is none; `python train.py` "
            "makes some"
        )
    found.sort(key=lambda models: made_at(models[0].parent), reverse=True)
    if steps is None:
        preferred = found[0][0].with_name(rung_file(PREFERRED_STEPS))
        return preferred if preferred in found[0] else found[0][0]
    made: list[str] = []
    for path in (path for models in found for path in models):
        sampling = read_card(path).sampling
        if sampling.is_made_for(steps):
            return path
        made.append(f"{path} ({', '.join(map(str, sampling.steps))})")
    listed = "; ".join(made[:MOST_LISTED]) + (f"; {len(made) - MOST_LISTED} more" if made[MOST_LISTED:] else "")
    raise ValueError(f"no student below {outputs} is made for {steps} steps; there are (steps in brackets) {listed}")
