"""The composition root: settings -> data, network, stage, trainer -> fit -> evaluate. Only here Hydra instantiates."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fewstep.artifacts.lineage import Rung, find_newest_ladder, is_guided, lineage_of, models_in_folder
from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.artifacts.run_folder import MODEL, QUALITY, REPORT, RunFolder, open_run, rung_file
from fewstep.diffusion.guidance import log_snr_interval
from fewstep.diffusion.prediction import KINDS
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.distributed.collectives import on_main_process
from fewstep.methods import (
    EncoderStage,
    GuidanceRange,
    GuidanceStage,
    ProgressiveStage,
    Stage,
    check_chain,
    check_ladder,
)
from fewstep.networks import Denoiser, Frozen, with_guidance_input
from fewstep.networks.adapter import adapter_file, check_adapter, is_adapted, merged, save_adapter
from fewstep.runs.build import EXACT, Setup, as_toy, plain, plan_of
from fewstep.runs.cycle import CYCLE, write_cycle
from fewstep.runs.evaluate import evaluate
from fewstep.system.files import sha256_of
from fewstep.system.settings import FORCE, require_numbers, require_top
from fewstep.teachers.imported import is_foreign
from fewstep.tracking.loggers import started
from fewstep.training.settings import TrainerSettings

TWO_STUDENT = "two_student"
PIPELINE_ENDS = ("teacher", "guidance", "evaluate")
SNAPSHOT_STEPS = 16  # of teachers and guided students, in pictures taken during training


def run(config: DictConfig) -> None:
    """Do what the settings say; `stage.name` picks which of the six.

    Raises:
        ValueError, OSError: one line that says what to change.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    prepare(config)
    if config.plan:
        from fewstep.estimate.plan import plan  # which uses all of this file

        on_main_process(lambda: plan(config))
        return
    match config.stage.name:
        case "pipeline":
            run_pipeline(config)
        case "teacher":
            run_teacher(config)
        case "guidance":
            run_guidance(config)
        case "progressive" | "encoder":
            run_ladder(config)
        case _:
            run_evaluate(config)


def prepare(config: DictConfig) -> None:
    """Resolve the settings, refuse values of another type, and make a toy of what is to be one."""
    OmegaConf.resolve(config)
    require_top(plain(config))
    require_numbers(plain(config.stage), "stage")
    if config.trainer.toy:
        as_toy(config)


def run_pipeline(config: DictConfig) -> None:
    """teacher -> guidance -> progressive -> evaluate, each in its own folder, named by the pipeline's time."""
    check_pipeline(config)
    with opened(config, [QUALITY, REPORT]) as folder:
        if folder.finished and config.name is not None:
            return
        name, parent = folder.path.name, config.teacher
        two_student = chain_of(config.stage.progressive).is_guided_outside
        if parent is None:
            parent = run_teacher(stage_of(config, "teacher"), name)
        if config.stage.until == "teacher":
            return
        guided = Path(parent) if is_guided(parent) else run_guidance(stage_of(config, "guidance", parent), name)
        if config.stage.until == "guidance":
            return
        rungs = run_ladder(stage_of(config, "progressive", parent if two_student else guided), name)
        judge(stage_of(config, "evaluate", guided), folder, [guided, *rungs])


def stage_of(config: DictConfig, stage: str, teacher: str | Path | None = None) -> DictConfig:
    """The settings of one stage of a pipeline."""
    own = copy.deepcopy(config)
    own.stage = copy.deepcopy(config.stage[stage])
    own.teacher = None if teacher is None else str(teacher)
    return own


def check_pipeline(config: DictConfig) -> None:
    """Meet now the errors of settings that a pipeline's later stages would meet after minutes."""
    settings = TrainerSettings(**config.trainer)
    if config.stage.until not in PIPELINE_ENDS:
        raise ValueError(f"stage.until must be one of {', '.join(PIPELINE_ENDS)}, got {config.stage.until!r}")
    for name in ("teacher", "guidance", "progressive"):
        check_stage(config.stage[name])
        settings.check_batch(config.stage[name].training.batch_size)
    plan_of(config.stage.evaluate, settings)
    if config.teacher == EXACT and chain_of(config.stage.progressive).is_guided_outside:
        raise ValueError(
            f"stage.progressive.variant={TWO_STUDENT} distils a trained teacher, and teacher=exact is none; use "
            "teacher=null or stage.progressive.variant=joint"
        )
    if config.teacher is not None:
        setup = Setup.of(stage_of(config, GuidanceStage.name, config.teacher))
        setup.exact_teacher() if config.teacher == EXACT else setup.parent(
            "guided" if is_guided(config.teacher) else "teacher"
        )


def check_stage(stage: DictConfig) -> None:
    """Meet now the errors of a stage's settings, before its parent is looked for."""
    instantiate(stage.training)
    check_adapter(stage.get("adapter"), stage.get("adapter_rank", 1), stage.get("adapter_alpha", 1.0))
    if stage.name == GuidanceStage.name:
        GuidanceRange(stage.w_min, stage.w_max, stage.w_draw, stage.w_values)
        log_snr_interval(CosineSchedule(), stage.guidance_interval)
        if stage.student is not None and not isinstance(stage.student, DictConfig):
            raise ValueError(f"stage.student must be null or arguments, like {{width: 128}}, got {stage.student!r}")
        if stage.student is not None and stage.adapter is not None:
            raise ValueError(
                "stage.adapter adds to a teacher's weights, and a student of stage.student has its own; use one of them"
            )
        if stage.prediction not in (None, *KINDS):
            raise ValueError(f"stage.prediction must be null or one of {', '.join(KINDS)}, got {stage.prediction!r}")
    if stage.name == EncoderStage.name:
        GuidanceRange(stage.w_min, stage.w_max)
    if stage.name in (ProgressiveStage.name, EncoderStage.name):
        chain_of(stage)


def run_teacher(config: DictConfig, name: str | None = None) -> Path:
    """Train a teacher; give its model file."""
    check_stage(config.stage)
    with opened(config, [MODEL], name) as folder:
        model = folder.path / MODEL
        if not folder.finished:
            setup = Setup.of(config)
            stage = setup.stage(setup.network())
            with loggers(config, folder) as targets:
                setup.train(stage, folder, targets, (), num_steps=SNAPSHOT_STEPS)
            save(model, stage.model, setup.card("teacher", stage))
        return model


def run_guidance(config: DictConfig, name: str | None = None) -> Path:
    """Distil a teacher's guidance into one student; give its model file."""
    check_stage(config.stage)
    with opened(config, [MODEL], name) as folder:
        model = folder.path / MODEL
        if not folder.finished:
            setup = Setup.of(config)
            if config.teacher == EXACT:
                student, teacher, parents = setup.network(guidance_input=True), setup.exact_teacher(), ()
            else:
                path = setup.parent("teacher")
                denoiser, card = load_model(path)
                student, parents = with_guidance_input(denoiser), lineage_of(path, card, folder.path)
                teacher = setup.guided(Frozen(denoiser), denoiser.null, setup.schedule_of(denoiser))
            stage = setup.stage(setup.as_read(setup.resized(student)), teacher=teacher)
            with loggers(config, folder) as targets:
                setup.train(stage, folder, targets, parents, num_steps=SNAPSHOT_STEPS)
            save_student(model, stage, setup.card("guided", stage, parents))
        return model


def run_ladder(config: DictConfig, name: str | None = None) -> list[Path]:
    """Walk down the ladder of stage=progressive or stage=encoder; give the rungs' model files, most steps first.

    Finished rungs are kept as they are.
    """
    check_stage(config.stage)
    chain = chain_of(config.stage)
    ladder, encodes = check_ladder(config.stage.ladder), chain.role == EncoderStage.name
    setup, images_before = Setup.of(config), 0
    parent = setup.parent("teacher" if chain.is_guided_outside else "guided", chain)
    card = load_model(parent)[1]
    if encodes:
        check_encoder(config.stage, card)
    first, sha256 = rung_file(ladder[1]), sha256_of(parent)

    def same_ladder(folder: Path) -> bool:
        return load_model(folder / first)[1].parents[0].sha256 == sha256

    names = [rung_file(n) for n in ladder[1:]]
    with opened(config, [*names, *([CYCLE] if encodes else [])], name, same_ladder) as folder:
        rungs = [folder.path / name for name in names]
        if folder.finished:
            return rungs
        with loggers(config, folder) as targets:
            for num_steps, rung in zip(ladder[1:], rungs, strict=True):
                training = setup.training(config.stage.few_steps_factor if num_steps <= config.stage.few_steps else 1)
                if not on_main_process(rung.is_file):
                    denoiser, card = load_model(parent)
                    inherited = {"w_min": card.w_min, "w_max": card.w_max, "w_draw": card.w_draw}
                    stage = setup.stage(
                        copy.deepcopy(denoiser),
                        training=training,
                        rung=num_steps,
                        teacher=Frozen(denoiser),
                        num_steps=num_steps,
                        **({} if encodes else inherited | {"w_values": card.w_values}),
                    )
                    parents = lineage_of(parent, card, folder.path)
                    setup.train(
                        stage,
                        folder,
                        targets,
                        parents,
                        num_steps=num_steps,
                        rung=num_steps,
                        images_before=images_before,
                    )
                    own = setup.card(chain.role, stage, parents, num_steps)
                    save_student(rung, stage, replace(own, guidance_interval=card.guidance_interval), parent)
                images_before += training.num_steps * training.batch_size
                parent = rung
        if encodes:
            on_main_process(lambda: write_cycle(folder.path / CYCLE, rungs, setup))
        return rungs


def save_student(path: Path, stage: Stage, card: ModelCard, parent: Path | None = None) -> None:
    """Write a student's file. One with an adapter is merged with it, and the adapter lies beside it.

    Args:
        parent: a model whose own adapter, where it lies beside it, becomes part of this one.
    """
    student = stage.model
    if is_adapted(student):
        older = None if parent is None else adapter_file(parent)
        on_main_process(lambda: save_adapter(adapter_file(path), student, card.parents[0].sha256, older))
        student = merged(student)
    save(path, student, card)


def save(path: Path, model: Denoiser, card: ModelCard) -> None:
    """Write a model's file, by the first process alone; the others go on when it is there."""
    on_main_process(lambda: save_model(path, model, card))


def chain_of(stage: DictConfig) -> Rung:
    """The kind of chain of a ladder's settings, as the rung from which it may go on."""
    start = check_ladder(stage.ladder)[0]
    if stage.name == EncoderStage.name:
        return Rung("encoder", start)
    check_chain(stage.sampler, stage.variant)
    return Rung("progressive", start, stage.sampler, stage.variant == TWO_STUDENT)


def check_encoder(stage: DictConfig, card: ModelCard) -> None:
    """Refuse an encoder of weights that its parent was not made for.

    Raises:
        ValueError: says the parent's range.
    """
    assert card.w_min is not None, "its parent is guided or an encoder"
    assert card.w_max is not None, "its parent is guided or an encoder"
    if not card.w_min <= stage.w_min <= stage.w_max <= card.w_max:
        raise ValueError(
            f"the encoder's stage.w_min and stage.w_max must lie in its parent's range [{card.w_min:g}, "
            f"{card.w_max:g}], got {stage.w_min:g} and {stage.w_max:g}"
        )


def run_evaluate(config: DictConfig) -> None:
    """Judge the newest ladder, or what teacher=PATH names: a model file, or a run folder with all its models."""
    with opened(config, [QUALITY, REPORT]) as folder:
        if config.teacher in (None, EXACT):
            models = find_newest_ladder(Path(config.outputs), config.dataset.name)
        else:
            foreign = is_foreign(config.teacher)
            path = Setup.of(config).parent("teacher") if foreign else Path(config.teacher)
            models = models_in_folder(path) if path.is_dir() else [path]
            if not models:
                raise ValueError(f"teacher={path} must be a model file or a folder that holds one, and holds none")
        judge(config, folder, models)


def judge(config: DictConfig, folder: RunFolder, models: Sequence[Path]) -> None:
    """Write quality.json, provenance.json, pictures and report.html of these models and their ancestors."""
    setup = Setup.of(config)
    plan = plan_of(config.stage, setup.settings)
    with loggers(config, folder) as targets:
        settings = setup.settings
        evaluate(
            models,
            plan,
            setup.judge,
            folder.path,
            targets,
            accelerator=settings.accelerator,
            compiled=settings.compile,
        )


@contextmanager
def opened(
    config: DictConfig,
    products: Sequence[str],
    name: str | None = None,
    keep: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[RunFolder]:
    """The run folder of these settings, held; see `open_run`."""
    text = OmegaConf.to_yaml(config, resolve=True)
    with ExitStack() as held:

        def hold() -> RunFolder:
            outputs, dataset, stage = Path(config.outputs), config.dataset.name, config.stage.name
            force = config.resume == FORCE
            called = name or (None if config.name is None else str(config.name))
            folder = held.enter_context(open_run(outputs, dataset, stage, text, products, called, keep, force))
            print(f"{stage}: {folder.path}" + (" (finished before)" if folder.finished else ""), flush=True)
            return folder

        yield on_main_process(hold)


def loggers(config: DictConfig, folder: RunFolder) -> AbstractContextManager[list[Logger]]:
    """Where the numbers of a stage go; see `started`."""
    return started(
        folder.path,
        group=f"{config.dataset.name}-{folder.path.name}",
        job_type=config.stage.name,
        config=plain(config),
        wandb=config.logger.wandb,
    )
