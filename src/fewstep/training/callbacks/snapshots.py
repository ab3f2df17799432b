"""Snapshots of a model during training: a picture of samples, and a quick FID and inception score."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fewstep.artifacts.pictures import picture, save_png
from fewstep.data.batches import Data
from fewstep.diffusion.sampler import SAMPLERS, sample
from fewstep.distributed.collectives import all_gather_rows, local_slice, rank, world_size
from fewstep.evaluation.images import evaluation_tensor
from fewstep.evaluation.metrics import RunningFigures
from fewstep.system.seeds import fresh_noise, starting_noise
from fewstep.tracking.names import SAMPLE_FID, SAMPLE_GRID, SAMPLE_INCEPTION_SCORE
from fewstep.tracking.tracker import log_picture
from fewstep.training.callbacks.training_log import log_row
from fewstep.training.checkpointing import ends_step
from fewstep.training.module import DistillationModule

ROWS = 8  # of the picture


class Snapshots(Callback):
    """Sample from the averaged model at one guidance weight, `count` times evenly over a phase, the last at its end.

    Args:
        folder: of the run; pictures go to samples/.
        data: gives the conditions of the samples, and decodes latents.
        figures: FID and inception score, of `num_images` samples.
        num_steps: of the sampler, for a model of any number of steps. w: guidance weight of the samples.
        images_before: as in `TrainingLog`.

    Raises:
        ValueError: fewer images than processes.
    """

    def __init__(
        self,
        *,
        folder: Path,
        data: Data,
        figures: RunningFigures,
        count: int,
        num_images: int,
        num_steps: int,
        w: float,
        images_before: int = 0,
    ) -> None:
        if num_images < world_size():
            raise ValueError(
                f"each process makes a share of the snapshots, got trainer.snapshot_images={num_images} for "
                f"{world_size()} processes; raise it"
            )
        self.folder, self.data, self.figures = folder, data, figures
        self.count, self.num_images, self.num_steps, self.w = count, num_images, num_steps, w
        self.images_before = images_before

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        total = pl_module.training_plan.num_steps
        if not ends_step(trainer, batch_idx):
            return
        if trainer.global_step * self.count // total > (trainer.global_step - 1) * self.count // total:
            self.take(trainer, pl_module)

    @torch.no_grad()
    def take(self, trainer: Trainer, module: DistillationModule) -> None:
        """Sample, save the picture and log the figures; every rank samples its share of the images."""
        model, facts, sampling = module.nets.model, self.data.facts, module.phase.sampling
        training = model.training
        model.eval()
        share = local_slice(self.num_images)
        count = share.stop - share.start
        labels = self.data.conditions(self.num_images)
        x = sample(
            sampling.guided(model, model.null, styles=facts.styles),
            starting_noise(0, share.start, count, facts.shape).to(module.device),
            schedule=module.nets.schedule,
            times=sampling.grid() if sampling.times else sampling.grid(self.num_steps),
            label=labels[share].to(module.device),
            w=torch.full((count,), self.w, device=module.device),
            sampler=SAMPLERS[sampling.sampler],
            fresh=fresh_noise(0, share.start, count, facts.shape),
        )
        model.train(training)
        module.check_finite()
        samples = evaluation_tensor(self.data.decode(x.clamp(facts.low, facts.high)).cpu(), facts.pixels)
        self.figures.update(samples)
        num_shown = min(self.num_images, ROWS * facts.in_a_row) if facts.is_image else self.num_images
        shown = all_gather_rows(samples[: max(0, num_shown - share.start)])
        if rank() > 0:
            return
        scores = self.figures.compute()
        images = self.images_before + trainer.global_step * module.training_plan.batch_size
        image = picture(shown, labels[:num_shown], facts.pixels, facts.in_a_row)
        save_png(image, self.folder / "samples" / f"{images:010d}.png")
        row = {SAMPLE_FID: scores["fid"], SAMPLE_INCEPTION_SCORE: scores["inception_score"]}
        log_row(trainer.loggers, row, images=images, rung=module.phase.num_steps)
        log_picture(trainer.loggers, SAMPLE_GRID, image, images=images)
