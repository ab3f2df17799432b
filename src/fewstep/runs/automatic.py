"""Settings that are `auto`, replaced by what `defaults.py` says for the data and the device before anything is run."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fewstep.data.facts import DataFacts
from fewstep.distributed.collectives import main_process_first, on_main_process
from fewstep.runs.build import build_data, build_method
from fewstep.runs.config import EVALUATE, Settings
from fewstep.runs.defaults import (
    ANY,
    COST,
    Backbone,
    Budgets,
    Choice,
    Device,
    budgets_of,
    choose,
    network_of,
    training_of,
    whole,
)
from fewstep.system.validation import build

AUTO, HALF = "auto", "half"
SIZE = "size"  # of dataset
BACKBONE = "backbone"  # of model.network, where model=auto
JUDGED = "num_images"  # of the evaluation
PARTS = ("learning_rate", "ema_decay")  # settings of a training that are no whole numbers
SHARED = {"teacher": "teacher", "guidance": "guidance"}  # stages with budgets in images; all others share evaluations


@dataclass(frozen=True)
class Wishes:
    """The settings of model=auto as they were given.

    Raises:
        ValueError: one of another type or outside its range.
    """

    backbone: Backbone | None = None
    width: int | None = None
    num_blocks: int | None = None
    patch_size: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        if min(n for n in (self.width, self.num_blocks, self.patch_size, 1) if n is not None) < 1:
            raise ValueError(
                f"model.network needs width, num_blocks and patch_size of at least 1, got {self.width}, "
                f"{self.num_blocks} and {self.patch_size}"
            )

    @classmethod
    def read(cls, network: Mapping[str, Any]) -> "Wishes":
        """Those that are not auto."""
        return build(cls, {key: value for key, value in network.items() if value != AUTO}, "model.network")


def announced(settings: Settings) -> Settings:
    """`fitted`, printing what was chosen."""
    found, lines = fitted(settings)
    on_main_process(lambda: [print(line, flush=True) for line in lines])
    return found


def fitted(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings without `auto`, and a line for each thing that was chosen; the data are opened if there is any.

    Raises:
        ValueError, OSError: the data are not there, or no rule is for them.
    """
    if not is_open(settings):
        return settings, []
    data = main_process_first(lambda: build_data(settings, 1, "facts"))
    return fitted_to(settings, data.facts, ANY if data.num_examples is None else data.num_examples)


def is_open(settings: Settings) -> bool:
    """Whether any setting is still to be chosen."""
    of_stages = [value for stage in stages_of(settings.values["stage"]) for value in open_values(stage)]
    return settings.values["dataset"].get(SIZE) == AUTO or is_auto(settings.values["model"]) or AUTO in of_stages


def open_values(stage: Mapping[str, Any]) -> list[Any]:
    """The settings of a stage that may be auto."""
    return [stage.get(JUDGED), *stage.get("training", {}).values()]


def is_auto(model: Mapping[str, Any]) -> bool:
    """Whether the network is to be chosen: its settings are those of model=auto."""
    return BACKBONE in model["network"]


def stages_of(stage: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The stages of a pipeline, or the stage itself."""
    within = [value for value in stage.values() if isinstance(value, dict) and "_target_" in value]
    yield from within if "_target_" not in stage else [stage]


def fitted_to(settings: Settings, facts: DataFacts, images: int) -> tuple[Settings, list[str]]:
    """The settings for `images` of these facts.

    Raises:
        ValueError: no rule is for such data, or a setting of model=auto cannot be.
    """
    values, lines = copy.deepcopy(settings.values), list[str]()
    device: Device = values["trainer"]["accelerator"]
    dataset, model = values["dataset"], values["model"]
    shape = " x ".join(map(str, (*facts.shape[1:], facts.shape[0])))
    which = f"{shape}, {images:,} images, {device}" if images != ANY else f"{shape}, {device}"
    if dataset.get(SIZE) == AUTO:
        dataset[SIZE] = facts.shape[-1]
        lines.append(f"dataset.size=auto: {dataset[SIZE]} pixels")
    if is_auto(model):
        if facts.embedding is not None or facts.degraded is not None:
            raise ValueError(
                f"model=auto is for data with classes, and {facts.name} has other conditions; choose model="
            )
        choice = chosen(Wishes.read(model["network"]), facts, images, device)
        for stage in stages_of(values["stage"]):
            if isinstance(stage.get("student"), dict):
                stage["student"] = smaller(stage["student"], choice, facts)
        kept = {key: value for key, value in model.items() if key not in ("smaller", "toy")}
        values["model"] = kept | {"network": network_of(choice, facts.shape)}
        lines.append(f"model=auto: {choice.title}: {which}")
    budgets = budgets_of(facts.shape, images, device)
    spent = [fit_stage(stage, budgets) for stage in stages_of(values["stage"])]
    if any(spent):
        lines.append(f"images=auto: {', '.join(filter(None, spent))}")
    return settings.with_values(values), lines


def chosen(wishes: Wishes, facts: DataFacts, images: int, device: Device) -> Choice:
    """The network by the rules, with what was wished for in its place."""
    own = {key: value for key, value in asdict(wishes).items() if value is not None}
    return replace(choose(facts.shape, images, device, wishes.backbone), **own)


def smaller(changes: Mapping[str, Any], choice: Choice, facts: DataFacts) -> dict[str, Any]:
    """stage.student in the words of model=auto, as arguments of the network; `half` of a number of the teacher's.

    Raises:
        ValueError: a setting that model=auto does not have.
    """
    halves = {key: max(1, getattr(choice, key) // 2) for key, value in changes.items() if value == HALF}
    wishes = build(Wishes, {**changes, **halves}, "stage.student")
    own = {key: value for key, value in asdict(wishes).items() if value is not None}
    before, after = network_of(choice, facts.shape), network_of(replace(choice, **own), facts.shape)
    return {key: value for key, value in after.items() if before.get(key) != value}


def fit_stage(stage: dict[str, Any], budgets: Budgets) -> str:
    """Put a budget in the place of auto in a stage's settings; what it is, in words, or "" where nothing was auto."""
    if stage.get(JUDGED) == AUTO:
        stage[JUDGED] = budgets.judged
    training = stage.get("training")
    if stage["name"] == EVALUATE or not isinstance(training, dict) or AUTO not in training.values():
        return ""
    name, words, learning_rate = stage["name"], "", budgets.learning_rate
    if training.get("images") != AUTO:
        images = training["images"]
    elif name in SHARED:
        images = getattr(budgets, SHARED[name])
        words = f"{name} {images:,} images"
    else:
        images = whole(budgets.method / COST["method"] / num_phases(stage))
        words = f"{name} {budgets.method:,} evaluations"
        if training["evaluations"] is None:
            training["evaluations"] = budgets.method
    own = training_of(images, learning_rate if name in SHARED else learning_rate / 2, budgets.batch_size)
    training.update({key: own[key] for key, value in training.items() if value == AUTO})
    for role in roles_of(training):
        role.update({key: training[key] for key, value in role.items() if value == AUTO})
    return words


def roles_of(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each other trained network, some of which follow those of the training."""
    roles = training.get("roles")
    return [role for role in roles.values() if isinstance(role, dict)] if isinstance(roles, dict) else []


def num_phases(stage: Mapping[str, Any]) -> float:
    """The phases of a stage's method, each counted as often as its share of the budget says."""
    tried = copy.deepcopy(dict(stage))
    for settings in (tried["training"], *roles_of(tried["training"])):
        settings.update({key: 0.5 if key in PARTS else 1 for key, value in settings.items() if value == AUTO})
    return sum(phase.budget for phase in build_method(tried).phases())
