"""What generators with a fake score share: samples from few steps, and a second network that learns to denoise them."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Condition, Denoise, Prediction, diffuse
from fewstep.diffusion.schedule import Images, network_time
from fewstep.methods.base import Method, Networks, Phase, Times, Weights
from fewstep.methods.consistency import renoising
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss, regress
from fewstep.methods.state_source import Source, StateSettings
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.methods.training import STUDENT
from fewstep.networks.denoiser import with_inputs
from fewstep.system.validation import AtLeastOne

FAKE = "fake"
LEVEL = "level"  # an input of the fake score: `network_time` of the level that a sample was predicted at


@dataclass(frozen=True, kw_only=True)
class FakeScore(StateSettings, GuidedStudentSettings, Method):
    """A generator beside a *fake score*, which learns the generator's samples and so says how they are distributed.

    The student starts from pure noise and, at one of its sampler's levels, predicts x; the way there is walked as the
    sampler walks it, without gradient (backward simulation). What moves x is `student_loss`. The fake score learns in
    every step, the student in one of `fake_updates`.

    The fake score does not see which level a sample is of, as in DMD2's code: what becomes the teacher's is the mixture
    of what all levels make. With `fake_sees_level` it is a further input of it, and each level's samples are matched
    for themselves, so that any first few of the levels are a sampler.

    Args:
        levels: where the sampler evaluates, falling in (0, 1].
        fake_updates: updates of the fake score for one of the student.
        t_min, t_max: the times that samples are noised to, uniform.
        fake_sees_level: ours.
        The rest: see `Method`, `StateSettings` and `GuidedStudentSettings`; `training.roles` needs fake.

    Raises:
        ValueError: bad levels or times, no update of the fake score, or a level as an input of an adapted network.
    """

    own_source: ClassVar[Source] = "student"

    levels: Sequence[float] = (1.0, 0.75, 0.5, 0.25)
    fake_updates: AtLeastOne = 5
    t_min: float = 0.02
    t_max: float = 0.98
    fake_sees_level: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(
                f"stage.t_min and stage.t_max must satisfy 0 <= t_min < t_max <= 1, got {self.t_min} and {self.t_max}"
            )
        if self.fake_sees_level and self.adapter is not None:
            raise ValueError(
                "stage.fake_sees_level adds an input to a whole network, and stage.adapter trains none; use one of them"
            )
        self.phases()
        for role in self.roles:
            self.training.of_role(role)

    @property
    def inputs(self) -> Literal["data", "noise"]:
        return "data" if self.states else "noise"

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, FAKE)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "input")),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        fake = with_inputs(nets.student, (LEVEL,)) if self.fake_sees_level else deepcopy(nets.student)
        return replace(nets, trained={FAKE: fake})

    def fake_score(self, nets: Networks, level: Times) -> Denoise:
        """The fake score of samples predicted at these levels."""
        denoiser = nets.trained[FAKE]
        if not self.fake_sees_level:
            return denoiser
        return partial(denoiser, extra={LEVEL: network_time(nets.schedule.log_snr(level))})

    def moving(self, step: int) -> tuple[str, ...]:
        # The student last: at first the fake score is the teacher, and their difference is zero but for rounding.
        return self.roles if (step + 1) % self.fake_updates == 0 else self.roles[1:]

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        data, label = batch
        w = nets.w_range.draw(draws)
        moves = STUDENT in self.moving(step)
        with nullcontext() if moves else torch.no_grad():
            generated = self.generate(data, nets, draws, label, w, step=step, phase=phase)
            x = generated.x
        losses, level = {}, nets.schedule.time(generated.log_snr)
        if moves:
            losses[STUDENT] = self.student_loss(x, nets, draws, label, w, level=level)
        noised, t = self.noised(x.detach(), nets, draws)
        fake = self.fake_score(nets, level)(noised.z, noised.log_snr, label, w)
        losses[FAKE] = regress(fake, noised, self.training, t=t, w=w)
        return losses | self.other_losses(data, noised, t, nets, draws, label, w, level=level)

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

    def noised(
        self, x: Images, nets: Networks, draws: Draws, *, t_max: Times | None = None
    ) -> tuple[Prediction, Times]:
        """Samples noised to times of their own, at most `t_max` (None: that of the settings), and these times."""
        t = self.t_min + ((self.t_max if t_max is None else t_max) - self.t_min) * draws.uniform()
        return diffuse(x=x, eps=draws.normal(), log_snr=nets.schedule.log_snr(t)), t

    @abstractmethod
    def student_loss(
        self, x: Images, nets: Networks, draws: Draws, label: Condition, w: Weights, *, level: Times
    ) -> Loss:
        """The student's loss at its samples x.

        Args:
            level: the time that x was predicted at.
        """

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
        """The losses of further roles, `noised` being the samples that the fake score was called at last."""
        return {}
