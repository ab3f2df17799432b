"""Does a method cost more time than its network evaluations? `fewstep.training.loop.fit` beside a bare loop.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json

The bare loop makes the same evaluations from the same start and with the same random numbers, which is checked: the
method's losses, backward pass, clipping, optimiser and averages in a dozen lines. It has no Lightning, no logging, no
checkpoints. Both take turns in one fit, block by block. Beside them stands what the evaluations alone would take: their
number, a backward pass counted 2 and a forward-mode derivative 1 more, times the seconds of one forward pass, so that a
method whose count flatters it shows. The parent has new weights, on which no time depends.
"""

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from measure import Seconds, Spread, machine, percent, report
from torch.nn.utils import clip_grad_norm_

from fewstep.data.batches import Data
from fewstep.data.noise import NoiseData
from fewstep.estimate.phases import build_module, fresh_parent
from fewstep.methods import Method, Training
from fewstep.methods.draws import Draws
from fewstep.methods.training import STUDENT
from fewstep.networks.memory import denoisers_in
from fewstep.runs.build import build_data, build_method
from fewstep.runs.config import Settings
from fewstep.runs.methods import composed_methods
from fewstep.runs.train import Job
from fewstep.tracking.metrics_file import MetricsFile
from fewstep.training.loop import fit
from fewstep.training.module import DistillationModule

CONF = Path(__file__).parents[1] / "conf"
CALIBRATION_STEPS, WARM_UP_STEPS = 3, 6  # the latter are compared, and not timed
COLUMNS = [
    *(
        "method",
        "evaluations",
        "bare ms",
        "over bare %",
        "processor time over bare %",
        "over evaluations %",
    ),
]


def main(
    method: Annotated[list[str] | None, typer.Option(help="Names of stages; all that have a parent.")] = None,
    dataset: Annotated[str, typer.Option(help="Whose network is trained.")] = "patches",
    batch_size: Annotated[int, typer.Option(min=1, help="Of every method: that of the patches recipe.")] = 32,
    rounds: Annotated[int, typer.Option(min=4, help="Blocks of each side, per method.")] = 12,
    block_seconds: Annotated[float, typer.Option(help="Length of a block.")] = 1.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file; rows of other methods in it stay.")] = None,
) -> None:
    """Compare each method with a bare loop of the same evaluations, and that with its evaluations alone."""
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    names = method or [name for name, each in composed_methods() if each.parent() is not None]
    kept = json.loads(out.read_text())["rows"] if out is not None and out.is_file() else []
    rows: list[dict[str, Any]] = [row for row in kept if row["method"] not in names]
    for name in names:
        rows.append(measure_method(name, dataset, batch_size, rounds, block_seconds))
        report(f"overhead: time of a step of {dataset}, median of the rounds (quartiles)", rows, COLUMNS, out)


def measure_method(name: str, dataset: str, batch_size: int, rounds: int, block_seconds: float) -> dict[str, Any]:
    """One row of the result."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = [f"stage={name}", f"dataset={dataset}", "trainer=cpu", "logger=csv"]
        settings = Settings.read(compose("config", own))
    method = build_method(settings.stage)
    training = replace(method.training, batch_size=batch_size, images=10**9, evaluations=None)
    bare = BareLoop(*parts_of(settings, method, training))
    bare.run(0, 1)
    start = Seconds.now()
    bare.run(1, 1 + CALIBRATION_STEPS)
    block = max(1, round(block_seconds * CALIBRATION_STEPS / Seconds.now().since(start).wall))
    training = replace(training, images=(WARM_UP_STEPS + rounds * block) * batch_size)
    module, data = parts_of(settings, method, training)
    turns = Turns(BareLoop(*parts_of(settings, method, training)), block)
    with TemporaryDirectory() as folder:
        loggers, watchers = [MetricsFile(Path(folder))], [turns]
        own = {"parent_sha256": None, "loggers": loggers, "watchers": watchers}
        fit(module, data, Path(folder), settings.trainer, **own)
    ours, theirs, alone = zip(*turns.rounds, strict=True)
    return {
        "method": name,
        "evaluations": round(turns.evaluations / (rounds * block * batch_size), 2),
        "bare ms": round(1e3 / block * Spread.of([time.wall for time in theirs]).median, 1),
        "over bare %": percent(ours, theirs, "wall"),
        "processor time over bare %": percent(ours, theirs, "cpu"),
        "over evaluations %": percent(theirs, alone, "cpu"),
        "milliseconds of a step over bare": round(
            1e3 / block * Spread.of([a.wall - b.wall for a, b in zip(ours, theirs, strict=True)]).median, 2
        ),
        "batch": batch_size,
        "load_average": machine()["load_average"],
        "steps_per_block": block,
        "rounds": [{"fit": a._asdict(), "bare": b._asdict(), "evaluations": c._asdict()} for a, b, c in turns.rounds],
        "largest_relative_loss_difference": turns.difference,
    }


def parts_of(settings: Settings, method: Method, training: Training) -> tuple[DistillationModule, Data]:
    """The module of the method's first phase and its data, the same on every call."""
    torch.manual_seed(0)
    source, phase, wanted = build_data(settings, training.batch_size, "plan"), method.phases()[0], method.parent()
    assert wanted is not None, "a method with a parent"
    job = Job(settings, method, source, None, source.facts, Path())
    parent = fresh_parent(settings, source.facts, wanted)
    module = build_module(job, phase, parent, training, is_first=True)
    if method.inputs == "noise":
        source = NoiseData(source.facts, batch_size=training.batch_size, stream="plan")
    return module, source


class BareLoop:
    """A training loop as one writes it down, around the losses of a method."""

    def __init__(self, module: DistillationModule, data: Data) -> None:
        self.module, self.data, self.updates = module, data, 0
        made: Any = module.configure_optimizers()
        self.optimizer, self.scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]

    def run(self, start: int, stop: int) -> float:
        """Steps start, ..., stop - 1; gives the last loss."""
        method, nets, weights, total = self.module.method, self.module.nets, self.module.weights, torch.zeros(())
        for step in range(start, stop):
            batch, moving = self.data.batch(step), method.moving(step)
            for role in weights if len(weights) > 1 else ():
                for weight in weights[role]:
                    weight.requires_grad_(role in moving)
            draws = Draws.begin(batch.x, self.module.stream, step)
            losses = method.losses(batch, nets, draws, step=step, phase=self.module.phase)
            total = torch.stack([loss.error.mean() for loss in losses.values()]).sum()
            self.optimizer.zero_grad()
            total.backward()
            for role in moving:
                clip_grad_norm_(weights[role], self.module.training_plan.of_role(role).gradient_clip)
            self.optimizer.step()
            self.scheduler.step()
            if STUDENT in moving:
                for average in nets.averages.values():
                    average.update(weights[STUDENT], self.updates)
                self.updates += 1
        return float(total.detach())

    @torch.no_grad()
    def evaluate(self, count: int) -> None:
        """So many forward passes of the teacher's network for a batch."""
        x, label = self.data.batch(0)
        ones = torch.ones(len(x))
        (network, *_) = denoisers_in(self.module.nets.teacher)
        for _ in range(count):
            network(x, 0 * ones, label, ones)


class Turns(Callback):
    """Stops the fit after each block of steps, and runs the bare loop for as many and its evaluations alone.

    Attributes:
        rounds: times of (fit, bare loop, evaluations alone: those timed, scaled to the block's number).
        evaluations: of the bare loop in all rounds, of one example each.
    """

    def __init__(self, bare: BareLoop, block: int) -> None:
        self.bare, self.block = bare, block
        self.rounds: list[tuple[Seconds, Seconds, Seconds]] = []
        self.difference, self.evaluations = 0.0, 0
        self._began = Seconds.now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.global_step
        if done <= WARM_UP_STEPS:
            theirs, ours = self.bare.run(done - 1, done), float(outputs["loss"])
            self.difference = max(self.difference, abs(theirs - ours) / max(abs(ours), 1e-12))
            assert self.difference < 1e-4, f"step {done}: the loss of fit is {ours}, that of the bare loop {theirs}"
            self._began = Seconds.now()
        elif (done - WARM_UP_STEPS) % self.block == 0:
            ours, first = Seconds.now().since(self._began), len(self.rounds) % 2 == 0
            alone = None if first else self.alone()
            start, before = Seconds.now(), self.bare.module.evaluated
            self.bare.run(done - self.block, done)
            theirs, made = Seconds.now().since(start), self.bare.module.evaluated - before
            alone = alone or self.alone()
            self.evaluations += made
            passes = made / self.bare.data.batch_size
            self.rounds.append((ours, theirs, Seconds(*(passes * each for each in alone))))
            self._began = Seconds.now()

    def alone(self, count: int = 8) -> Seconds:
        """The time of one forward pass."""
        start = Seconds.now()
        self.bare.evaluate(count)
        return Seconds(*(each / count for each in Seconds.now().since(start)))


if __name__ == "__main__":
    typer.run(main)
