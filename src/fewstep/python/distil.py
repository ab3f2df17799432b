"""fewstep.distil: a teacher, data and a method in, a student of few steps out."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from math import nan
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from fewstep.data.batch import Batch, as_batch
from fewstep.data.batches import Data, check_examples
from fewstep.data.facts import DataFacts
from fewstep.data.noise import NoiseData
from fewstep.diffusion.prediction import PredictionKind
from fewstep.inference.model import Model
from fewstep.methods.base import Method
from fewstep.methods.guidance import Guidance
from fewstep.python.module import Distillation
from fewstep.python.teachers import Teacher, opened, started_from
from fewstep.runs.pairs import Making, open_pairs
from fewstep.system.files import tensor_digest
from fewstep.system.limits import MOST_STEPS, require_count, require_seed
from fewstep.system.seeds import seed_for
from fewstep.training.callbacks.progress import Progress
from fewstep.training.loop import NoProfiler, quiet_lightning

ANY_W = (0.0, 4.0)  # of a student whose teacher is guided by two evaluations: that of conf/stage/guidance.yaml
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "profiler": NoProfiler(),
}

Loader = Iterable[Any]
"""Examples, (examples, labels) or `Batch`es, again from its start as often as it is asked: a DataLoader, a list."""


def distil(
    teacher: Teacher,
    data: Data | Loader | None = None,
    *,
    method: Method,
    steps: int | None = None,
    w: float | tuple[float, float] | None = None,
    facts: DataFacts | None = None,
    prediction: PredictionKind = "v",
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Model:
    """Distil a teacher into a student of few steps, by any method; all its phases, one after the other.

    A guided teacher, of two evaluations a step, is first made a guided student of one where the method needs one, with
    the same budget. A method without a teacher, like `fewstep.methods.Teacher`, trains the network itself. The same
    arguments make the same student, as far as the data come in the same order.

    Args:
        teacher: a model file, a fewstep model, or a network of your own, see `fewstep.as_model`.
        data: what the student trains on; None for a method that needs none.
        method: with its settings; its `training` has the budget, of each phase. The batch size is that of `data`.
        steps: of the student, where the method makes several or can make others; None for the method's last.
        w: guidance weights that the student is made for, a range or one; None for the teacher's range, or 0 to 4.
        facts, prediction: of a network of your own, see `fewstep.as_model`.
        trainer: arguments of lightning.Trainer, like {"accelerator": "gpu", "precision": "bf16-mixed"}.
        seed: of all random numbers but the data's.

    Raises:
        ValueError: one line that says what to change. NonFiniteLossError: training has diverged.
    """
    require_seed(seed)
    if not isinstance(method, Method):
        raise ValueError(f"method must be a method with its settings, like fewstep.methods.Tract(), got {method!r}")
    model, trainer = opened(teacher, facts, prediction), trainer or {}
    method = method if steps is None else method.with_steps(require_count(steps, "steps", most=MOST_STEPS))
    if method.training.evaluations is not None:
        raise ValueError("a budget in evaluations is of python train.py; give training.images")
    quiet_lightning()
    gpus = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=gpus), tempfile.TemporaryDirectory() as folder:
        method = with_batch_size(method, data, model.card.data, trainer)
        model, chain = chain_from(model, method, w)
        for each in chain:
            for number, phase in enumerate(each.phases()):
                module = Distillation(model, method=each, number=number, seed=seed)
                loader = batches_for(module, data, model, seed, Path(folder) / f"{each.name}-{number}")
                torch.manual_seed(seed_for(module.stream, "loader"))
                fit(module, loader, trainer)
                model = module.model
                if each is chain[-1] and steps is not None and steps in phase.sampling.steps:
                    break
    return model


def with_batch_size(method: Method, data: Data | Loader | None, facts: DataFacts, trainer: Mapping[str, Any]) -> Method:
    """The method for the batches of these data, the first of which is looked at.

    Raises:
        ValueError: there are none, or they contradict `facts`.
    """
    if data is None:
        if method.inputs == "data":
            raise ValueError(f"{type(method).__name__} trains on data: give a DataLoader of (examples, labels)")
        return method
    if isinstance(data, Iterator):
        raise ValueError("data must be a DataLoader, a list or the like, which begins again each epoch, no iterator")
    given = data.rows(0) if isinstance(data, Data) else next(iter(data), None)
    if given is None:
        raise ValueError(
            "data must give a batch, and give none; drop_last leaves out those below a loader's batch_size"
        )
    first = as_batch(given)
    check_examples(facts, "the first batch", Batch(first.x, first.label))
    parts = 1 if isinstance(data, Data) else int(trainer.get("accumulate_grad_batches", 1))
    size = len(first.x) * parts
    return replace(method, training=replace(method.training, batch_size=size, images=max(size, method.training.images)))


def batches_for(module: Distillation, data: Data | Loader | None, parent: Model, seed: int, folder: Path) -> Any:
    """What a phase trains on: the data, noise, or pairs that its teacher makes into `folder`."""
    facts, batch_size = parent.card.data, module.training_plan.batch_size
    if module.method.inputs == "data":
        return data
    if module.method.inputs == "noise":
        return NoiseData(facts, batch_size=batch_size, stream=module.stream)
    making = Making.of(module, facts, None)
    module.evaluations = making.evaluations
    return open_pairs(
        module,
        making,
        facts=facts,
        conditions=None,
        teacher=tensor_digest(parent.denoiser.state_dict()),
        seed=seed,
        folder=folder,
        batch_size=batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def fit(module: Distillation, loader: Any, trainer: Mapping[str, Any]) -> None:
    """Train one phase by a Trainer of these arguments.

    Raises:
        ValueError: an argument that Lightning's Trainer does not have, or refuses.
    """
    training = module.training_plan
    show = Progress(stage=module.method.name, batch_size=training.batch_size, rung=module.phase.num_steps)
    given = {**QUIET, "max_steps": module.num_steps, "max_epochs": -1, **trainer}
    given["callbacks"] = [show, *as_list(trainer.get("callbacks"))]
    try:
        made = lightning.Trainer(**given)
    except (TypeError, MisconfigurationException) as error:
        raise ValueError(f"trainer= must be arguments of lightning.Trainer: {error}") from error
    if isinstance(loader, list | tuple):  # which Lightning would take for several loaders
        loader = DataLoader(cast(Any, loader), batch_size=None)
    made.fit(module, loader)


def as_list(callbacks: Any) -> list[Any]:
    """Lightning's callbacks: none, one, or several."""
    return [*callbacks] if isinstance(callbacks, list | tuple) else [] if callbacks is None else [callbacks]


def chain_from(model: Model, method: Method, w: float | tuple[float, float] | None) -> tuple[Model, tuple[Method, ...]]:
    """The model that a method starts from, and the methods from there: itself, after `Guidance` where it needs that.

    Raises:
        ValueError: it cannot start from this model, or takes no w.
    """
    wanted, card = method.parent(), model.card
    guided = card.sampling.guidance == "two_evaluations"
    kinds = () if wanted is None else wanted.guidance
    if guided and card.sampling.times is None and "two_evaluations" not in kinds and "input" in kinds:
        low, high = ends(ANY_W if w is None else w)
        return model, (Guidance(w_min=low, w_max=high, training=replace(method.training, roles={})), method)
    model = started_from(model, method)
    own = ANY_W if w is None and guided and needs_weights(method) else w
    return model, (with_weights(method, own),)


def needs_weights(method: Method) -> bool:
    """Whether the method must be told its weights where its parent has no range of them."""
    try:
        method.guidance(None)
    except ValueError:
        return True
    return False


def with_weights(method: Method, w: float | tuple[float, float] | None) -> Method:
    """The method for these guidance weights.

    Raises:
        ValueError: it takes none.
    """
    if w is None:
        return method
    if not {"w_min", "w_max"} <= {field.name for field in fields(method)}:
        raise ValueError(
            f"{type(method).__name__} keeps the weights that its teacher was made for, got w={w}; leave w out"
        )
    low, high = ends(w)
    return replace(method, w_min=low, w_max=high)


def ends(w: float | tuple[float, float]) -> tuple[float, float]:
    """The least and the largest of a range of weights, or the one weight twice.

    Raises:
        ValueError: it is neither.
    """
    try:
        low, high = map(float, w if isinstance(w, tuple | list) else (w, w))
    except (TypeError, ValueError):
        low, high = nan, nan
    if not 0 <= low <= high:
        raise ValueError(f"w must be one weight or (least, largest), each at least 0, got {w}")
    return low, high
