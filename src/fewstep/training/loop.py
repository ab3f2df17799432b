"""One Trainer.fit of one phase, which goes on where an interrupted one stopped."""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler, Profiler

from fewstep.artifacts.run_folder import LAST
from fewstep.data.batches import Data
from fewstep.distributed.collectives import on_main_process, world_size
from fewstep.networks.memory import compile_calls
from fewstep.system.files import is_out_of_memory
from fewstep.system.stored import reason_of
from fewstep.training.callbacks.progress import Progress
from fewstep.training.callbacks.training_log import TrainingLog
from fewstep.training.checkpointing import AtomicCheckpoints, SaveCheckpoint, checkpoint_to_resume
from fewstep.training.epoch_loop import EpochLoop
from fewstep.training.module import DistillationModule, NonFiniteLossError
from fewstep.training.preemption import StopOnSignal
from fewstep.training.settings import TrainerSettings
from fewstep.training.strategy import build_strategy, cluster_environment, processes_per_node

# Lightning has torch look for GPUs through NVML, and torch's optimisers look every step: on a machine without a driver
# that opens a library each time, half a millisecond. CUDA's own count is remembered; no data worker of ours is forked.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


class NoProfiler(PassThroughProfiler):
    """No profiler, as by default, and no fifty generators a step in its place."""

    def profile(self, action_name: str) -> nullcontext[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return NOTHING


NOTHING = nullcontext()


def quiet_lightning() -> None:
    """Leave out Lightning's own words about devices, loggers and advice."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def fit(
    module: DistillationModule,
    data: Data,
    folder: Path,
    settings: TrainerSettings,
    *,
    parent_sha256: str | None,
    loggers: Sequence[Logger],
    watchers: Sequence[Callback],
    images_before: int = 0,
    profiler: Profiler | None = None,
) -> None:
    """Train a phase to its budget; it goes on from a last.ckpt in `folder` of the same stage, phase and parent.

    Args:
        watchers: look at the module while it trains: snapshots, diagnostics.
        images_before: of the earlier phases of this run.
        profiler: of Lightning.

    Raises:
        Stopped: a signal asked for it; the checkpoint is of that step.
        NonFiniteLossError: with the checkpoint that is still good.
        ValueError: last.ckpt is damaged and so is the one before, or does not go on with this run, or the batch does
            not divide over the processes.
        OSError: the disk is full or outputs cannot be written.
    """
    training, last = module.training_plan, folder / LAST
    settings.check_batch(training.batch_size)
    origin = f"{module.stream} from {parent_sha256}"
    resume = on_main_process(lambda: checkpoint_to_resume(last, origin))
    try:
        trainer, save, stop = build_trainer(
            module, folder, settings, origin, loggers, watchers, images_before, profiler
        )
    except MisconfigurationException as error:  # of trainer.callbacks: a progress bar of Lightning's
        raise ValueError(f"trainer.callbacks do not go with the run's own: {error}") from error
    if settings.compile:
        compile_calls(module.student, module.nets.teacher, *module.trained.values())
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        stop.end(trainer)
    except NonFiniteLossError as error:
        kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint had been written yet"
        raise NonFiniteLossError(f"{bad_data(data, error.step) or error}; {kept}") from error
    except Exception as error:
        if resume is None or save.went_on or isinstance(error, OSError) or is_out_of_memory(error):
            raise
        raise ValueError(
            f"{last} does not go on with this run ({type(error).__name__}: {reason_of(error)}); delete it and run the "
            "same command again to train this stage or phase from its start"
        ) from error


def build_trainer(
    module: DistillationModule,
    folder: Path,
    settings: TrainerSettings,
    origin: str,
    loggers: Sequence[Logger],
    watchers: Sequence[Callback],
    images_before: int,
    profiler: Profiler | None = None,
) -> tuple[Trainer, SaveCheckpoint, StopOnSignal]:
    """Lightning's Trainer with our callbacks, and those that save and that answer signals."""
    training, last, steps = module.training_plan, folder / LAST, module.phase.num_steps
    progress = Progress(stage=module.method.name, batch_size=training.batch_size, rung=steps)
    log = TrainingLog(
        batch_size=training.batch_size,
        every_images=settings.log_every_images,
        images_before=images_before,
        rung=steps,
        on_loss=progress.show_loss,
    )
    save = SaveCheckpoint(last, settings.checkpoint_seconds, origin)
    stop = StopOnSignal(lambda trainer: trainer.save_checkpoint(last))
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=processes_per_node(),
        num_nodes=world_size() // processes_per_node(),
        strategy=build_strategy(settings, several_roles=len(module.method.roles) > 1),
        precision=settings.precision,
        max_steps=training.num_steps,
        max_epochs=-1,
        max_time=settings.max_time,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        logger=list(loggers),
        callbacks=[log, progress, *watchers, save, stop],
        plugins=[AtomicCheckpoints(), cluster_environment()],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        profiler=NoProfiler() if profiler is None else profiler,
    )
    if profiler is None and settings.accumulate_grad_batches == 1:  # of more batches a step there are fewer steps
        trainer.fit_loop.epoch_loop = EpochLoop(trainer)
    return trainer, save, stop


def bad_data(data: Data, step: int) -> str | None:
    """What is wrong with the batch of a step whose loss was not finite, if it was the batch."""
    x = data.batch(step).x
    bad = (~torch.isfinite(x.flatten(1)).all(1)).nonzero().flatten().tolist()
    if not bad:
        return None
    return (
        f"the training data must be finite, and the batch of step {step} holds NaN or infinite values in {len(bad)} of "
        f"{len(x)} images, the first is number {bad[0]}; repair the data (`fewstep data check` looks at them)"
    )
