"""plan=true: walk what a run would train, with networks of shapes alone, and try what time and memory allow."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from fewstep.artifacts.model_file import load_model
from fewstep.diffusion.prediction import Denoise
from fewstep.estimate.machine import Machine
from fewstep.estimate.phases import Watching, build_module, fresh_parent, shape_of
from fewstep.estimate.proposal import Proposal, fits, lighter, scaled
from fewstep.estimate.shapes import footprint_of, shapes_only, size, training_examples
from fewstep.estimate.table import Estimate, Row, show
from fewstep.estimate.trial import (
    Trial,
    seconds_of_features,
    seconds_per_evaluation,
    seconds_per_judged_image,
    try_phase,
)
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.extractors import images_to_train_on
from fewstep.evaluation.features import INCEPTION_WEIGHTS
from fewstep.evaluation.own_features import file_for, save, untrained
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.inference.model import Model
from fewstep.methods.base import Method, Phase
from fewstep.networks.memory import denoisers_in
from fewstep.runs.automatic import fitted
from fewstep.runs.build import (
    REFERENCE_CACHE,
    build_data,
    build_evaluator,
    build_plan,
    evaluation_budget,
    phase_training,
)
from fewstep.runs.candidates import candidates_of
from fewstep.runs.composing import composed
from fewstep.runs.config import EVALUATE, EXACT, PIPELINE, Settings
from fewstep.runs.evaluate import check_models, with_ancestors
from fewstep.runs.pairs import Making
from fewstep.runs.parent import find_parent, method_of, open_evaluator
from fewstep.runs.pipeline import Chain, accepts, check_pipeline, models_to_judge, more_models, trained_stages
from fewstep.runs.train import Job, card_of
from fewstep.system.durations import duration
from fewstep.system.hardware import free_disk, free_memory, peak_gpu_memory, peak_memory
from fewstep.teachers.imported import is_foreign

GENERATED = ("cifar10", "imagenet64")  # data sets whose generated files have the true shape
COPIES = 3  # of all images of a cell, in floats: noise, the first cell's samples and this one's


def plan(settings: Settings, arguments: Sequence[str]) -> None:
    """Print what the settings would train, how long that takes and what it needs; nothing is written below outputs.

    Where it takes too long or more memory than there is, the command that would fit is printed with its time.

    Args:
        arguments: of the command, of which the settings are composed.

    Raises:
        ValueError, OSError: what a run would raise before it trains.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    planned, estimate = measured(settings)
    show(estimate)
    if not fits(estimate, settings.trainer.accelerator) and (found := proposal(arguments, settings, planned, estimate)):
        print(found.line, flush=True)


def measured(settings: Settings) -> tuple[Settings, Estimate]:
    """The settings as they are planned, and their estimate."""
    with Console().status("measuring"), TemporaryDirectory(prefix="fewstep-plan-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        planner = Planner(settings, Path(folder))
        estimate = planner.estimate()
        return planner.settings, estimate


def proposal(arguments: Sequence[str], settings: Settings, planned: Settings, estimate: Estimate) -> Proposal | None:
    """The command that would fit in the place of the one that has this estimate, if there is one.

    Args:
        settings: composed of `arguments`. planned: the same without `auto`.
    """
    own = lighter(arguments)
    other = None if settings.name == EVALUATE else composed(own).with_values({"plan": settings.values["plan"]})
    if other is not None and other.values != settings.values:
        try:
            lighter_planned, found = measured(other)
        except ValueError:  # no network of images is for these data
            return scaled(arguments, planned, estimate)
        if found.seconds < estimate.seconds:
            arguments, planned, estimate = own, lighter_planned, found
    if fits(estimate, settings.trainer.accelerator):
        return Proposal(tuple(arguments), estimate.seconds)
    return scaled(arguments, planned, estimate)


class Planner:
    """One plan.

    Args:
        folder: in the place of outputs, wherever something may be written.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.folder, self.outputs = folder, settings.outputs
        is_imported = settings.teacher is not None and is_foreign(settings.teacher)
        self.lookup = {"outputs": str(folder if is_imported else settings.outputs)}  # where parents are looked for
        self.notes: list[str] = []
        self.rows: list[Row] = []
        self.models: list[tuple[Model, Trial]] = []  # of all phases, without weights
        self.stage_models: list[Model] = []  # the last of each stage
        self.parents: list[Path] = []  # files
        self.per_image = self.opening = 0.0  # seconds of the feature extractor: for an image, for the reference
        self.settings = self.with_available_data(settings.with_values({"outputs": str(folder)}))
        self.machine = Machine.of(settings.trainer)

    def with_available_data(self, settings: Settings) -> Settings:
        """Settings of generated data, or of a small feature extractor, where files are not there yet."""
        data: dict[str, Any] = settings.values["dataset"]
        if data["name"] in GENERATED and not (data["generated"] or data.get("cache") or Path(data["root"]).exists()):
            self.notes.append(f"{data['root']} is not there: planned with generated files, without the time to read it")
            generated = {"root": str(self.folder / data["name"]), "generated": True}
            settings = settings.with_values({"dataset": data | generated})
        try:
            self.stand_in_for_features(settings)
            evaluator = build_evaluator(settings)
        except (ValueError, OSError) as error:
            if INCEPTION_WEIGHTS not in str(error):
                return settings  # refused where the data are needed
            self.notes.append(f"{error}; a run stops there. Planned with a small feature extractor, which is faster")
            settings = replace(settings, trainer=replace(settings.trainer, features="patches"))
            evaluator = build_evaluator(settings)
        self.per_image = seconds_per_judged_image(evaluator)
        self.opening += self.per_image * len(evaluator.reference.images)
        return settings

    def stand_in_for_features(self, settings: Settings) -> None:
        """Put an untrained feature extractor where a run would keep the one that it trains first."""
        images = images_to_train_on(build_data(settings, 1, "facts"), settings.trainer.features)
        if images is None:
            return
        kept, here = (file_for(images, outputs / REFERENCE_CACHE) for outputs in (self.outputs, settings.outputs))
        if kept.is_file():
            copyfile(kept, here)
            return
        save(here, *untrained(images))
        self.opening = seconds_of_features(images)
        self.notes.append(f"a feature extractor is trained first, in about {duration(self.opening)}")

    def estimate(self) -> Estimate:
        """The rows of all stages in their order."""
        self.settings, chosen = fitted(self.settings)
        settings, machine = self.settings, self.machine
        if settings.name == PIPELINE:
            self.pipeline()
        elif settings.name == EVALUATE:
            reading = settings.with_values(self.lookup)
            self.evaluation(settings, more_models(reading) or models_to_judge(reading))
        else:
            self.stage(settings)
        return Estimate(
            title=f"stage={settings.name} dataset={settings.dataset_name}: {machine.title}",
            processes=machine.here,
            rows=tuple(self.rows),
            free_memory=free_memory(),
            free_device_memory=free_memory("cuda") if machine.device == "cuda" else 0,
            free_disk=free_disk(self.outputs),
            outputs=self.outputs,
            notes=tuple(dict.fromkeys([*chosen, *self.notes])),
        )

    def pipeline(self) -> None:
        """The stages that a pipeline would train, and its evaluation."""
        settings, chain = self.settings, Chain.begin(self.settings.teacher)
        check_pipeline(settings.with_values(self.lookup))
        for name in trained_stages(settings):
            own = settings.of_stage(name, settings.teacher)
            if self.rows or not chain.skips(method_of(own)):
                self.stage(own)
        if EVALUATE in settings.stages:
            own = settings.of_stage(EVALUATE)
            self.evaluation(own, [*dict.fromkeys([*chain.parents, *self.parents, *more_models(own)])])

    def stage(self, settings: Settings) -> None:
        """A row for each phase of a stage."""
        method = method_of(settings)
        evaluator = open_evaluator(settings, method)
        model = self.parent(settings, method, evaluator)
        facts = evaluator.facts if evaluator else model and model.card.data
        assert facts is not None, "a method has data or a parent"
        job = Job(settings, method, evaluator and evaluator.data, evaluator, facts, self.folder)
        for number, phase in enumerate(method.phases()):
            model = self.phase(job, phase, model, is_first=number == 0)
        assert model is not None, "a method has a phase"
        self.stage_models.append(model)

    def parent(self, settings: Settings, method: Method, evaluator: Evaluator | None) -> Model | None:
        """The newest of the plan's models that fits, or the file that a run would find, or a fresh network."""
        wanted = method.parent()
        for model in reversed(self.stage_models):
            if wanted and accepts(wanted, model.card.sampling):
                return model
        try:
            found = find_parent(settings.with_values(self.lookup), method, evaluator)
        except ValueError as error:
            if settings.teacher not in (None, EXACT) or wanted is None or evaluator is None:
                raise
            self.notes.append(f"planned with a fresh network as the parent of stage {settings.name}: {error}")
            return fresh_parent(settings, evaluator.facts, wanted)
        if found is None:
            return None
        self.parents.append(found)
        return shape_of(*load_model(found))

    def phase(self, job: Job, phase: Phase, parent: Model | None, *, is_first: bool) -> Model:
        """Add the row of a phase; give what it would make."""
        name, machine = job.settings.name, self.machine
        training = phase_training(job.method.training, phase, job.settings.trainer)
        watching = Watching.of(job, phase, training)
        build = partial(build_module, job, phase, parent, is_first=is_first)
        rows, sampled = machine.rows(training.batch_size), machine.part(watching.at_once)
        with shapes_only(machine.device):
            module = build(training)
            found = footprint_of(module, job.facts, rows, job.settings.trainer)
            making = Making.of(module, job.facts, job.settings.trainer.max_images)
            if job.method.training.evaluations is not None:
                per_image = module.evaluations_per_image(training_examples(module, job.facts, 2, machine.device))
                spent = making.evaluations
                training = evaluation_budget(job.method, phase, per_image, job.settings.trainer, spent=spent)
        made = shape_of(module.nets.model, card_of(job, module, parent and parent.card, ()))
        trial = try_phase(job, build, found, machine, rows, sampled)
        if trial.how == "estimated":
            self.notes.append(f"{name} is too large to be tried here: its memory is known from shapes alone")
        snapshots = watching.sampled(phase.sampling) * trial.evaluation + watching.images * self.per_image
        probes = watching.probed(phase.sampling, found.evaluations) * trial.evaluation
        seconds = training.num_steps * trial.update + probes
        made_before = making.evaluations * trial.evaluation / machine.processes  # the pairs, where it trains on them
        self.models.append((made, trial))
        self.add(
            Row(
                name=name if phase.num_steps is None else f"{name} {phase.num_steps}",
                how=trial.how,
                memory=trial.memory,
                device_memory=trial.device_memory,
                seconds=machine.slowdown * (seconds + made_before + snapshots / machine.processes),
                disk=found.model_bytes + found.checkpoint_bytes * is_first + making.bytes(job.facts),
                checkpoint=found.checkpoint_bytes,
                parameters=found.parameters,
                images=training.num_steps * training.batch_size,
                batch_size=training.batch_size,
                updates=training.num_steps,
                seconds_per_update=machine.slowdown * trial.update,
            )
        )
        return made

    def add(self, row: Row) -> None:
        """Add a row; the first one has the time to judge the reference."""
        self.rows.append(replace(row, seconds=self.opening + row.seconds))
        self.opening = 0.0

    def evaluation(self, settings: Settings, files: Sequence[Path]) -> None:
        """Add the row of the evaluation of these files, their ancestors and the models of the plan."""
        evaluator, trainer, device = build_evaluator(settings), settings.trainer, self.machine.device
        plan, models, seconds = build_plan(settings.stage, trainer), with_ancestors(files), dict[int, float]()
        facts, batch = evaluator.facts, self.machine.part(min(plan.batch_size, plan.num_images))
        if models:
            check_models(models, files, evaluator)
        for model in models.values():
            per_evaluation = seconds_per_evaluation(model.to(device).denoiser, facts, batch, trainer)
            seconds[id(model.denoiser)] = per_evaluation
        for model, trial in self.models:
            seconds[id(model.denoiser)] = trial.evaluation
            models[Path(str(len(models)))] = model
        candidates = candidates_of(models, plan, evaluator.exact, "meta")
        cells, sampling = 0, 0.0
        for candidate in candidates:
            weights = len([w for w in plan.weights if candidate.weights is None or w in candidate.weights])
            cells += weights * len(candidate.steps)
            for denoise, evaluated in evaluations_of(candidate, plan):
                sampling += weights * evaluated * sum(seconds[id(each)] for each in denoisers_in(denoise))
        judging = cells * plan.num_images * self.per_image
        weights = sum(size(model.denoiser.state_dict().values()) for model in models.values())
        kept = COPIES * 4 * self.machine.part(plan.num_images) * prod(facts.shape)
        self.add(
            Row(
                name=EVALUATE,
                how="estimated" if any(trial.how == "estimated" for _, trial in self.models) else "measured",
                memory=peak_memory() + weights + kept,
                device_memory=peak_gpu_memory() and peak_gpu_memory() + weights,
                seconds=self.machine.slowdown * (sampling + judging) / self.machine.processes,
                images=cells * plan.num_images,
            )
        )
        self.notes.append(f"the evaluation has {cells} cells of {plan.num_images:,} images")


def evaluations_of(candidate: Candidate, plan: EvaluationPlan) -> list[tuple[Denoise, int]]:
    """The denoisers of a candidate with their evaluations at one w; its first batch is made twice, in a few steps."""
    images = [*((steps, plan.num_images) for steps in candidate.steps)]
    images.append((candidate.fewest_steps, min(plan.batch_size, plan.num_images)))
    return [
        (denoise, evaluations * count)
        for steps, count in images
        for denoise, evaluations in candidate.evaluations_of(steps)
    ]
