"""Looks at a stage now and then while it trains; what it finds goes to diagnostics.jsonl, to W&B and to the log."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fewstep.data.batches import Data
from fewstep.diagnostics.alarms import alarms
from fewstep.diagnostics.file import DiagnosticsFile, alert, log_look
from fewstep.diagnostics.gaps import answers, gap, gap_by
from fewstep.diagnostics.gradients import gradient_norms
from fewstep.diagnostics.probe import Bin, Probe, Starts
from fewstep.diagnostics.samples import Limits, look_at
from fewstep.diagnostics.steps import taught_samples, walk
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.sampler import Fresh
from fewstep.diffusion.schedule import Images
from fewstep.distributed.collectives import world_size
from fewstep.methods import EncoderStage, GuidanceRange, Stage
from fewstep.system.seeds import fresh_noise, seed_for, starting_noise

SEED = 1  # of the noise that samples begin with: not that of the pictures and figures


class Diagnostics(Callback):
    """At the start of a stage or rung and `count` times over it, evenly, the last at its end: a look at the student.

    Every process looks, at the same things, so that sharded networks meet; the first one says what was seen. Training
    is not changed: what is drawn is drawn by generators of its own.

    Args:
        folder: of the run. data: its first batch are the examples of the probe.
        count: of looks after the one at the start; 0 is none at all.
        images_before, rung: as in `TrainingLog`.
        alarming: whether what is wrong raises alarms.
    """

    def __init__(
        self,
        *,
        folder: Path,
        data: Data,
        count: int,
        images_before: int = 0,
        rung: int | None = None,
        alarming: bool = True,
    ) -> None:
        self.file = DiagnosticsFile(folder)
        self.facts, self.examples, self.conditions, self.count = data.facts, data.batch(0), data.conditions, count
        self.images_before, self.rung, self.alarming = images_before, rung, alarming
        self.limits = Limits.of(self.facts, self.examples.x)
        self._looks: list[dict[str, Any]] = []  # of this stage and rung, on the first process
        self._taught: Images | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        guidance: GuidanceRange | None = getattr(pl_module, "guidance", None)
        generator = torch.Generator().manual_seed(seed_for("diagnostics"))
        self.probe = Probe.of(self.examples, pl_module.times, guidance, pl_module.student.null, generator)
        self.starts = Starts.of(
            self.conditions,
            self.facts.num_classes,
            guidance,
            lambda count: starting_noise(SEED, 0, count, self.facts.shape),
        )
        if isinstance(pl_module, EncoderStage):
            self.starts = self.starts.at_data(self.examples)
        begins = trainer.global_step == 0
        if trainer.is_global_zero:
            self._looks = self.file.truncate(self.images(trainer, pl_module), self.rung, begins=begins)
        if begins and self.count:
            self.look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Stage)
        step, total = trainer.global_step, pl_module.training_plan.num_steps
        if step * self.count // total > (step - 1) * self.count // total:
            self.look(trainer, pl_module)

    def images(self, trainer: Trainer, stage: Stage) -> int:
        """Images seen in this run, earlier rungs included."""
        return self.images_before + trainer.global_step * stage.training_plan.batch_size

    def look(self, trainer: Trainer, stage: Stage) -> None:
        """Look at the model as it would be saved; write it down, and say what is wrong."""
        stage.check_finite()
        with evaluation_mode(stage, trainer):
            found: dict[str, Any] = {
                "images": self.images(trainer, stage),
                "stage": stage.name,
                "rung": self.rung,
                **self.gaps(stage),
                **self.paths(stage),
                "data": asdict(look_at(self.examples.x, classes(self.examples.label), self.limits)),
                "gradient_norm": self.gradients(stage) if trainer.global_step else None,
            }
        if not trainer.is_global_zero:
            return
        found = finite(found)
        last = trainer.global_step >= stage.training_plan.num_steps
        raised = alarms(found, self._looks, last=last) if self.alarming else []
        found["alarms"] = [alarm._asdict() for alarm in raised]
        said = {alarm["kind"] for look in self._looks for alarm in look["alarms"]}
        self._looks.append(found)
        self.file.append(found)
        log_look(trainer.loggers, found)
        for alarm in found["alarms"]:
            if alarm["kind"] not in said:
                print(f"alarm: {alarm['says']}", flush=True)
                alert(trainer.loggers, alarm["kind"], alarm["says"])

    def gaps(self, stage: Stage) -> dict[str, Any]:
        """The gap to what is taught, whole and by bins."""
        probe, found = self.probe, answers(stage.model, stage, self.probe, rows(stage))
        branches = {"conditional": ~probe.unconditional, "unconditional": probe.unconditional}
        return {
            "gap": gap(found),
            "gap_by_t": by_bins(probe.t_bins, gap_by(found, probe.t_bin, len(probe.t_bins))),
            "gap_by_w": by_bins(probe.w_bins, gap_by(found, probe.w_bin, len(probe.w_bins))),
            "gap_by_branch": None
            if probe.w is not None
            else {name: gap(found, where) for name, where in branches.items()},
        }

    def paths(self, stage: Stage) -> dict[str, Any]:
        """Errors of single steps, and what the samples look like beside the teacher's."""
        end, errors = walk(stage.model, stage, self.starts, self.fresh, rows(stage))
        encodes = isinstance(stage, EncoderStage)
        if self._taught is None:
            self._taught = taught_samples(stage, self.starts, self.fresh, rows(stage))
        found: dict[str, Any] = {"step_errors": [{"t": t, "error": error} for t, error in errors]}
        for name, x in (("samples", None if encodes else end), ("teacher_samples", self._taught)):
            found[name] = None if x is None else asdict(look_at(x, self.starts.cell, self.limits))
            found[f"{name}_by_w"] = [] if x is None else self.by_weight(x)
        return found

    def by_weight(self, x: Images) -> list[dict[str, Any]]:
        """Samples by bins of w."""
        found = []
        for number, bin in enumerate(self.probe.w_bins):
            where = self.starts.w_bin == number
            found.append(asdict(bin) | asdict(look_at(x[where.to(x.device)], self.starts.cell[where], self.limits)))
        return found

    def gradients(self, stage: Stage) -> dict[str, float]:
        """Of the last step, as it was before clipping."""
        clip = stage.training_plan.gradient_clip
        return gradient_norms(stage.student.network, max(1.0, float(stage.gradient_norm) / clip))

    def fresh(self, start: int, count: int) -> Fresh:
        """The noise that a stochastic sampler adds."""
        return fresh_noise(SEED, start, count, self.facts.shape)


def by_bins(bins: tuple[Bin, ...], gaps: list[float]) -> list[dict[str, float]]:
    """Bins and what was found in them, as diagnostics.jsonl has it."""
    return [asdict(bin) | {"gap": found} for bin, found in zip(bins, gaps, strict=True)]


def finite(found: Any) -> Any:
    """The same, with None for every number that is none: JSON has no NaN."""
    if isinstance(found, dict):
        return {name: finite(value) for name, value in found.items()}
    if isinstance(found, list):
        return [finite(value) for value in found]
    return None if isinstance(found, float) and not isfinite(found) else found


def classes(label: Condition) -> torch.Tensor:
    """What examples share: their class; of prompts, each has its own."""
    return label if label.ndim == 1 else torch.arange(len(label))


def rows(stage: Stage) -> int:
    """How many examples are asked at once: as many as a training step of this process has, whose memory suffices."""
    return max(1, stage.training_plan.batch_size // world_size())


@contextmanager
def evaluation_mode(stage: Stage, trainer: Trainer) -> Iterator[None]:
    """The model in eval mode and in training's precision; not compiled anew for these few calls of other sizes."""
    model = stage.model
    training = model.training
    compiled = getattr(stage.student.network, "_compiled_call_impl", None) is not None
    model.eval()
    try:
        with trainer.precision_plugin.forward_context():
            if compiled:
                with torch.compiler.set_stance("force_eager"):
                    yield
            else:
                yield
    finally:
        model.train(training)
