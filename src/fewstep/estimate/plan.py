"""plan=true: walk what a run would train, with networks that have shapes alone, and time what memory allows."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from fewstep.artifacts.model_file import load_model
from fewstep.estimate.machine import Machine
from fewstep.estimate.phases import ModelShape, Watching, build_module, training_data
from fewstep.estimate.shapes import Footprint, LiveBytes, evaluate_once, footprint_of, shapes_only
from fewstep.estimate.table import Estimate, Row, show
from fewstep.estimate.timing import (
    MAX_UPDATES,
    Speed,
    seconds_per_evaluation,
    seconds_per_figures,
    seconds_per_judged_image,
    seconds_per_update,
)
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.features import INCEPTION_WEIGHTS
from fewstep.evaluation.grid import Candidate, EvaluationPlan
from fewstep.inference.model import Model
from fewstep.methods.base import Method, Phase
from fewstep.networks.memory import denoisers_in
from fewstep.runs.build import build_evaluator, build_plan, phase_training
from fewstep.runs.config import EVALUATE, EXACT, PIPELINE, Settings
from fewstep.runs.evaluate import candidates_of, check_models, with_ancestors
from fewstep.runs.parent import find_parent, method_of, open_evaluator
from fewstep.runs.pipeline import Chain, accepts, check_pipeline, models_to_judge, trained_stages
from fewstep.runs.train import Job, card_of
from fewstep.system.hardware import current_memory, free_disk, free_memory
from fewstep.teachers.imported import is_foreign

GENERATED = ("cifar10", "imagenet64")  # data sets whose generated files have the true shape
COPIES = 3  # of all images of a cell, in floats: noise, the first cell's samples and this one's


def plan(settings: Settings) -> None:
    """Print what the settings would train, how long that takes and what it needs; nothing is written below outputs.

    Raises:
        ValueError, OSError: what a run would raise before it trains.
    """
    with Console().status("measuring"), TemporaryDirectory(prefix="fewstep-plan-") as folder:
        estimate = Planner(settings, Path(folder)).estimate()
    show(estimate, settings.outputs)


class Planner:
    """One plan.

    Args:
        folder: in the place of outputs, wherever something may be written.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.folder, self.outputs = folder, settings.outputs
        self.notes: list[str] = []
        self.settings = self.with_available_data(settings.with_values({"outputs": str(folder)}))
        is_imported = settings.teacher is not None and is_foreign(settings.teacher)
        self.lookup = str(folder if is_imported else settings.outputs)  # where parents are looked for
        self.machine = Machine.of(settings.trainer)
        self.rows: list[Row] = []
        self.models: list[tuple[ModelShape, Speed]] = []  # what is evaluated
        self.last: list[ModelShape] = []  # of each stage
        self.base = 0  # bytes of a process that has opened its data and trains nothing yet
        self.per_image = self.opening = 0.0  # seconds of the feature extractor: for an image, for the reference

    def with_available_data(self, settings: Settings) -> Settings:
        """Settings of generated data, or of a small feature extractor, where files are not there yet."""
        data: dict[str, Any] = settings.values["dataset"]
        if data["name"] in GENERATED and not (data["generated"] or data.get("cache") or Path(data["root"]).exists()):
            self.notes.append(f"{data['root']} is not there: planned with generated files, without the time to read it")
            generated = {"root": str(self.folder / data["name"]), "generated": True}
            settings = settings.with_values({"dataset": data | generated})
        try:
            build_evaluator(settings)
        except (ValueError, OSError) as error:  # others are refused where the data are needed
            if INCEPTION_WEIGHTS in str(error):
                self.notes.append(
                    f"{error}; a run stops there. Planned with a small feature extractor, which is faster"
                )
                settings = replace(settings, trainer=replace(settings.trainer, features="patches"))
        return settings

    def estimate(self) -> Estimate:
        """The rows of all stages in their order."""
        settings, machine = self.settings, self.machine
        if settings.name == PIPELINE:
            self.pipeline()
        elif settings.name == EVALUATE:
            self.evaluation(settings, models_to_judge(settings.with_values({"outputs": self.lookup})))
        else:
            self.stage(settings)
        return Estimate(
            title=f"stage={settings.name} dataset={settings.dataset_name}: {machine.name}",
            processes=machine.here,
            rows=tuple(self.rows),
            free_memory=free_memory(),
            free_device_memory=free_memory("cuda") if machine.device == "cuda" else 0,
            free_disk=free_disk(self.outputs),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def pipeline(self) -> None:
        """The stages that a pipeline would train, and its evaluation."""
        settings, chain = self.settings, Chain.begin(self.settings.teacher)
        check_pipeline(settings.with_values({"outputs": self.lookup}))
        for name in trained_stages(settings):
            own = settings.of_stage(name, settings.teacher)
            if self.last or not chain.skips(method_of(own)):
                self.stage(own)
        if EVALUATE in settings.stages:
            self.evaluation(settings.of_stage(EVALUATE), chain.parents)

    def stage(self, settings: Settings) -> None:
        """A row for each phase of a stage."""
        method = method_of(settings)
        evaluator = open_evaluator(settings, method)
        model = self.parent(settings, method, evaluator)
        facts = evaluator.facts if evaluator else model and model.card.data
        assert facts is not None, "a method has data or a parent"
        job = Job(settings, method, evaluator and evaluator.data, evaluator, facts, self.folder)
        self.measure_process(evaluator)
        for number, phase in enumerate(method.phases()):
            model = self.phase(job, phase, model, is_first=number == 0)
            self.last = [*self.last[: -1 if number else None], model]

    def parent(self, settings: Settings, method: Method, evaluator: Evaluator | None) -> ModelShape | None:
        """The newest of the plan's models that fits, or the file that a run would find, or a fresh network."""
        wanted = method.parent()
        for model in reversed(self.last):
            if wanted and accepts(wanted, model.card.sampling):
                return model
        try:
            found = find_parent(settings.with_values({"outputs": self.lookup}), method, evaluator)
        except ValueError as error:
            if settings.teacher not in (None, EXACT) or wanted is None or evaluator is None:
                raise
            self.notes.append(f"planned with a fresh network as the parent of stage {settings.name}: {error}")
            return ModelShape.fresh(settings, evaluator.facts, wanted)
        return found and ModelShape.of(*load_model(found))

    def measure_process(self, evaluator: Evaluator | None) -> None:
        """Measure, once, what does not depend on the stage."""
        if not self.base:
            self.per_image = seconds_per_judged_image(evaluator) if evaluator else 0.0
            self.opening = self.per_image * len(evaluator.reference.images) if evaluator else 0.0
            self.base = current_memory()

    def phase(self, job: Job, phase: Phase, parent: ModelShape | None, *, is_first: bool) -> ModelShape:
        """Add the row of a phase; give what it would make."""
        name, trainer, machine = job.settings.name, job.settings.trainer, self.machine
        training = phase_training(job.method.training, phase, trainer)
        rows, watching = machine.share(training.batch_size), Watching.of(job, phase, training)
        with shapes_only(trainer.device) as memory:
            module = build_module(job, phase, parent, training, is_first=is_first)
            found = footprint_of(module, memory, job.facts, rows, machine.part(watching.batch_size), trainer)
            made = ModelShape.of(module.nets.model, card_of(job, module, parent and parent.card, ()))
        speed = self.speed(job, phase, parent, found, rows, is_first=is_first)
        looking = watching.sampled * speed.evaluation + watching.images * self.per_image
        seconds = training.num_steps * speed.update + watching.probed(found.evaluations) * speed.evaluation
        self.models.append((made, speed))
        self.add(
            Row(
                name=name if phase.num_steps is None else f"{name} {phase.num_steps}",
                how=speed.how,
                memory=found.at_rest if machine.device == "cuda" else machine.memory(found),
                device_memory=machine.memory(found) if machine.device == "cuda" else 0,
                seconds=machine.slowdown * (seconds + looking / machine.processes),
                disk=found.model_bytes + found.checkpoint_bytes * is_first,
                checkpoint=found.checkpoint_bytes,
                parameters=found.parameters,
                images=training.num_steps * training.batch_size,
                batch_size=training.batch_size,
                updates=training.num_steps,
                seconds_per_update=machine.slowdown * speed.update,
            )
        )
        return made

    def add(self, row: Row) -> None:
        """Add a row, with what the process needs besides."""
        self.rows.append(replace(row, memory=self.base + row.memory, seconds=self.opening + row.seconds))
        self.opening = 0.0

    def speed(
        self, job: Job, phase: Phase, parent: ModelShape | None, found: Footprint, rows: int, *, is_first: bool
    ) -> Speed:
        """Times of a process that has the machine for itself."""
        tried, trainer = self.machine.rows_to_time(found, rows), job.settings.trainer
        if not tried:
            self.notes.append(f"{job.settings.name} is too large to be timed here; its memory is known from shapes")
            update = found.flops / self.machine.rate
            return Speed(update, update / rows / (found.evaluations + 2), "estimated")
        training = replace(job.method.training, images=MAX_UPDATES * tried, batch_size=tried)
        module = build_module(job, phase, parent, training, is_first=is_first)
        update = seconds_per_update(module, training_data(job, tried), trainer, self.folder) * rows / tried
        evaluation = seconds_per_evaluation(module.nets.model.eval(), job.facts, rows, trainer)
        del module
        gc.collect()  # it and its trainer hold each other
        return Speed(update, evaluation, "measured" if tried == rows else "scaled")

    def evaluation(self, settings: Settings, files: Sequence[Path]) -> None:
        """Add the row of the evaluation of these files, their ancestors and the models of the plan."""
        trainer, machine, evaluator = settings.trainer, self.machine, build_evaluator(settings)
        plan, facts = build_plan(settings.stage, trainer), evaluator.facts
        self.measure_process(evaluator)
        given = with_ancestors(files)
        if given:
            check_models(given, files, evaluator)
        for each in given.values():
            seconds = seconds_per_evaluation(each.to(machine.device).denoiser, facts, plan.batch_size, trainer)
            self.models.append((ModelShape.of(each.denoiser, each.card), Speed(0.0, seconds, "measured")))
        del given
        with torch.device("meta"), LiveBytes() as memory:
            models = {Path(str(n)): Model(shape.build(), shape.card) for n, (shape, _) in enumerate(self.models)}
            candidates = candidates_of(models, plan, evaluator.exact, "meta")
            for candidate in candidates:
                evaluate_once(candidate.denoise, facts, machine.part(min(plan.batch_size, plan.num_images)), "meta")
        speeds = {id(model.denoiser): speed for model, (_, speed) in zip(models.values(), self.models, strict=True)}
        cells, seconds = sum(cells_of(each, plan) for each in candidates), 0.0
        for candidate in candidates:
            for denoiser in denoisers_in(candidate.denoise):
                seconds += evaluations_of(candidate, plan) * speeds[id(denoiser)].evaluation
        seconds += cells * (plan.num_images * self.per_image + seconds_per_figures(evaluator, plan.num_images))
        kept = COPIES * 4 * machine.part(plan.num_images) * prod(facts.shape)
        self.add(
            Row(
                name=f"{EVALUATE}, {cells} cells",
                how="estimated" if any(speed.how == "estimated" for speed in speeds.values()) else "measured",
                memory=kept + (0 if machine.device == "cuda" else memory.peak),
                device_memory=memory.peak if machine.device == "cuda" else 0,
                seconds=seconds / machine.speed_up,
                images=cells * plan.num_images,
            )
        )


def weights_of(candidate: Candidate, plan: EvaluationPlan) -> int:
    """How many guidance weights a candidate is evaluated at."""
    return len([w for w in plan.w if candidate.weights is None or w in candidate.weights])


def cells_of(candidate: Candidate, plan: EvaluationPlan) -> int:
    """Cells of a candidate in the grid."""
    return weights_of(candidate, plan) * len(candidate.steps)


def evaluations_of(candidate: Candidate, plan: EvaluationPlan) -> int:
    """Network evaluations of one image each in a candidate's cells; its first batch at its fewest steps comes twice."""
    steps = sum(candidate.steps) * plan.num_images + min(candidate.steps) * min(plan.batch_size, plan.num_images)
    return weights_of(candidate, plan) * candidate.evaluations * steps
