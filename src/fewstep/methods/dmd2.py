"""Distribution matching: a few-step generator whose samples, noised, shall look to the teacher like its own."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.distribution import Divergence, divergence_weight, matching_direction
from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.diffusion.schedule import Images
from fewstep.distributed.collectives import all_gather_rows
from fewstep.methods.base import Networks, Times, Weights
from fewstep.methods.critic import CRITIC, Critic
from fewstep.methods.draws import Draws
from fewstep.methods.fake_score import FAKE, FakeScore
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.losses import Loss, Verdict, frozen, judge, judge_generated, pull
from fewstep.networks import Denoiser
from fewstep.system.seeds import reseed, seed_for
from fewstep.system.validation import NotNegative, Positive

BINS = 10  # of t, in each of which the weights of a divergence have the mean 1


@dataclass(frozen=True, kw_only=True)
class DMD2(FakeScore):
    """Improved distribution matching distillation (Yin et al. 2024, 2405.14867).

    A sample is noised to a level of its own, where the difference of two predictions, of the fake score and of the
    guided teacher, says where to move it (`matching_direction`): to where the teacher sees more of its own.

    With `gan_weight` a critic, a head on the fake score's features in the middle, tells noised samples from noised
    data; without it, and without `states`, the method needs no data. Its logit is the logarithm of a ratio of
    densities, by which the gradient of the reverse KL becomes that of another `divergence` (f-distill, Xu et al. 2025,
    2502.15681): the move is weighted by `divergence_weight`, of mean 1 in each tenth of t.

    With `guidance_t_max` the schedule is decoupled (Decoupled DMD, 2025). The direction of matching has the
    teacher at w = 0, at any level; that of guidance, from the teacher at w = 0 to the teacher at w, has a level of its
    own, cleaner than the one that the student predicts from and at most `guidance_t_max`. Each is normalised by itself.

    Args:
        gan_weight, critic_weight: of the critic in the student's loss, 0 for none, and of the critic's own loss.
        divergence: of the data from the samples: kl, js or rkl, the reverse KL; the first two need the critic.
        guidance_t_max: the noisiest time of the direction of guidance; None: one level for both.
        The rest: see `FakeScore`; `training.roles` needs critic too where there is one.

    Raises:
        ValueError: see `FakeScore`; negative weights, a divergence without a critic, or a time outside (t_min, 1].
    """

    paper: ClassVar[str] = "Yin et al. 2024 (2405.14867)"
    optional_roles: ClassVar[tuple[str, ...]] = (CRITIC,)
    certainty: ClassVar[str] = (
        "sure: read in the authors' code; w as an input is ours; of divergence the bins, of guidance_t_max all but who "
        "has which levels"
    )

    name: str = "dmd2"
    gan_weight: NotNegative = 0.0
    critic_weight: Positive = 1e-2
    divergence: Divergence = "rkl"
    guidance_t_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence != "rkl" and not self.gan_weight:
            raise ValueError(
                f"stage.divergence={self.divergence} is weighted by what the critic says, and stage.gan_weight=0 says "
                "there is none; use stage.gan_weight=0.003, or stage.divergence=rkl"
            )
        if self.guidance_t_max is not None and not self.t_min < self.guidance_t_max <= 1:
            raise ValueError(
                f"stage.guidance_t_max must be null or above stage.t_min ({self.t_min:g}) and at most 1, got "
                f"{self.guidance_t_max:g}"
            )

    @property
    def inputs(self) -> Literal["data", "noise"]:
        return "data" if self.gan_weight else super().inputs

    @property
    def roles(self) -> tuple[str, ...]:
        return (*super().roles, CRITIC) if self.gan_weight else super().roles

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange | None:
        if self.guidance_t_max is not None and parent is not None and parent.w_min > 0:
            raise ValueError(
                "stage.guidance_t_max needs a parent that was made for w = 0 too, got one for w in "
                f"[{parent.w_min:g}, {parent.w_max:g}]; use another parent, or stage.guidance_t_max=null"
            )
        return super().guidance(parent)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        if not self.gan_weight:
            return nets
        reseed(seed_for(stream, CRITIC), torch.device("cpu"))
        fake = nets.trained[FAKE]
        assert isinstance(fake, Denoiser)
        return replace(nets, trained={**nets.trained, CRITIC: Critic(fake)})

    def other_losses(
        self,
        data: Images,
        noised: Prediction,
        t: Times,
        nets: Networks,
        draws: Draws,
        label: Condition,
        w: Weights,
        *,
        level: Times,
    ) -> dict[str, Loss]:
        if not self.gan_weight:
            return {}
        critic = nets.trained[CRITIC]
        assert isinstance(critic, Critic)
        generated = critic()
        real = diffuse(x=data, eps=draws.normal(), log_snr=noised.log_snr)
        self.fake_score(nets, level)(real.z, real.log_snr, label, w)
        verdict = Verdict(real=critic(), generated=generated)
        return {CRITIC: Loss(self.critic_weight * judge(*verdict), t, w, verdict)}

    def student_loss(
        self, x: Images, nets: Networks, draws: Draws, label: Condition, w: Weights, *, level: Times
    ) -> Loss:
        """Samples are pulled to where the teacher sees more of its own, and please the critic where there is one."""
        noised, t = self.noised(x, nets, draws)
        with torch.no_grad():
            z = noised.z.detach()  # which counting operations needs, where nothing is differentiated
            fake = self.fake_score(nets, level)(z, noised.log_snr, label, w)
            real = nets.frozen_teacher(
                z, noised.log_snr, label, w if self.guidance_t_max is None else torch.zeros_like(w)
            )
            direction = matching_direction(x=x, fake=fake, real=real)
            if self.guidance_t_max is not None:
                direction = direction + self.guidance_direction(x, nets, draws, label, w, level=level)
        loss = pull(x, direction, t=t, w=w)
        if not self.gan_weight:
            return loss
        critic = nets.trained[CRITIC]
        with frozen(nets.trained[FAKE], critic):
            self.fake_score(nets, level)(noised.z, noised.log_snr, label, w)
            logit = critic()
        error = loss.error
        if self.divergence != "rkl":
            error = error * balanced(divergence_weight(self.divergence, logit.detach()), t)
        return replace(loss, error=error + self.gan_weight * judge_generated(logit))

    def guidance_direction(
        self, x: Images, nets: Networks, draws: Draws, label: Condition, w: Weights, *, level: Times
    ) -> Images:
        """From what the teacher predicts at w = 0 to what it predicts at w, at times of their own."""
        assert self.guidance_t_max is not None
        noised, _ = self.noised(x.detach(), nets, draws, t_max=level.clamp(self.t_min, self.guidance_t_max))
        unguided, guided = (nets.frozen_teacher(noised.z, noised.log_snr, label, at) for at in (torch.zeros_like(w), w))
        return matching_direction(x=x, fake=unguided, real=guided)


def balanced(weight: Float[Tensor, "batch"], t: Times) -> Float[Tensor, "batch"]:
    """Weights over their mean in their tenth of t, over all processes: no level counts more than before."""
    everyone, bins = all_gather_rows(weight), (all_gather_rows(t) * BINS).long().clamp(max=BINS - 1)
    zeros = weight.new_zeros(BINS)
    mean = zeros.index_add(0, bins, everyone) / zeros.index_add(0, bins, torch.ones_like(everyone)).clamp(min=1)
    return weight / mean[(t * BINS).long().clamp(max=BINS - 1)]
