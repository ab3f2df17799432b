"""Train a method: find its parent, walk its phases, write a model file for each."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning import Callback
from lightning.pytorch.loggers import Logger

from fewstep.artifacts.lineage import lineage_of
from fewstep.artifacts.model_file import Ancestor, ModelCard, load_model, save_model
from fewstep.artifacts.run_folder import MODEL, rung_file
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.data.noise import NoiseData
from fewstep.diagnostics import NUM_EXAMPLES, Diagnostics
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.sampling import require_styles
from fewstep.distributed.collectives import on_main_process, world_size
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.metrics import RunningFigures
from fewstep.methods.base import Method, Networks, Phase
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.networks import Denoiser
from fewstep.networks.adapter import adapter_file, is_adapted, merged, save_adapter
from fewstep.runs.build import (
    build_callbacks,
    build_data,
    build_exact_teacher,
    build_fresh_student,
    build_profiler,
    build_student,
    build_teacher,
    evaluation_budget,
    phase_training,
    schedule_of,
)
from fewstep.runs.config import Settings
from fewstep.runs.cycle import CYCLE, write_cycle
from fewstep.runs.folders import loggers_of, open_folder
from fewstep.runs.pairs import Making, open_pairs
from fewstep.runs.parent import existing, find_parent, method_of, open_evaluator
from fewstep.system.files import sha256_of, tensor_digest
from fewstep.training.callbacks.snapshots import Snapshots
from fewstep.training.loop import fit
from fewstep.training.module import DistillationModule
from fewstep.training.students import clip_bounds, inherited_guidance, student_card

SNAPSHOT_STEPS = 16  # of models of any number of steps, in pictures taken during training


@dataclass(frozen=True)
class Job:
    """What all phases of one run share.

    Attributes:
        source: the data set, opened once for its facts; None for a method that needs none and finds none.
    """

    settings: Settings
    method: Method
    source: Data | None
    evaluator: Evaluator | None
    facts: DataFacts
    folder: Path


def train(settings: Settings, name: str | None = None) -> list[Path]:
    """Train the method of a stage; give its model files, most steps first. Finished phases are kept as they are.

    Args:
        name: of the run's folder, given by the pipeline whose stage this is.

    Raises:
        ValueError, OSError: one line that says what to change.
    """
    method = method_of(settings)
    phases = method.phases()
    names = [MODEL if phase.num_steps is None else rung_file(phase.num_steps) for phase in phases]
    encodes = phases[-1].sampling.direction == "encode"
    evaluator = open_evaluator(settings, method)
    parent = find_parent(settings, method, evaluator)
    facts = evaluator.facts if evaluator is not None else load_model(existing(parent))[1].data
    digest = None if parent is None else sha256_of(parent)
    if any(phase.sampling.guidance == "three_evaluations" for phase in phases):
        require_styles(facts.styles)

    def same_parent(folder: Path) -> bool:  # a finished chain would be trained again to the same models
        ancestors = load_model(folder / names[0])[1].parents
        return len(names) > 1 and digest == (ancestors[0].sha256 if ancestors else None)

    products = [*names, *([CYCLE] if encodes else [])]
    with open_folder(settings, products, name, same_parent) as folder:
        files = [folder.path / name for name in names]
        if folder.finished:
            return files
        source = None if evaluator is None else evaluator.data
        job, images_before = Job(settings, method, source, evaluator, facts, folder.path), 0
        with loggers_of(settings, folder.path) as loggers:
            for number, (phase, file) in enumerate(zip(phases, files, strict=True)):
                if not on_main_process(file.is_file):
                    train_phase(job, phase, parent, file, loggers, is_first=number == 0, images_before=images_before)
                images_before += load_model(file)[1].images
                parent = file
            if encodes:
                assert evaluator is not None, "an encoder trains on data"
                examples = held_out_examples(settings, evaluator)
                on_main_process(lambda: write_cycle(folder.path / CYCLE, files, settings, examples))
        return files


def train_phase(
    job: Job,
    phase: Phase,
    parent: Path | None,
    file: Path,
    loggers: Sequence[Logger],
    *,
    is_first: bool,
    images_before: int,
) -> None:
    """Train one phase from its parent, and write its model file."""
    gc.collect()  # the phase before: its module and trainer hold each other, and its memory is needed now
    settings, method = job.settings, job.method
    training = phase_training(method.training, phase, settings.trainer)
    stream = "/".join(map(str, (settings.seed, settings.name, *([phase.num_steps] if phase.num_steps else []))))
    nets, card = networks_of(job, phase, parent, stream, is_first=is_first)
    build = partial(DistillationModule, method=method, phase=phase, nets=nets, stream=stream)
    module = build(training=training)
    ancestors = () if card is None or parent is None else lineage_of(parent, card, job.folder)
    making = Making.of(module, job.facts, settings.trainer.max_images)
    data = training_data(job, module, making, ancestors)
    if method.training.evaluations is not None:
        rows = data.rows(0)
        per_image = module.evaluations_per_image(rows._make(each[:2] for each in rows))
        plan = evaluation_budget(method, phase, per_image, settings.trainer, spent=making.evaluations)
        module = build(training=plan)
    module.evaluations = making.evaluations // world_size()
    fit(
        module,
        data,
        job.folder,
        settings.trainer,
        parent_sha256=ancestors[0].sha256 if ancestors else None,
        loggers=loggers,
        watchers=[*watchers_of(job, module, images_before), *build_callbacks(settings.trainer)],
        images_before=images_before,
        profiler=build_profiler(settings.trainer, job.folder),
    )
    save_student(file, module, card_of(job, module, card, ancestors), parent)


def training_data(job: Job, module: DistillationModule, making: Making, ancestors: Sequence[Ancestor]) -> Data:
    """What a phase trains on: the data set, noise, or pairs, which are made here where they are missing."""
    settings, batch_size, stream = job.settings, module.training_plan.batch_size, module.stream
    if module.method.inputs == "data":
        return build_data(settings, batch_size, stream)
    if module.method.inputs == "noise":
        return NoiseData(job.facts, batch_size=batch_size, stream=stream)
    exact = job.source and job.source.exact
    assert ancestors or exact, "pairs have a teacher"

    def degraded(number: int, count: int) -> Condition:
        return build_data(settings, count, f"{settings.seed}/pairs").batch(number).label

    return open_pairs(
        module,
        making,
        facts=job.facts,
        conditions=None if job.facts.degraded is None else degraded,
        teacher=ancestors[0].sha256 if ancestors else f"exact {exact and tensor_digest(exact.tensors)}",
        seed=settings.seed,
        folder=job.folder,
        batch_size=batch_size,
        device=settings.trainer.device,
    )


def networks_of(
    job: Job, phase: Phase, parent: Path | None, stream: str, *, is_first: bool
) -> tuple[Networks, ModelCard | None]:
    """The networks of a phase, and the card of its parent file if it has one."""
    settings, method = job.settings, job.method
    wants_w = phase.sampling.guidance == "input"
    if parent is None:
        assert job.source is not None, "a network from nothing has data to train on"
        fresh = build_fresh_student(settings, job.source, guidance_input=wants_w and method.parent() is not None)
        teacher = None if method.parent() is None else build_exact_teacher(settings, method, job.source)
        denoiser, card, inherited = fresh, None, None
    else:
        denoiser, card = load_model(parent)
        inherited = inherited_guidance(card, phase)
        teacher = build_teacher(settings, method, phase, denoiser, card.sampling, job.facts)
    guidance = method.guidance(inherited)
    student = build_student(settings, method, phase, denoiser, guidance, is_first=is_first, stream=stream)
    nets = Networks(student, teacher, schedule_of(settings, student), guidance, clip_bounds(method, job.facts))
    return method.networks(nets, stream), card


def watchers_of(job: Job, module: DistillationModule, images_before: int) -> list[Callback]:
    """What looks at the module while it trains: snapshots of samples, and diagnostics; nothing without data."""
    if job.evaluator is None:
        return []
    trainer, guidance = job.settings.trainer, module.nets.guidance or GuidanceRange(0.0, 1.0)
    diagnostics = Diagnostics(
        folder=job.folder,
        data=build_data(job.settings, NUM_EXAMPLES, "diagnostics"),
        count=trainer.diagnostics,
        images_before=images_before,
        alarming=not trainer.toy,
    )
    if module.phase.sampling.direction == "encode":  # which makes no samples
        return [diagnostics]
    snapshots = Snapshots(
        folder=job.folder,
        data=job.evaluator.data,
        figures=RunningFigures(job.evaluator.net, job.evaluator.reference_statistics),
        count=trainer.snapshots,
        num_images=trainer.snapshot_images,
        num_steps=SNAPSHOT_STEPS,
        w=min(max(1.0, guidance.w_min), guidance.w_max),
        images_before=images_before,
    )
    return [snapshots, diagnostics]


def card_of(
    job: Job, module: DistillationModule, parent: ModelCard | None, ancestors: tuple[Ancestor, ...]
) -> ModelCard:
    """What the phase's model file says of itself."""
    training = module.training_plan
    return student_card(
        module,
        name=job.settings.name,
        facts=job.facts,
        images=(module.ended_at or training.num_steps) * training.batch_size,
        parent=parent,
        ancestors=ancestors,
    )


def save_student(path: Path, module: DistillationModule, card: ModelCard, parent: Path | None) -> None:
    """Write a model's file, by the main process. One with an adapter is merged with it, and the adapter lies beside it.

    Args:
        parent: a model whose own adapter, where it lies beside it, becomes part of this one.
    """
    student: Denoiser = module.model_in_full()

    def write() -> None:
        if not is_adapted(student):
            save_model(path, student, card)
            return
        older = None if parent is None else adapter_file(parent)
        save_adapter(adapter_file(path), student, card.parents[0].sha256, older)
        save_model(path, merged(student), card)

    on_main_process(write)


def held_out_examples(settings: Settings, evaluator: Evaluator, most: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """The first held-out examples; of latents, whose held-out part is images, training ones."""
    count = min(most, settings.trainer.max_images or most)
    data = build_data(settings, count, "examples")
    x, label = data.batch(0) if evaluator.facts.latent or evaluator.facts.embedding else data.reference()
    return x[:count], label[:count]
