"""The LightningModule that trains any method: seeds, losses by role, clipping, averages, the watch on the loss."""

from collections import deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fewstep.data.batch import Batch, Pairs, as_batch
from fewstep.distributed.collectives import all_gather_rows, all_reduce_and, world_size
from fewstep.distributed.sharding import full_scalar, gather_full_model, shard_module
from fewstep.methods.base import Method, Networks, Phase
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss, Verdict
from fewstep.methods.training import STUDENT, Training
from fewstep.networks import Denoiser
from fewstep.networks.memory import denoisers_in

CLIP_EPS = 1e-6  # which torch adds to the norm
COUNTED = 64  # optimiser steps whose network evaluations are counted before a budget is given out
STRETCHES = 8  # that they are in
LEAST_SCALE = 1e-6  # of the loss in half precision; where the gradients still overflow, they are not finite
CHECK_EVERY = 50  # optimiser steps between looks at the loss; each look waits for the device


class NonFiniteLossError(ValueError):
    """The loss or its gradient became infinite or NaN, at `step`."""

    step: int = 0


@dataclass
class StepRecord:
    """The losses and gradient norms of a step, by role, kept on the device until somebody looks."""

    step: int
    losses: Mapping[str, Loss]
    gradient_norms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    def total(self, role: str) -> Float[Tensor, ""]:
        """Finite if and only if the role's loss and gradient were."""
        loss = self.losses[role].error.mean()
        return loss + self.gradient_norms[role] if role in self.gradient_norms else loss

    @property
    def sum(self) -> Float[Tensor, ""]:
        return torch.stack([self.total(role) for role in self.losses]).sum()


class DistillationModule(lightning.LightningModule):
    """One phase of a method. Optimisation is Lightning's automatic one, so that global_step counts steps.

    One optimiser has a parameter group for each role. Roles that do not move in a step have no gradients in its graph,
    so the optimiser skips them; the loss is the sum of the others'.

    Args:
        method, phase: what is trained. nets: its networks.
        training: the budget of this phase.
        stream: names the random numbers of this stage and phase, with the run's seed.
    """

    def __init__(self, *, method: Method, phase: Phase, nets: Networks, training: Training, stream: str) -> None:
        super().__init__()
        self.method = replace(method, training=training)  # curricula go over the budget of this phase
        self.phase, self.nets, self.training_plan, self.stream = phase, nets, training, stream
        self.student = nets.student.train(method.has_dropout).requires_grad_(False)
        self.averages = nn.ModuleDict(dict(nets.averages))
        # DDP averages the gradients of the weights that require one when it is set up, whatever moves in a step.
        self.trained = nn.ModuleDict(dict(nets.trained)).requires_grad_(True)
        for weight in self.method.weights(self.student):
            weight.requires_grad_(True)
        self.list_modules()
        self._template: tuple[Denoiser, ...] = ()  # of the sharded student; in a tuple, so that it is no submodule
        self.gradient_norms: dict[str, Tensor] = {}
        self.student_updates = 0
        self.evaluations = 0  # of networks, on this process
        self.ended_at = 0  # the last optimiser step of a training that has ended
        self.verdicts: dict[str, Verdict] = {}  # of critics in the latest step, on the device
        self._recent: deque[StepRecord] = deque(maxlen=CHECK_EVERY)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes which hook it is in some twenty times a step, and nn.Module asks each time if it is a weight.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def list_modules(self) -> None:
        """Find the trained weights of each role and the networks that count, again once sharded: walking takes time.

        A role may be a part of the student, like its gates; what it has, the student's own role has not.
        """
        beside = {role: [*module.parameters()] for role, module in self.trained.items()}
        taken = {weight for weights in beside.values() for weight in weights}
        self._averaged = self.method.weights(self.student)
        own = [weight for weight in self._averaged if weight not in taken]
        self.weights: dict[str, list[nn.Parameter]] = {STUDENT: own, **beside}
        others = [each for module in (*self.averages.values(), *self.trained.values()) for each in module.modules()]
        self._counted = [
            *denoisers_in(self.nets.teacher),
            self.student,
            *(e for e in others if isinstance(e, Denoiser)),
        ]
        for average in self.nets.averages.values():
            average.list_weights()

    def configure_model(self) -> None:
        """Shard all networks over the processes, where Lightning's strategy has a mesh of them (FSDP2)."""
        if self.device_mesh is None or self._template:
            return
        self._template = (deepcopy(self.student).to("meta"),)
        mesh = self.device_mesh["data_parallel"]
        averaged = [average.network for average in self.nets.averages.values()]
        # A role that is a part of the student is sharded before the whole.
        for module in (*self.trained.values(), self.student, *averaged, *denoisers_in(self.nets.teacher)):
            shard_module(module, mesh)
        self.list_modules()

    def model_in_full(self) -> Denoiser:
        """The model; after sharded training gathered on rank 0, and without weights on the other ranks."""
        return gather_full_model(self.nets.model, *self._template) if self._template else self.nets.model

    @property
    def scaler(self) -> "torch.amp.GradScaler | None":
        """What scales the loss, in trainings in half precision."""
        return None if self._trainer is None else getattr(self._trainer.precision_plugin, "scaler", None)

    def training_step(self, batch: Any, batch_index: int) -> Float[Tensor, ""]:
        """The loss of a batch: `Batch`, `Pairs`, or what `as_batch` reads."""
        before = self.evaluated
        parts = 1 if self._trainer is None else self._trainer.accumulate_grad_batches
        step = self.global_step
        losses = self.losses_at(step, as_batch(batch), batch_index % parts)
        self.evaluations += self.evaluated - before
        detached = {role: loss.detach() for role, loss in losses.items()}
        self._recent.append(StepRecord(step, detached))
        self.verdicts.update((role, loss.verdict) for role, loss in detached.items() if loss.verdict is not None)
        first, *others = (loss.error.mean() for loss in losses.values())
        return sum(others, first)

    def losses_at(self, step: int, batch: Batch | Pairs, part: int = 0) -> Mapping[str, Loss]:
        """The losses of an optimiser step, with gradients for the roles that move in it.

        Args:
            part: of the step's batch, where several batches are accumulated into a step.
        """
        moving = self.method.moving(step)
        for role, weights in self.weights.items():
            if len(self.weights) > 1:
                for weight in weights:
                    weight.requires_grad_(role in moving)
        draws = Draws.begin(batch.x, f"{self.stream}/part {part}" if part else self.stream, step)
        losses = self.method.losses(batch, self.nets, draws, step=step, phase=self.phase)
        assert set(losses) == set(moving), f"{self.method.name} moves {moving} and has losses of {tuple(losses)}"
        return losses

    def evaluations_per_image(self, batch: Batch | Pairs) -> float:
        """Network evaluations that a training image costs, a backward pass counted 2: the mean over some steps.

        Of whole cycles of roles, and of so many that what a method draws, like where a few-step student is trained, is
        of little account. They are stretches of neighbouring steps, as a method may choose by a step's number, spread
        over the training, whose states may be dearer after a warm-up.
        """
        moving = [self.method.moving(step) for step in range(2 * COUNTED)]
        period = next((n for n in range(1, COUNTED) if moving[n:] == moving[:-n]), COUNTED)
        stretches, before = max(1, min(STRETCHES, COUNTED // period)), self.evaluated
        length = max(1, COUNTED // (stretches * period)) * period
        remembered = [(buffer, buffer.clone()) for buffer in self.trained.buffers()]
        for number in range(stretches):
            middle = (2 * number + 1) * self.training_plan.num_steps // (2 * stretches)
            start = middle // period * period
            for step in range(start, start + length):
                self.losses_at(step, batch)
        for buffer, value in remembered:  # of a training's steps, and these are none
            buffer.copy_(value)
        return (self.evaluated - before) / (stretches * length * len(batch.x))

    @property
    def evaluated(self) -> int:
        """Network evaluations of one example each so far, by all networks of the phase; a backward pass counts 2."""
        return sum(denoiser.evaluated for denoiser in self._counted)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        for role in self.method.moving(self.global_step):
            weights, most = self.weights[role], self.training_plan.of_role(role).gradient_clip
            norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
            self.gradient_norms[role] = full_scalar(norm)
            # A GPU is not waited for; a CPU need not multiply all gradients by 1, as clipping does to short ones.
            if norm.device.type != "cpu" or not float(self.gradient_norms[role]) + CLIP_EPS <= most:
                clip_grads_with_norm_(weights, most, norm)
            if self.scaler is None:  # which skips the steps whose gradients overflow
                self._recent[-1].gradient_norms[role] = self.gradient_norms[role]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        # The optimiser's own enters torch's profiler each step, which takes as long as the rest of it.
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def optimizer_step(self, *step: Any, **named: Any) -> None:
        # Not in on_train_batch_end: Lightning calls it after the callbacks', one of which saves student and average.
        moving = self.method.moving(self.global_step)
        super().optimizer_step(*step, **named)
        if STUDENT in moving:
            for average in self.nets.averages.values():
                average.update(self._averaged, self.student_updates)
            self.student_updates += 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step % CHECK_EVERY == 0:
            self.check_finite()

    def on_train_end(self) -> None:
        self.check_finite()
        self.ended_at = self.global_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()  # what is saved is good, so the file before this one stays the last good one
        checkpoint["progress"] = {
            "student_updates": self.student_updates,
            "evaluations": self.evaluations * world_size(),
            # Of a role that rests, the latest norm is logged until it moves again.
            "gradient_norms": {role: float(norm) for role, norm in self.gradient_norms.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["progress"]
        self.student_updates = progress["student_updates"]
        self.evaluations = progress["evaluations"] // world_size()
        self.gradient_norms = {role: torch.tensor(norm) for role, norm in progress["gradient_norms"].items()}

    def check_finite(self) -> None:
        """Look at the losses and gradients of the recent steps, in one wait for the device.

        Raises:
            NonFiniteLossError: one is infinite or NaN; names the roles, the step, and t and w of the example of the
                largest error.
        """
        recent = list(self._recent)
        self._recent.clear()
        if not recent:
            return
        if self.scaler is not None and self.scaler.get_scale() < LEAST_SCALE:
            raise NonFiniteLossError(
                f"the gradients of stage {self.method.name} overflow half precision at every scale of the loss, at "
                f"step {recent[-1].step}; use precision bf16-mixed, or lower {rate(STUDENT, self.training_plan)}"
            )
        good = all_reduce_and(torch.isfinite(torch.stack([record.sum for record in recent])).cpu())
        if bool(good.all()):
            return
        record = recent[good.tolist().index(False)]
        finite = {role: all_reduce_and(torch.isfinite(record.total(role)).cpu()[None]) for role in record.losses}
        roles = [role for role, good in finite.items() if not bool(good)] or [STUDENT]
        raise non_finite(record, roles, self.method.name, self.training_plan)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        plan = self.training_plan
        groups = [{"params": weights, **plan.group(role)} for role, weights in self.weights.items()]
        # A fused optimiser divides by the loss's scale in its own step, and gradients would be clipped before that.
        fused = self.scaler is None or "fused" not in getattr(plan.optimizer, "keywords", ())
        optimizer = plan.optimizer(groups, lr=plan.learning_rate, **({} if fused else {"fused": False}))
        # A plain function, of which LambdaLR puts nothing into checkpoints.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.learning_rate_scale(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def words(w: Tensor) -> str:
    """A guidance weight, or two of them."""
    return " and ".join(f"{value:.4f}" for value in w.reshape(-1).tolist())


def non_finite(record: StepRecord, roles: list[str], stage: str, training: Training) -> NonFiniteLossError:
    """The error of a step in which the losses of `roles` were not finite. Called by all processes.

    Roles see each other's output, so where one diverges others may follow in the same step: all are named.
    """
    role, *others = roles
    loss = record.losses[role]
    error, t = all_gather_rows(loss.error), all_gather_rows(loss.t)
    w = None if loss.w is None else all_gather_rows(loss.w)
    worst = int(error.nan_to_num(nan=inf).argmax())
    place = f"t = {float(t[worst]):.4f}" + (f", w = {words(w[worst])}" if w is not None else "")
    norm = f" (gradient norm {float(record.gradient_norms[role])})" if role in record.gradient_norms else ""
    whose = "" if role == STUDENT else f" of the {role} network"
    also = "".join(f"nor is that of the {each} network finite, {rate(each, training)}; " for each in others)
    refusal = NonFiniteLossError(
        f"the loss{whose} must stay finite, got {float(error[worst])}{norm} in stage {stage} at step {record.step}, "
        f"{place}; {also}lower {rate(role, training)}"
    )
    refusal.step = record.step
    return refusal


def rate(role: str, training: Training) -> str:
    """The setting of a role's learning rate, and its value."""
    setting = "learning_rate" if role == STUDENT else f"roles.{role}.learning_rate"
    return f"stage.training.{setting} (now {training.of_role(role).learning_rate:g})"
