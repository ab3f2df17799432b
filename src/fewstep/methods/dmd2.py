"""Distribution matching: a few-step generator whose samples, noised, shall look to the teacher like its own."""

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.distribution import matching_direction
from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.diffusion.schedule import Images
from fewstep.methods.base import GuidedStudentSettings, Method, Networks, Phase, Weights
from fewstep.methods.consistency import renoising
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss, frozen, judge, judge_generated, pull, regress
from fewstep.methods.state_source import Source, StateSettings
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser
from fewstep.networks.features import MiddleFeatures
from fewstep.system.seeds import reseed, seed_for

FAKE, CRITIC = "fake", "critic"


@dataclass(frozen=True, kw_only=True)
class DMD2(StateSettings, GuidedStudentSettings, Method):
    """Improved distribution matching distillation (Yin et al. 2024, 2405.14867).

    The student starts from pure noise and, at one of its sampler's levels, predicts x; the way there is walked as the
    sampler walks it, without gradient (backward simulation). x is noised to a level of its own, where the difference of
    two predictions, of the *fake* score, which learns the student's samples, and of the guided teacher, says where to
    move it (`matching_direction`). The fake score learns in every step, the student in one of `fake_updates`.

    The fake score does not see which level a sample is of, as in the authors' code: what becomes the teacher's is the
    mixture of what all levels make.

    With `gan_weight` a critic, a head on the fake score's features in the middle, tells noised samples from noised
    data; without it, and without `states`, the method needs no data.

    Args:
        levels: where the sampler evaluates, falling in (0, 1].
        fake_updates: updates of the fake score for one of the student.
        t_min, t_max: the times that samples are noised to, uniform.
        gan_weight, critic_weight: of the critic in the student's loss, 0 for none, and of the critic's own loss.
        The rest: see `Method`, `StateSettings` and `GuidedStudentSettings`; `training.roles` needs fake, and critic
            where there is one.

    Raises:
        ValueError: bad levels or times, no update of the fake score, or negative weights.
    """

    paper: ClassVar[str] = "Yin et al. 2024 (2405.14867)"
    optional_roles: ClassVar[tuple[str, ...]] = (CRITIC,)
    own_source: ClassVar[Source] = "student"
    certainty: ClassVar[str] = "sure: read in the authors' code; w as an input is ours"

    levels: Sequence[float]
    fake_updates: int = 5
    t_min: float = 0.02
    t_max: float = 0.98
    gan_weight: float = 0.0
    critic_weight: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fake_updates < 1 or self.gan_weight < 0 or self.critic_weight <= 0:
            raise ValueError(
                "stage.fake_updates must be at least 1, stage.gan_weight at least 0 and stage.critic_weight positive, "
                f"got {self.fake_updates}, {self.gan_weight} and {self.critic_weight}"
            )
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(
                f"stage.t_min and stage.t_max must satisfy 0 <= t_min < t_max <= 1, got {self.t_min} and {self.t_max}"
            )
        self.phases()
        for role in self.roles:
            self.training.of_role(role)

    @property
    def inputs(self) -> Literal["data", "noise"]:
        return "data" if self.gan_weight or self.states else "noise"

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, FAKE, CRITIC) if self.gan_weight else (STUDENT, FAKE)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "input")),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        fake = deepcopy(nets.student)
        trained: dict[str, nn.Module] = {FAKE: fake}
        if self.gan_weight:
            reseed(seed_for(stream, CRITIC), torch.device("cpu"))
            trained[CRITIC] = Critic(fake)
        return replace(nets, trained=trained)

    def moving(self, step: int) -> tuple[str, ...]:
        # The student last: at first the fake score is the teacher, and their difference is zero but for rounding.
        return self.roles if (step + 1) % self.fake_updates == 0 else self.roles[1:]

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        data, label = batch
        assert nets.guidance is not None, "the student has a w input"
        w = nets.guidance.draw(draws)
        moves = STUDENT in self.moving(step)
        with nullcontext() if moves else torch.no_grad():
            x = self.generate(data, nets, draws, label, w, step=step, phase=phase).x
        losses = {}
        if moves:
            losses[STUDENT] = self.student_loss(x, nets, draws, label, w)
        noised, t = self.noised(x.detach(), nets, draws)
        fake = nets.trained[FAKE](noised.z, noised.log_snr, label, w)
        losses[FAKE] = regress(fake, noised, self.training, t=t, w=w)
        if self.gan_weight:
            critic = nets.trained[CRITIC]
            assert isinstance(critic, Critic)
            generated = critic()
            real = diffuse(x=data, eps=draws.normal(), log_snr=noised.log_snr)
            nets.trained[FAKE](real.z, real.log_snr, label, w)
            losses[CRITIC] = Loss(self.critic_weight * judge(critic(), generated), t, w)
        return losses

    def generate(
        self, data: Images, nets: Networks, draws: Draws, label: Condition, w: Weights, *, step: int, phase: Phase
    ) -> Prediction:
        """The student's prediction at one of its levels, chosen for the whole batch, reached as its sampler would."""
        eps, level = draws.normal(), self.levels[draws.choice(len(self.levels))]
        t = torch.full((len(eps),), level, dtype=torch.float64, device=eps.device)
        state = self.state(
            data, eps, t=t, lowest=level, label=label, w=w, nets=nets, draws=draws, step=step, phase=phase
        )
        return nets.student(state.z, state.log_snr, label, w)

    def noised(self, x: Images, nets: Networks, draws: Draws) -> tuple[Prediction, Weights]:
        """Samples noised to times of their own, and these times."""
        t = self.t_min + (self.t_max - self.t_min) * draws.uniform()
        return diffuse(x=x, eps=draws.normal(), log_snr=nets.schedule.log_snr(t)), t

    def student_loss(self, x: Images, nets: Networks, draws: Draws, label: Condition, w: Weights) -> Loss:
        """Samples are pulled to where the teacher sees more of its own, and please the critic where there is one."""
        assert nets.teacher is not None, "a generator has a teacher"
        noised, t = self.noised(x, nets, draws)
        with torch.no_grad():
            z = noised.z.detach()  # which counting operations needs, where nothing is differentiated
            fake = nets.trained[FAKE](z, noised.log_snr, label, w)
            real = nets.teacher(z, noised.log_snr, label, w)
        loss = pull(x, matching_direction(x=x, fake=fake, real=real), t=t, w=w)
        if not self.gan_weight:
            return loss
        critic = nets.trained[CRITIC]
        with frozen(nets.trained[FAKE], critic):
            nets.trained[FAKE](noised.z, noised.log_snr, label, w)
            return replace(loss, error=loss.error + self.gan_weight * judge_generated(critic()))


class Critic(nn.Module):
    """A head on a denoiser's features in the middle: one logit an example, high for data.

    Args:
        denoiser: the fake score, whose latest call it judges.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.features = MiddleFeatures(denoiser)
        width = self.features.channels
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self) -> Float[Tensor, "batch"]:
        return self.head(self.features.pooled())[:, 0]
