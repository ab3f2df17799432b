"""What an adapter learns: to steer a model's prediction between conditions, or to denoise images of one side.

Both are methods to the trainer, whose student is the model with the adapter inside and whose teacher is the model; none
is a stage, as neither makes a model of its own.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.guidance import nulls_but, steer
from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Images
from fewstep.methods.base import Method, Networks, Phase, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss, regress
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser
from fewstep.networks.low_rank import adapter_weights, set_strength

LABEL_DROPOUT = 0.1  # of a model with a null branch, as its teacher was trained


@dataclass(frozen=True, kw_only=True)
class Adapting(Method):
    """Train the adapter inside the student, at strength 1 and, where there are two sides, at -1 too.

    Args:
        sampling: of the model. The rest: see `Method`.
    """

    sampling: Sampling

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self.sampling),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        return nets

    def weights(self, student: Denoiser) -> list[nn.Parameter]:
        return adapter_weights(student)

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        t, eps = self.draw_times(draws), draws.normal()
        w = nets.guidance.draw(draws) if nets.guidance else None
        noised = diffuse(x=batch.x, eps=eps, log_snr=nets.schedule.log_snr(t))
        error = self.error(noised, batch.label, t=t, w=w, nets=nets, draws=draws)
        return {STUDENT: Loss(error, t, w)}

    def draw_times(self, draws: Draws) -> Times:
        """One time per example: of those at which a few-step student is evaluated, else uniform in [0, 1]."""
        if self.sampling.times is None:
            return draws.uniform()
        own = self.sampling.grid().to(draws.device)
        return own[draws.integers(0, len(own))]

    def dropped(self, label: Condition, nets: Networks, draws: Draws) -> tuple[Condition, Bool[Tensor, "batch"]]:
        """The conditions, some replaced by none where the model has a branch without, and whether each was."""
        share = LABEL_DROPOUT if self.sampling.guidance == "two_evaluations" else 0.0
        chosen = draws.uniform() < share
        return nulls_but(~chosen, label, nets.student.null), chosen

    @abstractmethod
    def error(
        self,
        noised: Prediction,
        label: Condition,
        *,
        t: Times,
        w: Weights | None,
        nets: Networks,
        draws: Draws,
    ) -> Times:
        """The error of each example. `noised` holds the truth: its v is what denoises the batch."""

    def error_at(
        self,
        strength: float,
        target: Prediction,
        label: Condition,
        *,
        t: Times,
        w: Weights | None,
        nets: Networks,
    ) -> Times:
        """The error of the student with the adapter at that strength."""
        set_strength(nets.student, strength)
        prediction = nets.student(target.z, target.log_snr, label, w)
        return regress(prediction, target, self.training, t=t, w=w).error


@dataclass(frozen=True, kw_only=True)
class Concept(Adapting):
    """A concept slider (Gandikota et al. 2023): at strength +-1 the student predicts `steer` by +-eta of the model.

    It goes by what the model itself says of the conditions, at its own samples noised again, so it needs no data; it is
    the same for a few-step student, at its own times. A null branch is to stay as it is.

    Args:
        towards, away: the conditions that strength 1 goes to and comes from, one of each.
        eta: how far. The rest: see `Adapting`.
    """

    paper: ClassVar[str] = "Gandikota et al. 2023 (2311.12092)"
    certainty: ClassVar[str] = "sure: read in the authors' code; at noised samples instead of partial denoising is ours"

    towards: Condition
    away: Condition
    eta: float

    def error(
        self,
        noised: Prediction,
        label: Condition,
        *,
        t: Times,
        w: Weights | None,
        nets: Networks,
        draws: Draws,
    ) -> Times:
        label, dropped = self.dropped(label, nets, draws)
        amount = torch.where(dropped, 0.0, self.eta)  # no condition, nothing to steer: so guidance goes where it does
        up, down = self.steered(noised, label, amount, w=w, nets=nets)
        errors = [self.error_at(s, to, label, t=t, w=w, nets=nets) for s, to in ((1.0, up), (-1.0, down))]
        return torch.stack(errors).mean(0)

    @torch.no_grad()
    def steered(
        self, noised: Prediction, label: Condition, amount: Weights, *, w: Weights | None, nets: Networks
    ) -> tuple[Prediction, Prediction]:
        """What the student should predict at z at strengths 1 and -1."""
        z, log_snr = noised.z, noised.log_snr
        neutral, towards, away = (
            nets.frozen_teacher(z, log_snr, condition, w).v
            for condition in (label, self.towards.to(label).expand_as(label), self.away.to(label).expand_as(label))
        )
        up, down = (steer(neutral=neutral, towards=towards, away=away, amount=each) for each in (amount, -amount))
        return Prediction(z=z, v=up, log_snr=log_snr), Prediction(z=z, v=down, log_snr=log_snr)


@dataclass(frozen=True, kw_only=True)
class FromImages(Adapting):
    """Denoise given images: at strength 1 those of a style, or of the upper side of an attribute, at -1 the lower's.

    At strength s the optimum is E[x | z, condition, side s], the visual slider of Gandikota et al. (section 4.2). Of a
    model with a w input the prediction at w is to move as that at w = 0 does. A model with a null branch gets it too.

    Args:
        sides: strengths; a batch holds the same number of images of each, one side after the other.
        The rest: see `Adapting`.

    Raises:
        ValueError: a model that was made for few steps, whose prediction is not that of denoising.
    """

    paper: ClassVar[str] = "Hu et al. 2022 (2106.09685), Gandikota et al. 2023 (2311.12092)"
    certainty: ClassVar[str] = "sure of w = 0; the move of a w input is ours"

    sides: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.sampling.times is not None:
            raise ValueError(
                f"images teach a model that denoises, and one made for {len(self.sampling.times)} step(s) goes to the "
                "end of a step instead; train the adapter on its teacher or guided student and use it here"
            )

    def error(
        self,
        noised: Prediction,
        label: Condition,
        *,
        t: Times,
        w: Weights | None,
        nets: Networks,
        draws: Draws,
    ) -> Times:
        target = replace(noised, v=noised.v + self.move(noised, label, w=w, nets=nets))
        label, _ = self.dropped(label, nets, draws)
        count, errors = len(label) // len(self.sides), []
        for number, side in enumerate(self.sides):
            rows = slice(number * count, (number + 1) * count)
            part = Prediction(z=target.z[rows], v=target.v[rows], log_snr=target.log_snr[rows])
            own_w = None if w is None else w[rows]
            errors.append(self.error_at(side, part, label[rows], t=t[rows], w=own_w, nets=nets))
        return torch.cat(errors)

    @torch.no_grad()
    def move(self, noised: Prediction, label: Condition, *, w: Weights | None, nets: Networks) -> Images:
        """How the model's v at w differs from that at w = 0; 0 where it has no w input."""
        if w is None:
            return torch.zeros_like(noised.v)
        guided, plain = (
            nets.frozen_teacher(noised.z, noised.log_snr, label, each).v for each in (w, torch.zeros_like(w))
        )
        return guided - plain
