"""Who a model comes from: the newest finished model that fits, or the one that was named."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fewstep.artifacts.model_file import ModelCard, Parent, Role, Sampling, load_model
from fewstep.artifacts.run_folder import CONFIG, MODEL, made_at, rung_file, settings_in
from fewstep.data.facts import DataFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.inference.model import Model
from fewstep.networks import Denoiser
from fewstep.networks.denoiser import arguments_of
from fewstep.system.files import sha256_of

STAGE_OF: dict[Role, str] = {
    "teacher": "teacher",
    "guided": "guidance",
    "progressive": "progressive",
    "encoder": "encoder",
}

Compatibility = Callable[[Model], str | None]
"""Why a model does not fit, or None if it does."""
ScheduleOf = Callable[[Denoiser], CosineSchedule | BetaSchedule]
"""What a student of a network lives on."""


@dataclass(frozen=True)
class Rung:
    """The rung from which a ladder goes on, if it does not start from a model of the parent's role."""

    role: Role
    steps: int
    sampling: Sampling = "deterministic"
    is_guided_outside: bool = False

    def chain(self) -> str:
        """The kind of chain, in the words of the settings."""
        return f"{self.role}, stage.sampler={self.sampling}" + (
            ", stage.variant=two_student" if self.is_guided_outside else ""
        )


def compatibility(
    role: Role,
    facts: DataFacts,
    student: Denoiser,
    schedule_of: ScheduleOf,
    ladder: Rung | None = None,
    *,
    any_size: bool = False,
) -> Compatibility:
    """Whether a model can be the parent of this run's student: same data, network, prediction and schedule.

    A student is copied as it is: where it was named, `any_size`, its network need not be that of the settings.
    A model with a clock, foreign or of text, brings its own network and prediction, which its student copies. It must
    have `role`, or be the rung from which the ladder goes on.
    """
    ours = arguments_of(student.network)

    def reason(model: Model) -> str | None:
        card, network = model.card, model.denoiser.network
        own = arguments_of(network)
        rung = None
        if ladder and card.role == ladder.role and card.num_steps:
            rung = Rung(card.role, card.num_steps, card.sampling, card.is_guided_outside)
        if card.data != facts:
            return f"it makes {card.data.name} {card.data.shape}, this run {facts.name} {facts.shape}"
        if ladder and rung and rung.chain() != ladder.chain():
            return f"it is a rung of another chain ({rung.chain()}) than this run's ({ladder.chain()})"
        if card.role != role and (rung is None or rung != ladder):
            made = f" of {card.num_steps} steps" if card.num_steps else ""
            or_rung = f" or the rung of {ladder.steps} steps, where stage.ladder begins" if ladder else ""
            return f"it is a {card.role} model{made}, and this stage needs a {role} one{or_rung}"
        if card.clock is None and card.prediction != student.prediction and card.role == "teacher":
            return f"it predicts {card.prediction}, model.prediction is {student.prediction}"
        same = type(network) is type(student.network) and own | {"guidance_input": False} == ours
        if card.clock is None and not same and not (any_size and card.role != "teacher"):
            hint = "" if card.role == "teacher" else "; a smaller student is taken where teacher=PATH names it"
            return f"its network is another than model= says, and a student copies its teacher's{hint}"
        schedule = schedule_of(model.denoiser)
        if card.schedule != schedule and (card.clock is None or card.role != "teacher"):
            return f"its schedule is {card.schedule}, this run's {schedule}"
        return None

    return reason


def is_guided(parent: str | Path) -> bool:
    """Whether a pipeline's parent is a guided student, with which it begins at its ladder."""
    return Path(parent).suffix == ".safetensors" and load_model(Path(parent))[1].role == "guided"


def models_in_folder(folder: Path) -> list[Path]:
    """The finished models of a run folder, most steps first."""
    rungs = [p for p in folder.glob(rung_file(0).replace("0", "*")) if p.stem.removeprefix("model-").isdigit()]
    whole = [folder / MODEL] if (folder / MODEL).is_file() else []
    return whole + sorted(rungs, key=lambda p: -int(p.stem.removeprefix("model-")))


def find_newest(outputs: Path, dataset: str, role: Role, compatibility: Compatibility) -> Path:
    """The newest model file of that role that fits; imported teachers are used where they are named.

    Raises:
        ValueError: there is none; says why those that are there do not fit, and the command that makes one.
    """
    refused = ""
    folders = (outputs / dataset / STAGE_OF[role]).glob("*/")
    for folder in sorted((f for f in folders if not f.name.startswith("imported-")), key=made_at, reverse=True):
        for path in models_in_folder(folder):
            try:
                reason = compatibility(Model(*load_model(path)))
            except ValueError as error:  # damaged: an older one may do
                reason = str(error)
            if reason is None:
                return path
            refused = refused or f" (the newest, {path}, does not fit: {reason})"
    raise ValueError(
        f"this stage needs a {role} model below {outputs / dataset / STAGE_OF[role]}, and there is none{refused}; make "
        f"one with `python train.py stage={STAGE_OF[role]} dataset={dataset}` or name one with teacher=PATH"
    )


def find_newest_ladder(outputs: Path, dataset: str) -> list[Path]:
    """The rungs of the newest ladder that has come down to its last rung, most steps first.

    Raises:
        ValueError: there is none.
    """
    parent = outputs / dataset / STAGE_OF["progressive"]
    for folder in sorted((config.parent for config in parent.glob(f"*/{CONFIG}")), key=made_at, reverse=True):
        ladder = settings_in(folder).get("stage", {}).get("ladder", [])
        rungs = [folder / rung_file(num_steps) for num_steps in ladder[1:]]
        if rungs and all(rung.is_file() for rung in rungs):
            return rungs
    raise ValueError(
        f"evaluation needs a finished ladder below {parent}, and there is none; make one with `python train.py "
        f"stage=progressive dataset={dataset}` or name a model or folder with teacher=PATH"
    )


def resolve_parent(path: Path, compatibility: Compatibility) -> Path:
    """The model file at `path`, or the only one of the run folder at `path`.

    Raises:
        ValueError: it does not fit, or the folder holds none or several.
    """
    if path.is_dir():
        found = models_in_folder(path)
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise ValueError(f"teacher={path} must hold one model, and holds {names}; name the file")
        path = found[0]
    reason = compatibility(Model(*load_model(path)))
    if reason is not None:
        raise ValueError(f"teacher={path} does not fit: {reason}")
    return path


def lineage_of(path: Path, card: ModelCard, child: Path) -> tuple[Parent, ...]:
    """The ancestors that a child in the folder `child` has if its parent is the model at `path`."""
    here = Parent(card.role, os.path.relpath(path, child), sha256_of(path))
    older = (Parent(p.role, os.path.relpath(path.parent / p.path, child), p.sha256) for p in card.parents)
    return here, *older


def ancestors(path: Path, card: ModelCard) -> Iterator[Path]:
    """The files of a model's ancestors, nearest first.

    Raises:
        ValueError: one is gone or was changed.
    """
    for parent in card.parents:
        file = Path(os.path.normpath(path.parent / parent.path))
        if not file.is_file():
            raise ValueError(f"{path} was made from {file}, which is gone; put it back, or evaluate without it")
        if sha256_of(file) != parent.sha256:
            raise ValueError(f"{path} was made from {file}, which has changed since; train the student again")
        yield file
