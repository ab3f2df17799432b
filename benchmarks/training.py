"""What does a stage cost over a plain loop? `fewstep.training.loop.fit` beside PyTorch alone and diffusers' shape.

One fit, cut into blocks of steps; between two blocks the other loops (`loops.py`) take as many steps each on networks,
optimisers and averages of their own, from the same start. The first steps are not timed: in them the stage and the bare
loop get the same batches and random numbers, and must have the same losses, which is how we know that the mathematics
is the same.
"""

import logging
import warnings
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from loops import NULL_LABEL, RUNG, BareLoop, DiffusersLoop, Guidance, Progressive, Teacher
from measure import Seconds, Spread, percent, report
from torch import nn

from fewstep.data.digits import DigitsData
from fewstep.diffusion.guidance import Guided
from fewstep.methods import GuidanceRange, Method, Networks, Training
from fewstep.networks import Denoiser, Frozen, with_guidance_input
from fewstep.runs.build import build_method, build_network
from fewstep.runs.config import Settings
from fewstep.system.seeds import seed_for
from fewstep.tracking.metrics_file import MetricsFile
from fewstep.training.loop import fit
from fewstep.training.module import DistillationModule

CONF = Path(__file__).parents[1] / "conf"
STAGES = {  # with what is written out in loops.py; sizes are the recipe's
    "teacher": ["stage.label_dropout=0.1", "stage.training.weight=snr_plus_one"],
    "guidance": ["stage.training.weight=snr_plus_one", "stage.training.guidance_weight=relative"],
    "progressive": ["stage.training.weight=truncated_snr", "stage.training.guidance_weight=relative"],
}
CALIBRATION_STEPS = 40
WARM_UP_STEPS = 40  # not timed; same batches and draws on both sides
TOLERANCE = 1e-4  # largest relative difference of a loss in the warm-up; float32 against float64 coefficients
COLUMNS = ["stage", "batch", "images/s", "bare images/s", "diffusers images/s", "over bare %", "over diffusers' %"]


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Blocks of each side, per stage.")] = 30,
    block_seconds: Annotated[float, typer.Option(help="Length of a block.")] = 0.5,
    stage: Annotated[list[str] | None, typer.Option(help="One of teacher, guidance, progressive; all.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare each stage, on the digits recipe, with a bare PyTorch loop and with the shape of diffusers' examples."""
    torch.set_num_threads(threads or torch.get_num_threads())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    rows = [measure_stage(name, rounds, block_seconds) for name in stage or STAGES]
    report("training: time of a stage over that of other loops, median of the rounds (quartiles)", rows, COLUMNS, out)


def measure_stage(name: str, rounds: int, block_seconds: float) -> dict[str, Any]:
    """One row of the result."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"stage={name}", "trainer.snapshots=0", "logger=csv", *STAGES[name]])
    settings = Settings.read(config)
    method = build_method(settings.stage)
    teacher = shaken(build_network(settings, DigitsData.facts, guidance_input=name == "progressive"))
    recipe = method.training
    trial = bare_loop(name, module_of(settings, method, teacher, recipe), teacher.network)
    start = Seconds.now()
    trial.run(0, CALIBRATION_STEPS)
    block = max(1, round(block_seconds * CALIBRATION_STEPS / Seconds.now().since(start).wall))
    training = replace(recipe, images=(WARM_UP_STEPS + rounds * block) * recipe.batch_size)
    module = module_of(settings, method, teacher, training)
    bare, peer = (bare_loop(name, module, teacher.network) for _ in range(2))
    turns = Turns(bare, DiffusersLoop(peer), block)
    with TemporaryDirectory() as folder:
        fit(
            module,
            DigitsData(batch_size=training.batch_size, stream=module.stream),
            Path(folder),
            settings.trainer,
            parent_sha256=None,
            loggers=[MetricsFile(Path(folder))],
            watchers=[turns],
        )
    images = block * training.batch_size
    ours, theirs, peers = zip(*turns.rounds, strict=True)
    return {
        "stage": name,
        "batch": training.batch_size,
        **{
            f"{side}images/s": round(images / Spread.of([time.wall for time in times]).median)
            for side, times in (("", ours), ("bare ", theirs), ("diffusers ", peers))
        },
        "over bare %": percent(ours, theirs, "wall"),
        "over diffusers' %": percent(ours, peers, "wall"),
        "processor time over bare %": percent(ours, theirs, "cpu"),
        "processor time over diffusers' %": percent(ours, peers, "cpu"),
        "milliseconds of a step over bare": round(
            1e3 / block * Spread.of([a.wall - b.wall for a, b in zip(ours, theirs, strict=True)]).median, 2
        ),
        "steps_per_block": block,
        "rounds": [{"stage": a._asdict(), "bare": b._asdict(), "diffusers": c._asdict()} for a, b, c in turns.rounds],
        "largest_relative_loss_difference": turns.difference,
    }


def module_of(settings: Settings, method: Method, teacher: Denoiser, training: Training) -> DistillationModule:
    """The stage, from a student that is its teacher."""
    phase = next((phase for phase in method.phases() if phase.num_steps == RUNG), method.phases()[0])
    student, frozen, stream = deepcopy(teacher), Frozen(deepcopy(teacher)), f"{settings.seed}/{settings.name}"
    if method.parent() is None:
        nets = Networks(student, None, settings.schedule, guidance=None)
    elif teacher.has_guidance_input:
        nets = Networks(student, frozen, settings.schedule, GuidanceRange(0.0, 4.0))
    else:
        guided = Guided(frozen, NULL_LABEL)
        nets = Networks(with_guidance_input(teacher), guided, settings.schedule, method.guidance(None))
    nets = method.networks(nets, stream)
    return DistillationModule(method=method, phase=phase, nets=nets, training=training, stream=stream)


def bare_loop(name: str, module: DistillationModule, teacher: nn.Module) -> BareLoop:
    """The same by hand."""
    match name:
        case "teacher":
            return Teacher(module)
        case "guidance":
            return Guidance(module, teacher)
        case _:
            return Progressive(module, teacher)


def shaken(denoiser: Denoiser) -> Denoiser:
    """The fresh network with noise on its weights, for the sake of a prediction that is not zero."""
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return denoiser


class Turns(Callback):
    """Stops the fit after each block of steps and runs the other loops for as many.

    Attributes:
        rounds: times of (stage, bare loop, diffusers' loop).
    """

    def __init__(self, bare: BareLoop, peer: DiffusersLoop, block: int) -> None:
        self.bare, self.peer, self.block = bare, peer, block
        self.rounds: list[tuple[Seconds, Seconds, Seconds]] = []
        self.difference = 0.0
        self._began = Seconds.now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.global_step
        if done <= WARM_UP_STEPS:
            torch.manual_seed(seed_for(self.bare.stream, done - 1))
            theirs, ours = float(self.bare.run(done - 1, done)), float(outputs["loss"])
            self.difference = max(self.difference, abs(theirs / ours - 1))
            assert self.difference < TOLERANCE, f"step {done}: the stage's loss is {ours}, the bare loop's {theirs}"
            self.peer.run(done - 1, done)
            self._began = Seconds.now()
        elif (done - WARM_UP_STEPS) % self.block == 0:
            loops = [self.bare, self.peer][:: 1 if len(self.rounds) % 2 else -1]
            marks = [Seconds.now()]
            for loop in loops:
                loop.run(done - self.block, done)
                marks.append(Seconds.now())
            spent = {loop: after.since(before) for loop, (before, after) in zip(loops, pairwise(marks), strict=True)}
            self.rounds.append((marks[0].since(self._began), spent[self.bare], spent[self.peer]))
            self._began = Seconds.now()


if __name__ == "__main__":
    typer.run(main)
