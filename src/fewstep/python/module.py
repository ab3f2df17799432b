"""The LightningModule of one phase, from a model to the next, for Lightning's own Trainer."""

import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.inference.model import Model
from fewstep.methods.base import Method, Networks
from fewstep.networks.adapter import is_adapted, merged
from fewstep.networks.own import OwnNetwork
from fewstep.python.teachers import started_from
from fewstep.tracking.names import LOSS
from fewstep.training.module import DistillationModule
from fewstep.training.settings import PRECISIONS
from fewstep.training.students import clip_bounds, guidance_of, student_card, student_of, teacher_of

warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # Lightning's: a student has no dropout


class Distillation(DistillationModule):
    """One phase of a method, trained by `lightning.Trainer(max_steps=module.num_steps).fit(module, loader)`.

    The loader gives tensors of examples, (examples, labels), or a `Batch`. `model` is the student, ready to sample.

    Args:
        parent: the teacher, or the model of the phase before; for a method without a teacher the network to train.
        method: its `training` has the budget, whose batch_size is that of an optimiser step: of the loader, times
            accumulate_grad_batches.
        number: of the phase, in method.phases().
        seed: of all random numbers.

    Raises:
        ValueError: a parent that the method cannot start from, or a setting that it refuses; later, a Trainer's.
    """

    def __init__(self, parent: Model, *, method: Method, number: int = 0, seed: int = 0) -> None:
        if not isinstance(parent, Model):
            raise ValueError(
                f"a parent must be a fewstep model, as fewstep.load or as_model give, got {type(parent).__name__}"
            )
        if number == 0:
            parent = started_from(parent, method)
        phase = method.phases()[number]
        stream = "/".join(map(str, (seed, method.name, *([phase.num_steps] if phase.num_steps else []))))
        nets = networks_of(parent, method, number, seed, stream)
        images = round(method.training.images * phase.budget)
        batch_size = min(method.training.batch_size, images)
        training = replace(method.training, images=images, batch_size=batch_size)
        super().__init__(method=method, phase=phase, nets=nets, training=training, stream=stream)
        self.parent = (parent.card,)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the budget."""
        return self.training_plan.num_steps

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        if trainer.precision not in PRECISIONS:
            raise ValueError(
                f"a Trainer's precision must be one of {', '.join(PRECISIONS)} (weights are kept in 32 bits), got "
                f"{trainer.precision}"
            )
        if trainer.gradient_clip_val is not None or trainer.gradient_clip_algorithm is not None:
            raise ValueError("gradients are clipped by training.gradient_clip, role by role; leave gradient_clip_* out")

    def training_step(self, batch: Any, batch_index: int) -> Float[Tensor, ""]:
        loss = super().training_step(batch, batch_index)
        self.log(LOSS, loss, prog_bar=True)
        return loss

    @property
    def model(self) -> Model:
        """A copy of what the phase has made, as trained so far, on the CPU."""
        denoiser = merged(self.nets.model) if is_adapted(self.nets.model) else deepcopy(self.nets.model)
        if not is_adapted(self.student):  # running statistics, of which there are no averages
            for own, trained in zip(denoiser.buffers(), self.student.buffers(), strict=True):
                own.copy_(trained)
        (parent,) = self.parent
        images = (self.ended_at or self.global_step) * self.training_plan.batch_size
        has_teacher = self.nets.teacher is not None
        card = student_card(
            self,
            name=self.method.name,
            facts=parent.data,
            images=images,
            parent=parent if has_teacher else None,
            ancestors=(),
        )
        return Model(denoiser.cpu().requires_grad_(False).eval(), card)


def networks_of(parent: Model, method: Method, number: int, seed: int, stream: str) -> Networks:
    """The networks of a phase; the parent's own are left as they are.

    Raises:
        ValueError: see `Distillation`.
    """
    phase, card, denoiser = method.phases()[number], parent.card, parent.denoiser
    schedule = denoiser.native_schedule or card.schedule
    has_teacher = method.parent() is not None
    inherited = guidance_of(card) if has_teacher else None
    guidance = method.guidance(inherited)
    teacher = teacher_of(method, phase, denoiser, card.sampling, schedule, card.data) if has_teacher else None
    student = student_of(
        method,
        phase,
        denoiser,
        guidance,
        schedule,
        is_first=number == 0,
        stream=stream,
        init=(seed, method.name, "init"),
    )
    own = student.network
    several = guidance is not None and guidance.w_min < guidance.w_max
    if several and isinstance(own, OwnNetwork) and not own.requires_grad_(True).depends_on_w():
        raise ValueError(
            f"{own.arguments['name']} does not use w, so a student of it is made for one weight: give one, like w=2.0; "
            "or let forward(z, log_snr, label, w) use w where it is not None (docs/python.md)"
        )
    shown: Schedule = schedule
    return method.networks(Networks(student, teacher, shown, guidance, clip_bounds(method, card.data)), stream)
