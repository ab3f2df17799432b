"""The objects of a stage, built from its settings. The only place where classes are found by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_object, instantiate
from lightning.pytorch.callbacks import Callback, Checkpoint, GradientAccumulationScheduler
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from omegaconf import OmegaConf

from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.data.identify import identify
from fewstep.data.labels import LABEL_FILES, OWN, relabelled
from fewstep.diffusion.guidance import log_snr_interval
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.sampling import Sampling
from fewstep.distributed.collectives import main_process_first
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.methods.base import Method, Phase
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.student_settings import StudentSettings
from fewstep.methods.training import RoleTraining, Training
from fewstep.networks import Denoiser
from fewstep.networks.memory import to_channels_last
from fewstep.runs.advice import explained
from fewstep.runs.config import Settings
from fewstep.runs.overrides import conf_folder, path_named, quoted_value
from fewstep.system.seeds import seed_for
from fewstep.system.stored import reason_of
from fewstep.system.validation import build, checked, checked_arguments
from fewstep.training.settings import TrainerSettings
from fewstep.training.students import AnySchedule, clip_teacher, student_of, teacher_of

REFERENCE_CACHE = ".reference"  # below outputs: trained feature extractors, and features that took long to compute


def build_method(stage: Mapping[str, Any]) -> Method:
    """The method of a stage's settings.

    Raises:
        ValueError: a setting that the method does not have, or a value that it refuses.
    """
    if not isinstance(target := stage.get("_target_"), str) or not issubclass(method := get_class(target), Method):
        raise ValueError(f"stage._target_ must be the path of a subclass of fewstep.methods.Method, got {target!r}")
    values = {key: value for key, value in stage.items() if key != "_target_"}
    if not isinstance(training := values.get("training"), dict):
        raise ValueError(f"stage.training must be a group of settings, got {training!r}")
    made = build(method, values | {"training": build_training(training)}, "stage")
    known = {*made.roles, *made.optional_roles}
    if unknown := sorted({*made.training.roles} - known):
        raise ValueError(
            f"stage.training.roles.{unknown[0]} is of no network that this method trains, which are "
            f"{', '.join(sorted(known))}"
        )
    for role in made.roles:
        made.training.of_role(role)  # refuses one without settings
    return made


def build_training(settings: Mapping[str, Any]) -> Training:
    """The training of a stage; its optimiser and its decay are `_partial_` in the settings.

    Raises:
        ValueError: a setting that there is not, or a value that is refused.
    """
    values = {key: value for key, value in settings.items() if key != "_target_"}
    for key in ("optimizer", "decay"):
        if isinstance(values.get(key), dict):
            made = instantiated(values[key], f"stage.training.{key}")
            # Hydra's own partial looks at its target again in every call, 0.8 ms; the decay is called in every step.
            values[key] = partial(made.func, *made.args, **made.keywords) if isinstance(made, partial) else made
    if callable(values.get("optimizer")):
        check_optimizer(values["optimizer"])
    if isinstance(roles := values.get("roles"), dict):
        own = {role: each for role, each in roles.items() if isinstance(each, dict)}
        values["roles"] = roles | {role: build(RoleTraining, own[role], f"stage.training.roles.{role}") for role in own}
    return build(Training, values, "stage.training")


def instantiated(settings: Any, group: str, given: Mapping[str, Any] | None = None) -> Any:
    """What `_target_` names, called with its settings, each validated first; with `_partial_` it waits for the rest.

    Args:
        given: arguments that are no settings.

    Raises:
        ValueError: a setting that there is not, or of another type.
    """
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    if not isinstance(target, str):
        raise ValueError(f"{group}._target_ must be the path of a class or a function, got {target!r:.80}")
    called = get_object(target)
    nested = {key for key, value in settings.items() if isinstance(value, Mapping) and "_target_" in value}
    plain = {key: value for key, value in settings.items() if key not in (*nested, "_target_", "_partial_")}
    given = given or {}
    waits = [*signature(called).parameters] if settings.get("_partial_") else []
    checked_arguments(called, plain, group, given=[*nested, *given, *waits])
    return instantiate(settings, _convert_="all", **given)


def check_optimizer(optimizer: Callable[..., Any]) -> None:
    """Make one for a single weight, so that values that it refuses are met before training.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=1e-3)
    except Exception as error:  # of any type: torch checks little
        raise ValueError(f"stage.training.optimizer cannot be used: {reason_of(error)}") from error


def build_plan(stage: Mapping[str, Any], trainer: TrainerSettings) -> EvaluationPlan:
    """The evaluation's plan, its images capped by trainer.max_images."""
    values = {key: value for key, value in stage.items() if key not in ("name", "_target_", "models")}
    plan = build(EvaluationPlan, values, "stage")
    return replace(plan, num_images=min(plan.num_images, trainer.max_images or plan.num_images))


def build_data(settings: Settings, batch_size: int, stream: str) -> Data:
    """The data set.

    Raises:
        ValueError: a setting that it does not have, or of another type, or files that are not there.
    """
    return data_from(settings.values["dataset"], batch_size, stream)


def data_from(dataset: Mapping[str, Any], batch_size: int, stream: str) -> Data:
    """The data set of the group's settings; see `build_data`."""
    constructor, labels = get_class(dataset["_target_"]), checked(dataset.get("labels", OWN), str, "dataset.labels")
    values = {key: value for key, value in dataset.items() if key not in ("name", "_target_", "labels")}
    if reads_labels := "labels" in signature(constructor).parameters:
        values["labels"] = labels
    data = build(constructor, values | {"batch_size": batch_size, "stream": stream}, "dataset")
    return data if reads_labels and Path(labels).suffix in LABEL_FILES else relabelled(data, labels)


def data_of(name: str, settings: Sequence[str], batch_size: int) -> Data:
    """The data set of conf/dataset/NAME.yaml by its name alone, with `settings` of it changed, like "size=32".

    Raises:
        ValueError: there is no folder conf, neither beside the source nor here, or `name` is that of files; see also
            `build_data`.
    """
    if (path := path_named(name)) is not None:
        raise identify(path).error(path, command="fewstep data check")
    return data_from(dataset_settings(name, settings), batch_size, "data")


def dataset_settings(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Those of conf/dataset/NAME.yaml with `settings` of it changed."""
    overrides = [quoted_value(each) for each in (f"dataset={name}", *(f"dataset.{setting}" for setting in settings))]
    with explained(overrides), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", overrides)
    return cast(dict[str, Any], OmegaConf.to_container(config.dataset, resolve=True))


def build_evaluator(settings: Settings) -> Evaluator:
    """What judges samples of the data set; what the main process converts or trains is there when the others look."""
    data = main_process_first(lambda: build_data(settings, 1, "facts"))
    cache = settings.outputs / REFERENCE_CACHE
    return main_process_first(lambda: Evaluator.of(data, settings.trainer.features, cache))


def build_network(settings: Settings, facts: DataFacts, *, guidance_input: bool = False) -> Denoiser:
    """A fresh network for the data's shape and classes, on torch's default device."""
    torch.manual_seed(seed_for(settings.seed, settings.name, "init"))
    model: dict[str, Any] = settings.values["model"]
    given: dict[str, Any] = {"shape": list(facts.shape), "num_classes": facts.num_classes}
    if facts.text is not None:
        given |= {"tokens": facts.text.tokens, "features": facts.text.features}
    if facts.state is not None:
        given["features"] = facts.state
    if guidance_input:
        given["guidance_input"] = True
    network = instantiated(model["network"], "model.network", given)
    native = model.get("native_schedule")
    native = None if native is None else instantiated(native, "model.native_schedule")
    return Denoiser(network, model["prediction"], native)


def build_fresh_student(settings: Settings, data: Data, *, guidance_input: bool) -> Denoiser:
    """A network to train from nothing, which knows the embedding of the empty prompt where there are prompts."""
    denoiser = build_network(settings, data.facts, guidance_input=guidance_input)
    if data.facts.text is not None:
        assert data.empty_prompt is not None, "data with prompts have the empty one"
        denoiser.network.get_buffer("empty_prompt").copy_(data.empty_prompt)
    return denoiser


def schedule_of(settings: Settings, denoiser: Denoiser) -> AnySchedule:
    """The schedule of a student of this network: the network's native one if it has one, else `schedule`.

    On the native schedule a student of Stable Diffusion is evaluated at no noise that its teacher has not seen, and
    sampling starts, as with every sampler of such models, from pure noise where alpha is still 0.068: a bias of the
    mean of about alpha times it (Lin et al. 2024, section 3). zero_terminal_snr=true puts the student on `schedule`,
    which ends without signal: its teacher's x at the last timestep then stands for all that is noisier. An eps student
    there divides by that last alpha; stage.prediction=v makes one that does not.
    """
    native = denoiser.native_schedule
    return settings.schedule if native is None or settings.values["zero_terminal_snr"] else native


def build_student(
    settings: Settings,
    method: Method,
    phase: Phase,
    parent: Denoiser,
    guidance: GuidanceRange | None,
    *,
    is_first: bool,
    stream: str,
) -> Denoiser:
    """A student that starts as its parent; see `student_of`."""
    return student_of(
        method,
        phase,
        parent,
        guidance,
        settings.schedule,
        is_first=is_first,
        stream=stream,
        init=(settings.seed, settings.name, "init"),
        gradient_checkpointing=settings.trainer.gradient_checkpointing,
        channels_last=settings.trainer.channels_last,
    )


def build_teacher(
    settings: Settings, method: Method, phase: Phase, denoiser: Denoiser, sampling: Sampling, facts: DataFacts
) -> Denoise:
    """The frozen parent as the method's teacher; see `teacher_of`."""
    if settings.trainer.channels_last:
        to_channels_last(denoiser.network)
    return teacher_of(method, phase, denoiser, sampling, schedule_of(settings, denoiser), facts)


def build_exact_teacher(settings: Settings, method: Method, data: Data) -> Denoise:
    """The closed-form guided teacher.

    Raises:
        ValueError: the data have none, or the method needs a trained one.
    """
    if data.exact is None:
        raise ValueError(
            f"teacher=exact needs data with a closed form, and {data.facts.name} has none; use dataset=mixture"
        )
    if any(phase.sampling.is_combined for phase in method.phases()):
        raise ValueError(
            "stage.progressive.variant=two_student distils a trained teacher, and teacher=exact is none; use "
            "teacher=null or stage.progressive.variant=joint"
        )
    if isinstance(method, StudentSettings) and method.adapter is not None:
        raise ValueError(
            "stage.adapter=lora adds to a teacher's weights, and teacher=exact has none; use stage.adapter=null"
        )
    interval, facts, parent = log_snr_interval(settings.schedule, method.interval), data.facts, method.parent()
    assert parent is not None, "a method of a teacher has a parent"
    assert parent.teacher is not None, "a method of an exact teacher may have a trained one"
    teacher = parent.teacher.guided(data.exact.denoise, facts.num_classes, interval, facts.styles)
    return clip_teacher(method, teacher, facts)


def build_callbacks(trainer: TrainerSettings) -> list[Callback]:
    """The callbacks that trainer.callbacks names, made anew for each phase.

    Raises:
        ValueError: one that cannot be made, or would write checkpoints beside the run's own or accumulate gradients.
    """
    made = [instantiate(dict(each), _convert_="all") for each in trainer.callbacks]
    for each in made:
        if not isinstance(each, Callback) or isinstance(each, Checkpoint):
            raise ValueError(
                f"trainer.callbacks must be callbacks of Lightning by their _target_, got {type(each).__name__}; "
                "checkpoints are the run's own, every trainer.checkpoint_seconds"
            )
        if isinstance(each, GradientAccumulationScheduler):
            raise ValueError(
                "trainer.callbacks must not change how batches are accumulated, got GradientAccumulationScheduler; use "
                "trainer.accumulate_grad_batches"
            )
    return made


def build_profiler(trainer: TrainerSettings, folder: Path) -> Profiler | None:
    """The profiler that trainer.profiler names, which writes to `folder`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(trainer.profiler, str):
        kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
        return kinds[trainer.profiler](dirpath=folder, filename="profile")
    if trainer.profiler is None:
        return None
    if not isinstance(made := instantiate(dict(trainer.profiler), _convert_="all"), Profiler):
        raise ValueError(f"trainer.profiler must be a profiler of Lightning by its _target_, got {type(made).__name__}")
    return made


def phase_training(training: Training, phase: Phase, trainer: TrainerSettings) -> Training:
    """The training of one phase, its budget capped by trainer.max_images."""
    images = round(training.images * phase.budget)
    images = trainer.capped(images, training.batch_size)
    return replace(training, images=images, batch_size=min(training.batch_size, images))


def evaluation_budget(
    method: Method, phase: Phase, per_image: float, trainer: TrainerSettings, *, spent: float = 0
) -> Training:
    """The training of one phase with its share of `training.evaluations`, of which an image costs `per_image`.

    `spent` are those that the phase took before it trains.
    """
    assert method.training.evaluations is not None, "a budget in evaluations"
    of_all = method.training.evaluations / sum(each.budget for each in method.phases()) - spent / phase.budget
    training = replace(method.training, images=max(method.training.batch_size, round(of_all / per_image)))
    return phase_training(training, phase, trainer)
