"""Which model another one is made from: the newest finished one that is compatible, or the one that was named."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.artifacts.model_file import Ancestor, ModelCard, load_model
from fewstep.artifacts.run_folder import CONFIG, MODEL, made_at, products_of, rung_file
from fewstep.diffusion.sampling import GuidanceKind, Sampling
from fewstep.networks import Denoiser
from fewstep.system.files import sha256_of
from fewstep.system.stored import leave_out

Compatibility = Callable[[Denoiser, ModelCard], str | None]
"""Why a model cannot be the parent, or None if it can."""


class ParentKind(NamedTuple):
    """What a model of any number of steps is called, and the stage that makes one."""

    title: str
    stage: str


PARENTS: dict[GuidanceKind, ParentKind] = {
    "two_evaluations": ParentKind("teacher", "teacher"),
    "three_evaluations": ParentKind("teacher guided by three evaluations (stage.guided_by)", "teacher"),
    "input": ParentKind("guided student", "guidance"),
    "none": ParentKind("model without guidance", "teacher"),
}


def sampling_problem(card: ModelCard, kinds: tuple[GuidanceKind, ...], continues: Sampling | None) -> str | None:
    """Why a model is not sampled as a parent must be, or None."""
    own = card.sampling
    if own == continues or (own.times is None and own.direction == "decode" and own.guidance in kinds):
        return None
    chain = f"sampler {own.sampler}, guidance {own.guidance}, direction {own.direction}"
    steps = "" if own.times is None else f" of {len(own.times)} steps"
    needed = " or a ".join(PARENTS[kind].title for kind in kinds)
    if continues is not None and continues.times is not None:
        needed += (
            f", or a student of {len(continues.times)} steps of its own chain (sampler {continues.sampler}, guidance "
            f"{continues.guidance}), where it begins"
        )
    return f"it is a {card.label} model{steps} ({chain}), and this stage needs a {needed}"


def models_in_folder(folder: Path) -> list[Path]:
    """The finished models of a run folder, most steps first."""
    rungs = [p for p in folder.glob(rung_file(0).replace("0", "*")) if p.stem.removeprefix("model-").isdigit()]
    whole = [folder / MODEL] if (folder / MODEL).is_file() else []
    return whole + sorted(rungs, key=lambda p: -int(p.stem.removeprefix("model-")))


def only_model(folder: Path, argument: str) -> Path:
    """The model of a run folder that was given as `argument`; a ValueError if it holds none or several."""
    models = models_in_folder(folder)
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "none"
        raise ValueError(f"{argument}={folder} must hold one model, and holds {names}; name the file")
    return models[0]


def run_folders(outputs: Path, dataset: str) -> list[Path]:
    """The folders of a data set's runs, newest first; imported teachers are used only where they are named."""
    folders = (config.parent for config in (outputs / dataset).glob(f"*/*/{CONFIG}"))
    return sorted((f for f in folders if not f.name.startswith("imported-")), key=made_at, reverse=True)


def find_newest(outputs: Path, dataset: str, kind: GuidanceKind, compatibility: Compatibility) -> Path:
    """The newest compatible model file.

    Args:
        kind: how such a parent is guided, for the message.

    Raises:
        ValueError: there is none; says why the newest is not, and the command that makes one.
    """
    refused = ""
    what, stage = PARENTS[kind]
    for folder in run_folders(outputs, dataset):
        for path in models_in_folder(folder):
            try:
                reason = compatibility(*load_model(path))
            except (ValueError, OSError) as error:  # damaged: an older one may do
                leave_out(path, error)
                reason = str(error)
            if reason is None:
                return path
            if path.parent.parent.name == stage:
                refused = refused or f" (the newest, {path}, does not fit: {reason})"
    raise ValueError(
        f"this stage needs a {what} below {outputs / dataset}, and there is none{refused}; make one with `python "
        f"train.py stage={stage} dataset={dataset}` or name one with teacher=PATH"
    )


def student_runs(outputs: Path, dataset: str) -> Iterator[list[Path]]:
    """The few-step students of each run that has finished them, newest first, each run's by most steps first."""
    for folder in run_folders(outputs, dataset):
        models = models_in_folder(folder)
        try:
            if not models or not all((folder / product).is_file() for product in products_of(folder)):
                continue
            card = load_model(models[-1])[1]
        except (ValueError, OSError) as error:  # damaged: an older one may do
            leave_out(folder, error)
            continue
        if card.sampling.times is not None and not card.encodes:
            yield models


def find_newest_students(outputs: Path, dataset: str) -> list[Path]:
    """The few-step students of the newest run that has finished them, most steps first.

    Raises:
        ValueError: there is none.
    """
    found = next(student_runs(outputs, dataset), None)
    if found is not None:
        return found
    raise ValueError(
        f"evaluation needs finished few-step students below {outputs / dataset}, and there are none; make some with "
        f"`python train.py stage=progressive dataset={dataset}` or name a model or folder with teacher=PATH"
    )


def resolve_parent(path: Path, compatibility: Compatibility) -> Path:
    """The model file at `path`, or the only one of the run folder at `path`.

    Raises:
        ValueError: it is not compatible, or the folder holds none or several.
    """
    path = only_model(path, "teacher") if path.is_dir() else path
    reason = compatibility(*load_model(path))
    if reason is not None:
        raise ValueError(f"teacher={path} does not fit: {reason}")
    return path


def lineage_of(path: Path, card: ModelCard, child: Path) -> tuple[Ancestor, ...]:
    """The ancestors that a child in the folder `child` has if its parent is the model at `path`."""
    here = Ancestor(card.method, os.path.relpath(path, child), sha256_of(path))
    older = (Ancestor(p.method, os.path.relpath(path.parent / p.path, child), p.sha256) for p in card.parents)
    return here, *older


def ancestors(path: Path, parents: Sequence[Ancestor]) -> Iterator[Path]:
    """The files of the ancestors that a model at `path` names, nearest first.

    Raises:
        ValueError: one is gone or was changed.
    """
    for parent in parents:
        file = Path(os.path.normpath(path.parent / parent.path))
        if not file.is_file():
            raise ValueError(f"{path} was made from {file}, which is gone; put it back, or evaluate without it")
        if sha256_of(file) != parent.sha256:
            raise ValueError(f"{path} was made from {file}, which has changed since; train the student again")
        yield file
