"""What all stages share: the optimiser and its schedule, the averaged weights, the draws, the watch on the loss."""

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.data.batches import Batch
from fewstep.diffusion.loss import GUIDANCE_WEIGHTS, WEIGHTS, weighted_error
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.distributed.collectives import all_gather_rows, all_reduce_and, rank, world_size
from fewstep.distributed.sharding import full_scalar, gather_full_model, shard_module
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser
from fewstep.networks.adapter import trained_parameters
from fewstep.networks.memory import denoisers_in
from fewstep.system.seeds import reseed, seed_for

Draw = Literal["uniform", "log_uniform", "list"]

NETWORKS = ("student", "average")
CLIP_EPS = 1e-6  # which torch adds to the norm
WATCH_EVERY = 50  # optimiser steps between looks at the loss; each look waits for the device


class Regression(NamedTuple):
    """One batch of a regression: what the student says, what it should say, and where (t, and w if there is one)."""

    prediction: Prediction
    target: Prediction
    t: Float[Tensor, "batch"]
    w: Float[Tensor, "batch"] | None


class NonFiniteLossError(ValueError):
    """The loss or its gradient became infinite or NaN, at `step`."""

    step: int = 0


@dataclass
class Watched:
    """What is remembered of a step until somebody looks: a step was good if its loss and its gradient are finite."""

    step: int
    error: Float[Tensor, "batch"]
    t: Float[Tensor, "batch"]
    w: Float[Tensor, "batch"] | None
    gradient_norm: Float[Tensor, ""] | None = None

    @property
    def total(self) -> Float[Tensor, ""]:
        """Finite if and only if the step was good."""
        loss = self.error.mean()
        return loss if self.gradient_norm is None else loss + self.gradient_norm


@dataclass(frozen=True)
class Training:
    """How a student is optimised, whatever it regresses to.

    Args:
        images: budget; batch_size: images per optimiser step over all processes.
        learning_rate: of AdamW (betas 0.9, 0.99; no weight decay), rising over `warmup_images`, falling linearly to 0
            at `images`.
        gradient_clip: largest norm of the gradient.
        ema_decay: per step, of the averaged weights that become the model; 0 keeps none. It starts lower:
            min(ema_decay, (1 + step) / (10 + step)).
        weight: snr, truncated_snr or snr_plus_one, of the noise; guidance_weight: uniform or relative, of w where the
            student has one (`fewstep.diffusion.loss`).

    Raises:
        ValueError: a value outside its range.
    """

    images: int
    batch_size: int
    learning_rate: float
    warmup_images: int
    gradient_clip: float
    ema_decay: float
    weight: str
    guidance_weight: str = "uniform"

    def __post_init__(self) -> None:
        if not (isinstance(self.batch_size, int) and 1 <= self.batch_size <= self.images):
            raise ValueError(
                "stage.training needs a whole batch_size with 1 <= batch_size <= images, got "
                f"batch_size={self.batch_size} and images={self.images}"
            )
        if not (0 < self.learning_rate < inf and self.gradient_clip > 0 and self.warmup_images >= 0):
            raise ValueError(
                "stage.training needs a positive learning_rate and gradient_clip and warmup_images >= 0, got "
                f"{self.learning_rate}, {self.gradient_clip} and {self.warmup_images}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"stage.training.ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.weight not in WEIGHTS:
            raise ValueError(f"stage.training.weight must be one of {', '.join(WEIGHTS)}, got {self.weight!r}")
        if self.guidance_weight not in GUIDANCE_WEIGHTS:
            raise ValueError(
                f"stage.training.guidance_weight must be one of {', '.join(GUIDANCE_WEIGHTS)}, got "
                f"{self.guidance_weight!r}"
            )

    @property
    def num_steps(self) -> int:
        """Optimiser steps: the budget in whole batches, the last one rounded up."""
        return -(-self.images // self.batch_size)

    def learning_rate_scale(self, step: int) -> float:
        """Linear warm-up, times linear decay to 0 at the last step."""
        warm_up = min(1.0, (step + 1) * self.batch_size / max(1, self.warmup_images))
        return warm_up * (1 - step / self.num_steps)


class Stage(lightning.LightningModule):
    """A student trained by regression: weighted squared error between its prediction and a target.

    Each step starts from a seed of its own, a function of (stream, step): resuming needs no random state.

    Args:
        student: the network that learns.
        schedule: of the diffusion.
        training: how.
        stream: names the random numbers of this stage and rung, with the run's seed.
    """

    name: ClassVar[str]
    has_dropout: ClassVar[bool] = False  # off in student and teacher wherever there is a teacher (Salimans & Ho's code)

    def __init__(self, *, student: Denoiser, schedule: Schedule, training: Training, stream: str) -> None:
        super().__init__()
        self.student = student.train(self.has_dropout).requires_grad_(False)
        # Lightning's WeightAveraging is not used: torch's AveragedModel reads its counter on the host every step.
        self.average = deepcopy(student).requires_grad_(False).eval() if training.ema_decay else None
        for weight in trained_parameters(self.student):
            weight.requires_grad_(True)
        self._list_weights()
        self._beside: list[Tensor] = []  # what is trained beside the student and is no part of the model
        self._shape: tuple[Denoiser, ...] = ()  # of the networks, where they are divided; no module of this one
        self.schedule = schedule
        self.training_plan = training
        self.stream = stream
        self.gradient_norm = torch.tensor(0.0)
        self._recent: deque[Watched] = deque(maxlen=WATCH_EVERY)

    def _list_weights(self) -> None:
        """Once: walking through the modules takes longer than updating the average."""
        self._weights: list[Tensor] = [*trained_parameters(self.student)]
        self._averages: list[Tensor] = [] if self.average is None else [*trained_parameters(self.average)]

    def configure_model(self) -> None:
        """Divide all networks over the processes, where Lightning's strategy has a mesh of them (FSDP2)."""
        if self.device_mesh is None or self._shape:
            return
        self._shape = (deepcopy(self.student).to("meta"),)
        mesh = self.device_mesh["data_parallel"]
        for module in (*self.children(), *denoisers_in(getattr(self, "teacher", None))):
            shard_module(module, mesh)
        self._list_weights()
        self._beside = [
            weight for name, child in self.named_children() if name not in NETWORKS for weight in child.parameters()
        ]

    def assemble(self) -> None:
        """After a training in parts: the model in one piece on the first process, and without weights elsewhere."""
        for shape in self._shape:
            self.average = gather_full_model(self.model, shape, here=rank() == 0)

    @property
    def model(self) -> Denoiser:
        """What this stage is for: the averaged student, or the student where none is kept."""
        return self.student if self.average is None else self.average

    @abstractmethod
    def regression(self, batch: Batch) -> Regression:
        """Draw times, noise (and w), and set the student's prediction against its target."""

    @abstractmethod
    def target(
        self, noised: Prediction, t: Float[Tensor, "batch"], label: Condition, w: Float[Tensor, "batch"] | None
    ) -> Prediction:
        """What the student should say at `noised.z` and time t; where there is a teacher, only z of `noised` counts."""

    @property
    def times(self) -> Float[Tensor, "times"] | None:
        """The times at which the student is taught, where they are few; None where they are all of [0, 1]."""
        return None

    def training_step(self, batch: Batch, batch_index: int) -> Float[Tensor, ""]:
        reseed(seed_for(self.stream, self.global_step), self.device)
        prediction, target, t, w = self.regression(batch)
        error = weighted_error(prediction, target, WEIGHTS[self.training_plan.weight])
        if w is not None:
            error = error * GUIDANCE_WEIGHTS[self.training_plan.guidance_weight](w)
        if (hint := self.hint()) is not None:
            error = error + hint
        self._recent.append(Watched(self.global_step, error.detach(), t, w))
        return error.mean()

    def hint(self) -> Float[Tensor, "batch"] | None:
        """What else counts as error of the batch that `regression` has just seen; nothing, unless a stage says so."""
        return None

    def part_ways(self) -> None:
        """Where a network drops activations: after what is drawn for the whole batch, each process has its own seed.

        Dropout is what depends on the number of processes, and all that does.
        """
        if self.student.training and world_size() > 1:
            reseed(seed_for(self.stream, self.global_step, "process", rank()), self.device)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        weights, most = [*self._weights, *self._beside], self.training_plan.gradient_clip
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        self.gradient_norm = full_scalar(norm)
        # A GPU is not waited for; a CPU need not multiply all gradients by 1, as clipping does to short ones.
        if self.gradient_norm.device.type != "cpu" or not float(self.gradient_norm) + CLIP_EPS <= most:
            clip_grads_with_norm_(weights, most, norm)
        self._recent[-1].gradient_norm = self.gradient_norm

    def optimizer_step(self, *step: Any, **named: Any) -> None:
        # Not in on_train_batch_end: Lightning calls it after the callbacks', one of which saves student and average.
        done = self.global_step
        super().optimizer_step(*step, **named)
        if self._averages:
            decay = min(self.training_plan.ema_decay, (1 + done) / (10 + done))
            get_ema_multi_avg_fn(decay)(self._averages, self._weights, 0)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step % WATCH_EVERY == 0:
            self.check_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()  # what is saved is good, so the file before this one stays the last good one

    def check_finite(self) -> None:
        """Look at the losses and gradients of the recent steps, in one wait for the device.

        Raises:
            NonFiniteLossError: one is infinite or NaN; names the step, and t and w of the example of the largest error.
        """
        recent = list(self._recent)
        self._recent.clear()
        if not recent:
            return
        good = all_reduce_and(torch.isfinite(torch.stack([watched.total for watched in recent])).cpu())
        if bool(good.all()):
            return
        bad = recent[good.tolist().index(False)]
        error, t, w = (
            all_gather_rows(bad.error),
            all_gather_rows(bad.t),
            None if bad.w is None else all_gather_rows(bad.w),
        )
        worst = int(error.nan_to_num(nan=inf).argmax())
        place = f"t = {float(t[worst]):.4f}" + (f", w = {float(w[worst]):.4f}" if w is not None else "")
        norm = "" if bad.gradient_norm is None else f" (gradient norm {float(bad.gradient_norm)})"
        refusal = NonFiniteLossError(
            f"the loss must stay finite, got {float(error[worst])}{norm} in stage {self.name} at step {bad.step}, "
            f"{place}; lower stage.training.learning_rate (now {self.training_plan.learning_rate:g})"
        )
        refusal.step = bad.step
        raise refusal

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            [*self._weights, *self._beside],
            self.training_plan.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=True,
        )
        plan = self.training_plan
        # A plain function, of which LambdaLR puts nothing into checkpoints.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.learning_rate_scale(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass(frozen=True)
class GuidanceRange:
    """The guidance weights a student is made for, drawn per example in every stage.

    Args:
        w_min, w_max: the range; w_min = w_max is one fixed w.
        w_draw: uniform in w (Meng et al. 2023), log_uniform in 1 + w, the scale of diffusers, or list.
        w_values: what list draws from, each alike; w_min and w_max are then its ends.

    Raises:
        ValueError: w_min negative or above w_max, an unknown draw, or values that do not go with it.
    """

    w_min: float
    w_max: float
    w_draw: Draw = "uniform"
    w_values: Sequence[float] | None = None

    def __post_init__(self) -> None:
        listed = self.w_values is not None
        if self.w_draw not in get_args(Draw) or (self.w_draw == "list") != listed or (listed and not self.w_values):
            raise ValueError(
                f"stage.w_draw must be one of {', '.join(get_args(Draw))}, and list alone has stage.w_values, got "
                f"{self.w_draw!r} with {'none' if self.w_values is None else list(self.w_values)}"
            )
        if self.w_values:
            object.__setattr__(self, "w_values", tuple(float(w) for w in self.w_values))
            object.__setattr__(self, "w_min", min(self.w_values))
            object.__setattr__(self, "w_max", max(self.w_values))
        if not 0 <= self.w_min <= self.w_max < inf:
            raise ValueError(
                f"the guidance range must satisfy 0 <= w_min <= w_max, got w_min={self.w_min:g}, "
                f"w_max={self.w_max:g}; w = 0 is no guidance (diffusers' guidance_scale is 1 + w)"
            )

    def draw(self, draws: Draws) -> Float[Tensor, "batch"]:
        """One w per example."""
        return self.at(draws.uniform())

    def at(self, share: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """The w below which that share of the draws lies, a share in [0, 1]."""
        if self.w_values:
            values = torch.tensor(self.w_values, device=share.device)
            return values[(share * len(values)).long().clamp(max=len(values) - 1)]
        if self.w_draw == "log_uniform":
            return (1 + self.w_min) * ((1 + self.w_max) / (1 + self.w_min)) ** share - 1
        return self.w_min + (self.w_max - self.w_min) * share
