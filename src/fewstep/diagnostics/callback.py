"""The callback that measures a student while it trains, writes diagnostics.jsonl and raises alarms."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from fewstep.data.batches import Data
from fewstep.diagnostics.alarms import alarms
from fewstep.diagnostics.critics import critics, gradient_ratios
from fewstep.diagnostics.file import DiagnosticsFile, log_record
from fewstep.diagnostics.gaps import ProbeErrors, gap, probe_errors
from fewstep.diagnostics.gradients import gradient_norm_by_part
from fewstep.diagnostics.probe import Bin, Probe, Starts, weight_bins
from fewstep.diagnostics.samples import SampleStatistics, limits_of
from fewstep.diagnostics.steps import Paths
from fewstep.diffusion.schedule import Images
from fewstep.distributed.collectives import world_size
from fewstep.methods.training import STUDENT
from fewstep.system.seeds import fresh_noise, seed_for, starting_noise
from fewstep.training.checkpointing import ends_step
from fewstep.training.module import DistillationModule

SEED = 1  # of the samples' starting noise; that of pictures and figures is another


class Diagnostics(Callback):
    """Measure the student at the start of a phase and `count` times evenly over it, the last time at its end.

    All processes measure the same inputs, as a sharded network needs all of them; the first one writes. Training is
    unaffected: what is drawn comes from separate generators.

    Args:
        folder: of the run.
        data: its first batch are the probe's examples; where the method's inputs are noise, only facts and conditions
            are used.
        count: measurements after the one at the start; 0: none at all.
        images_before: images seen in earlier phases of the run.
        alarming: whether alarms are raised.
    """

    def __init__(self, *, folder: Path, data: Data, count: int, images_before: int = 0, alarming: bool = True) -> None:
        self.file = DiagnosticsFile(folder)
        self.facts, self.examples, self.conditions, self.count = data.facts, data.batch(0), data.conditions, count
        self.images_before, self.alarming = images_before, alarming
        self._records: list[dict[str, Any]] = []  # of this phase, on the first process
        self._teacher_samples: Images | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self.prepare(pl_module)
        begins = trainer.global_step == 0
        if trainer.is_global_zero:
            images, rung = self.images(trainer, pl_module), pl_module.phase.num_steps
            self._records = self.file.truncate(images, rung, begins=begins)
        if begins and self.count:
            self.measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        step, total = trainer.global_step, pl_module.training_plan.num_steps
        if not ends_step(trainer, batch_idx):
            return
        if step * self.count // total > (step - 1) * self.count // total:
            self.measure(trainer, pl_module)

    def prepare(self, module: DistillationModule) -> None:
        """Fix what all measurements of the phase have in common."""
        method, nets, sampling = module.method, module.nets, module.phase.sampling
        examples = self.examples if method.inputs == "data" else None
        self.limits = limits_of(self.facts, examples.x if examples else None)
        self.probe, self.data_statistics = None, None
        if examples:
            null = nets.student.null if sampling.is_combined else None
            generator = torch.Generator().manual_seed(seed_for("diagnostics"))
            self.probe = Probe.of(examples, method.times(module.phase), nets.guidance, null, generator)
            # An example with a prompt shares it with no other.
            classes = examples.label if examples.label.ndim == 1 else torch.arange(len(examples.label))
            self.data_statistics = asdict(SampleStatistics.of(examples.x, classes, self.limits))
        self.w_bins, _ = weight_bins(nets.guidance)
        noise = partial(starting_noise, SEED, 0, shape=self.facts.shape)
        starts = Starts.of(self.conditions, self.facts.num_classes, nets.guidance, noise)
        self.starts = starts if sampling.direction == "decode" else starts.at_data(self.examples)

    def images(self, trainer: Trainer, module: DistillationModule) -> int:
        """Images seen in this run, earlier phases included."""
        return self.images_before + trainer.global_step * module.training_plan.batch_size

    def measure(self, trainer: Trainer, module: DistillationModule) -> None:
        """Measure the model as it would be saved, record it and raise alarms."""
        module.check_finite()
        with evaluation_mode(module, trainer):
            record: dict[str, Any] = {
                "images": self.images(trainer, module),
                "stage": module.method.name,
                "rung": module.phase.num_steps,
                **self.gaps(module),
                **self.samples(module),
                "data": self.data_statistics,
                **gradient_norms(module, trainer.global_step),
                "gradient_ratio": gradient_ratios(module),
                "critics": critics(module),
            }
        if trainer.is_global_zero:
            self.write(trainer, finite(record), last=trainer.global_step >= module.training_plan.num_steps)

    def write(self, trainer: Trainer, record: dict[str, Any], *, last: bool) -> None:
        """Add alarms to a record, then write and log it; an alarm is printed once per kind and phase."""
        raised = alarms(record, self._records, last=last) if self.alarming else []
        record["alarms"] = [{"kind": alarm.kind, "says": alarm.message} for alarm in raised]
        printed = {alarm["kind"] for earlier in self._records for alarm in earlier["alarms"]}
        self._records.append(record)
        self.file.append(record)
        new = [alarm for alarm in raised if alarm.kind not in printed]
        for alarm in new:
            print(f"alarm: {alarm.message}", flush=True)
        log_record(trainer.loggers, record, new)

    def gaps(self, module: DistillationModule) -> dict[str, Any]:
        """The gap to the method's target, whole and by bins; null and empty without data or target."""
        probe = self.probe
        found = None if probe is None else probe_errors(module.nets.model, module, probe, rows(module))
        if probe is None or found is None:
            return {"gap": None, "gap_by_t": [], "gap_by_w": [], "gap_by_branch": None}
        branches = {"conditional": ~probe.unconditional, "unconditional": probe.unconditional}
        by_branch = {name: gap(found, where) for name, where in branches.items()}
        return {
            "gap": gap(found),
            "gap_by_t": by_bins(found, probe.t_bin, probe.t_bins),
            "gap_by_w": by_bins(found, probe.w_bin, probe.w_bins),
            "gap_by_branch": by_branch if probe.unconditional.any() else None,
        }

    def samples(self, module: DistillationModule) -> dict[str, Any]:
        """Errors of single steps, and statistics of the student's samples and the teacher's."""
        fresh = partial(fresh_noise, SEED, shape=self.facts.shape)  # of (start, count)
        paths = Paths(module, self.starts, fresh, rows(module))
        path = paths.follow(module.nets.model, module.phase.sampling)
        if self._teacher_samples is None:
            self._teacher_samples = paths.teacher_samples()
        errors = paths.step_errors(path)
        found: dict[str, Any] = {"step_errors": [{"t": t, "error": error} for t, error in errors]}
        own = path.end if module.phase.sampling.direction == "decode" else None
        for name, x in (("samples", own), ("teacher_samples", self._teacher_samples)):
            found[name] = None if x is None else asdict(SampleStatistics.of(x, self.starts.cell, self.limits))
            found[f"{name}_by_w"] = [] if x is None else self.statistics_by_w(x)
        return found

    def statistics_by_w(self, x: Images) -> list[dict[str, Any]]:
        """Statistics of samples in each bin of w."""
        x, found = x.cpu(), []
        for number, bin in enumerate(self.w_bins):
            where = self.starts.w_bin == number
            found.append(asdict(bin) | asdict(SampleStatistics.of(x[where], self.starts.cell[where], self.limits)))
        return found


def gradient_norms(module: DistillationModule, step: int) -> dict[str, Any]:
    """Norms of the last step before clipping, of the roles that it moved; by part of the student if that moved."""
    if not step:
        return {"gradient_norm": None, "gradient_norm_by_role": None}
    by_role = {role: float(module.gradient_norms[role]) for role in module.method.moving(step - 1)}
    by_part = None
    if STUDENT in by_role:
        clip = module.training_plan.of_role(STUDENT).gradient_clip
        by_part = gradient_norm_by_part(module.student.network, max(1.0, by_role[STUDENT] / clip))
    return {"gradient_norm": by_part, "gradient_norm_by_role": by_role}


def by_bins(found: ProbeErrors, number: Int[Tensor, "batch"], bins: tuple[Bin, ...]) -> list[dict[str, float]]:
    """Bins and their gaps in the form of diagnostics.jsonl; `number` is the bin of each example."""
    return [asdict(bin) | {"gap": gap(found, number == one)} for one, bin in enumerate(bins)]


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record as plain JSON, with None for infinite and NaN, which JSON does not have."""
    return json.loads(json.dumps(record), parse_constant=lambda _: None)


def rows(module: DistillationModule) -> int:
    """Examples evaluated at once: as many as a training step of this process, which fit into memory."""
    return max(1, module.training_plan.batch_size // world_size())


@contextmanager
def evaluation_mode(module: DistillationModule, trainer: Trainer) -> Iterator[None]:
    """Eval mode in training's precision, without compiling again for calls of other sizes."""
    networks = (module.student, module.nets.model)
    modes = [network.training for network in networks]
    compiled = getattr(module.student.network, "_compiled_call_impl", None) is not None
    try:
        for network in networks:
            network.eval()
        with (
            trainer.precision_plugin.forward_context(),
            torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        ):
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
