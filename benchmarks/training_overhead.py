"""What does a stage cost over a plain loop? Under Lightning, as `fewstep.fit.fit` runs it, against PyTorch alone.

One fit, cut into blocks of steps; between two blocks a hand-written loop takes as many steps on a network, optimiser
and average of its own, from the same start. The first steps are not timed: in them both sides get the same batches and
random numbers, and must have the same losses, which is how we know that the mathematics is the same.
"""

import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from math import atan, cos, exp, pi, sin
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from hydra import compose, initialize_config_dir
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from measure import Seconds, Spread, report
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.data.batches import Batch
from fewstep.data.digits import DigitsData
from fewstep.diffusion.guidance import Guided
from fewstep.fit import fit
from fewstep.folder import RunFolder
from fewstep.networks import Denoiser, Frozen, with_guidance_input
from fewstep.quality.metrics import RunningFigures
from fewstep.run import Setup
from fewstep.seeds import seed_for
from fewstep.snapshots import Snapshots
from fewstep.stages import Stage, Training
from fewstep.tracking.metrics_file import MetricsFile

CONF = Path(__file__).parents[1] / "conf"
STAGES = {  # with what is written out below; sizes are the recipe's
    "teacher": ["stage.label_dropout=0.1", "stage.training.weight=snr_plus_one"],
    "guidance": ["stage.training.weight=snr_plus_one", "stage.training.guidance_weight=relative"],
    "progressive": ["stage.training.weight=truncated_snr", "stage.training.guidance_weight=relative"],
}
CALIBRATION_STEPS = 40
WARM_UP_STEPS = 40  # not timed; same batches and draws on both sides
TOLERANCE = 1e-4  # largest relative difference of a loss in the warm-up; float32 against float64 coefficients
RUNG = 8
NULL_LABEL = DigitsData.facts.num_classes
OFFSET = atan(exp(-10.0))  # of the angle at t = 0: the schedule's log-SNR runs from -20 to 20
SLOPE = pi / 2 - 2 * OFFSET


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Blocks of each side, per stage.")] = 24,
    block_seconds: Annotated[float, typer.Option(help="Length of a block.")] = 0.8,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare each stage under Lightning with a bare PyTorch loop, in turns, on the digits recipe."""
    torch.set_num_threads(threads or torch.get_num_threads())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    rows = [measure_stage(name, rounds, block_seconds) for name in STAGES]
    columns = ["stage", "batch", "images/s", "bare images/s", "overhead %", "processor time %", "fastest blocks %"]
    report("training overhead: a stage under Lightning over a bare loop, median (quartiles)", rows, columns, out)


def measure_stage(name: str, rounds: int, block_seconds: float) -> dict[str, Any]:
    """One row of the result."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"stage={name}", "trainer.snapshots=0", "logger=csv", *STAGES[name]])
    setup = Setup.of(config)
    teacher = shaken(setup.network(guidance_input=name == "progressive"))

    def sides(training: Training) -> tuple[Stage, BareLoop]:
        match name:
            case "teacher":
                stage = setup.stage(deepcopy(teacher), training=training)
                return stage, BareTeacher(stage)
            case "guidance":
                student = with_guidance_input(teacher)
                stage = setup.stage(student, training=training, teacher=Guided(Frozen(teacher), NULL_LABEL))
                return stage, BareGuidance(stage, teacher.network)
            case _:
                stage = setup.stage(
                    deepcopy(teacher),
                    training=training,
                    rung=RUNG,
                    teacher=Frozen(teacher),
                    num_steps=RUNG,
                    w_min=0.0,
                    w_max=4.0,
                )
                return stage, BareProgressive(stage, teacher.network)

    trial = sides(setup.training())[1]
    start = Seconds.now()
    trial.run(0, CALIBRATION_STEPS)
    block = max(1, round(block_seconds * CALIBRATION_STEPS / Seconds.now().since(start).wall))
    recipe = setup.training()
    training = replace(recipe, images=(WARM_UP_STEPS + rounds * block) * recipe.batch_size)
    stage, bare = sides(training)
    with TemporaryDirectory() as folder:
        snapshots = Snapshots(
            folder=Path(folder),
            data=setup.judge.data,
            figures=RunningFigures(setup.judge.net, setup.judge.reference),
            count=0,
            num_images=1,
            num_steps=1,
            w=0.0,
            guided=False,
        )
        turns = Turns(snapshots, bare, block)
        fit(
            stage,
            DigitsData(batch_size=training.batch_size, stream=stage.stream),
            RunFolder(Path(folder), ()),
            setup.settings,
            parent_sha256=None,
            loggers=[MetricsFile(Path(folder))],
            snapshots=turns,
        )
    images = block * training.batch_size
    wall = Spread.of([100 * (ours.wall / theirs.wall - 1) for ours, theirs in turns.rounds])
    cpu = Spread.of([100 * (ours.cpu / theirs.cpu - 1) for ours, theirs in turns.rounds])
    fastest = 100 * (min(ours.cpu for ours, _ in turns.rounds) / min(theirs.cpu for _, theirs in turns.rounds) - 1)
    return {
        "stage": name,
        "batch": training.batch_size,
        "images/s": round(images / Spread.of([ours.wall for ours, _ in turns.rounds]).median),
        "bare images/s": round(images / Spread.of([theirs.wall for _, theirs in turns.rounds]).median),
        "overhead %": f"{wall.median:+.1f} ({wall.low:+.1f} to {wall.high:+.1f})",
        "processor time %": f"{cpu.median:+.1f} ({cpu.low:+.1f} to {cpu.high:+.1f})",
        "fastest blocks %": f"{fastest:+.1f}",
        "wall_percent": wall._asdict(),
        "cpu_percent": cpu._asdict(),
        "steps_per_block": block,
        "rounds": [{"stage": ours._asdict(), "bare": theirs._asdict()} for ours, theirs in turns.rounds],
        "largest_relative_loss_difference": turns.difference,
    }


def shaken(denoiser: Denoiser) -> Denoiser:
    """The fresh network with noise on its weights, for the sake of a prediction that is not zero."""
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return denoiser


class Turns(Callback):
    """Stops the fit after each block of steps and runs the bare loop for as many. `rounds`: times of (stage, bare)."""

    def __init__(self, snapshots: Snapshots, bare: "BareLoop", block: int) -> None:
        self.snapshots, self.bare, self.block = snapshots, bare, block
        self.rounds: list[tuple[Seconds, Seconds]] = []
        self.difference = 0.0
        self._began = Seconds.now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.snapshots.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        done = trainer.global_step
        if done <= WARM_UP_STEPS:
            torch.manual_seed(seed_for(self.bare.stream, done - 1))
            theirs, ours = float(self.bare.run(done - 1, done)), float(outputs["loss"])
            self.difference = max(self.difference, abs(theirs / ours - 1))
            assert self.difference < TOLERANCE, f"step {done}: the stage's loss is {ours}, the bare loop's {theirs}"
            self._began = Seconds.now()
        elif (done - WARM_UP_STEPS) % self.block == 0:
            paused = Seconds.now()
            self.bare.run(done - self.block, done)
            self.rounds.append((paused.since(self._began), Seconds.now().since(paused)))
            self._began = Seconds.now()


class BareLoop:
    """A training loop as one writes it down: no logging, checkpoint or check. It starts from the stage's student."""

    def __init__(self, stage: Stage) -> None:
        self.training = stage.training_plan
        self.stream = stage.stream
        self.data = DigitsData(batch_size=self.training.batch_size, stream=stage.stream)
        self.network: nn.Module = deepcopy(stage.student.network)
        self.average = deepcopy(self.network).requires_grad_(False) if self.training.ema_decay else None
        rate: Callable[[int], float] = lambda step: (  # noqa: E731
            min(1, (step + 1) * self.training.batch_size / self.training.warmup_images)
            * (1 - step / self.training.num_steps)
        )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), self.training.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def run(self, start: int, stop: int) -> Float[Tensor, ""]:
        """Steps start, ..., stop - 1; gives the last loss."""
        loss = torch.zeros(())
        parameters: list[Tensor] = list(self.network.parameters())
        averages: list[Tensor] = [] if self.average is None else list(self.average.parameters())
        for step in range(start, stop):
            loss = self.loss(self.data.batch(step))
            self.optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(parameters, self.training.gradient_clip)
            self.optimizer.step()
            self.scheduler.step()
            if averages:
                decay = min(self.training.ema_decay, (1 + step) / (10 + step))
                get_ema_multi_avg_fn(decay)(averages, parameters, 0)
        return loss.detach()

    @abstractmethod
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """One batch's loss."""


class BareTeacher(BareLoop):
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        x, label = batch
        t, eps = torch.rand(len(x)), torch.randn_like(x)
        label = label.where(torch.rand(len(x)) >= 0.1, NULL_LABEL)
        phi = OFFSET + SLOPE * t
        alpha, sigma = phi.cos()[:, None, None, None], phi.sin()[:, None, None, None]
        v = self.network(alpha * x + sigma * eps, phi / (pi / 2), label, None)
        return (v - (alpha * eps - sigma * x)).square().mean()


class BareGuidance(BareLoop):
    def __init__(self, stage: Stage, teacher: nn.Module) -> None:
        super().__init__(stage)
        self.teacher = teacher

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        x, label = batch
        t, eps, w = torch.rand(len(x)), torch.randn_like(x), 4 * torch.rand(len(x))
        phi = OFFSET + SLOPE * t
        time = phi / (pi / 2)
        z = phi.cos()[:, None, None, None] * x + phi.sin()[:, None, None, None] * eps
        with torch.no_grad():
            labels = torch.cat([label, torch.full_like(label, NULL_LABEL)])
            conditional, unconditional = self.teacher(torch.cat([z, z]), torch.cat([time, time]), labels, None).chunk(2)
            target = conditional + w[:, None, None, None] * (conditional - unconditional)
        error = (self.network(z, time, label, w) - target).square().flatten(1).mean(1)
        return ((1 + w) ** -2 * error).mean()


class BareProgressive(BareLoop):
    def __init__(self, stage: Stage, teacher: nn.Module) -> None:
        super().__init__(stage)
        self.teacher = teacher

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        x, label = batch
        t = torch.randint(1, RUNG + 1, (len(x),)) / RUNG
        eps, w = torch.randn_like(x), 4 * torch.rand(len(x))
        phi, half = OFFSET + SLOPE * t, SLOPE / RUNG / 2
        time = phi / (pi / 2)
        z = phi.cos()[:, None, None, None] * x + phi.sin()[:, None, None, None] * eps
        with torch.no_grad():
            first = self.teacher(z, time, label, w)
            second = self.teacher(cos(half) * z - sin(half) * first, (phi - half) / (pi / 2), label, w)
            target = (first + second / cos(half) - sin(half) / cos(half) * z) / 2
        error = (self.network(z, time, label, w) - target).square().flatten(1).mean(1)
        return ((1 + w) ** -2 * torch.maximum(phi.cos().square(), phi.sin().square()) * error).mean()


if __name__ == "__main__":
    typer.run(main)
