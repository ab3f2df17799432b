"""Super-resolution without a teacher's samples: pixels, and a judge that sees the images noised."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.diffusion.rectified import placed
from fewstep.methods.base import Method, Networks, Parent, Phase
from fewstep.methods.critic import CRITIC, Critic
from fewstep.methods.draws import Draws, standard_normal
from fewstep.methods.flow_trajectory import require_images, restoring
from fewstep.methods.losses import Loss, frozen, judge, judge_generated
from fewstep.methods.student_settings import StudentSettings
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser
from fewstep.system.seeds import reseed, seed_for
from fewstep.system.validation import Positive


class NoiseAwareCritic(nn.Module):
    """A pre-trained denoiser, trained on, and a head on its features in the middle: one logit a noised image.

    Args:
        denoiser: which it copies.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = deepcopy(denoiser)
        self.head = Critic(self.denoiser)

    def forward(self, noised: Prediction, label: Condition) -> Float[Tensor, "batch"]:
        self.denoiser(noised.z, noised.log_snr, label, None)
        return self.head()


@dataclass(frozen=True, kw_only=True)
class NoiseAwareJudge(StudentSettings, Method):
    """DFOSD, one-step super-resolution without distillation (Li et al. 2024, 2410.04224).

    The student goes in one step from the degraded image, as one of `flow_trajectory` does. Its loss is the squared
    error to the original plus `gan_weight` softplus(-logit), of a critic that looks at the restored image noised to a
    random level through the network that the student began as; the critic's is softplus(-real) + softplus(generated).
    Levels are logit-normal(0, 1) in the rectified time.

    Args:
        start: t of the schedule at which the degraded image stands for z.
        gan_weight: of the critic in the student's loss.
        The rest: see `Method` and `StudentSettings`; `training.roles` needs critic, and `training.weight` is not used.

    Raises:
        ValueError: a time outside (0, 1), or a weight that is not positive.
    """

    paper: ClassVar[str] = "after DFOSD, Li et al. 2024 (2410.04224)"
    certainty: ClassVar[str] = (
        "noise_aware_judge-style: the idea from the abstract and a figure; softplus, weights and levels are ours; no "
        "EA-DISTS, one logit an image"
    )

    name: str = "noise_aware_judge"
    start: float = 0.25
    gan_weight: Positive = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        restoring(self.start)
        for role in self.roles:
            self.training.of_role(role)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, CRITIC)

    def parent(self) -> Parent:
        return Parent(guidance=("none",))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(restoring(self.start), num_steps=1),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        require_images(self.name, nets)
        nets = super().networks(nets, stream)
        reseed(seed_for(stream, CRITIC), torch.device("cpu"))
        return replace(nets, trained={CRITIC: NoiseAwareCritic(nets.student)})

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, low = batch
        t = torch.full((len(x),), self.start, dtype=torch.float64, device=x.device)
        log_snr = nets.schedule.log_snr(t)
        restored = nets.student(placed(low, log_snr), log_snr, low, None).x
        levels, eps = -2 * standard_normal(draws), draws.normal()
        real = diffuse(x=x, eps=draws.normal(), log_snr=levels)
        critic = nets.trained[CRITIC]
        with frozen(critic):
            fooled = judge_generated(critic(diffuse(x=restored, eps=eps, log_snr=levels), low))
        generated = critic(diffuse(x=restored.detach(), eps=eps, log_snr=levels), low)
        error = (restored - x).square().flatten(1).mean(1)
        return {
            STUDENT: Loss(error + self.gan_weight * fooled, t),
            CRITIC: Loss(judge(critic(real, low), generated), nets.schedule.time(levels)),
        }
