"""Where the states come from that a student is trained at: noised data, the teacher's sampling, or its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch

from fewstep.diffusion.prediction import Clipped, Condition, Prediction, diffuse
from fewstep.diffusion.sampler import SAMPLERS, sample_until
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Images
from fewstep.methods.base import Method, Networks, Phase, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.student_settings import StudentSettings
from fewstep.system.validation import AtLeastOne, Bounded, Share, ShareBelowOne, build

Source = Literal["data", "teacher", "student"]
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class StateSource(Bounded):
    """Priors of the three sources (Garrepalli et al. 2024, DDIL).

    A few-step student that samples meets its own states, and training on noised data shows it others. One source serves
    a whole update. It is chosen by the fractional part of step * golden ratio, of which every stretch of steps has the
    priors' shares: a step needs no memory of those before. Roll-outs are made anew in each update, by the weights of
    that step: there is no replay buffer, and they cost what is counted in evaluations.

    Args:
        data, teacher, student: the priors; of noised data, and of states on the way from noise of the teacher and of
            the student, each by its own sampler.
        warmup: share of the training that sees data alone.
        teacher_steps: of a teacher's roll-out from noise to data, where the phase does not say how it is sampled.

    Raises:
        ValueError: priors that are negative or do not sum to 1, a share outside [0, 1), or no steps.
    """

    settings_key: ClassVar[str] = "stage.states"

    data: Share
    teacher: Share
    student: Share
    warmup: ShareBelowOne = 0.1
    teacher_steps: AtLeastOne = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        priors = (self.data, self.teacher, self.student)
        if abs(sum(priors) - 1) > 1e-9:
            raise ValueError(
                "stage.states.data, teacher and student must sum to 1, got "
                f"{', '.join(f'{prior:g}' for prior in priors)}"
            )

    def at(self, step: int, num_steps: int) -> Source:
        """The source of a step of a training of `num_steps`."""
        share = step * GOLDEN % 1
        if step < self.warmup * num_steps or share < self.data:
            return "data"
        return "teacher" if share < self.data + self.teacher else "student"


@dataclass(frozen=True, kw_only=True)
class StateSettings(StudentSettings, Method):
    """A method whose states need not be noised data.

    With `clip_target` the x that the student predicts on the way is held inside the data's range too.

    Args:
        states: settings of a `StateSource`; None for the method's own source.
        The rest: see `StudentSettings`.

    Raises:
        ValueError: see `StateSource`.
    """

    own_source: ClassVar[Source] = "data"

    states: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source_at(0)

    @cached_property
    def state_source(self) -> StateSource | None:
        """The source that `states` says."""
        return None if self.states is None else build(StateSource, self.states, "stage.states")

    def source_at(self, step: int) -> Source:
        """The source of an update."""
        return self.own_source if self.state_source is None else self.state_source.at(step, self.training.num_steps)

    def lowest_time(self, phase: Phase) -> float:
        """The lowest time that is trained at: the last at which the student is evaluated."""
        assert phase.sampling.times is not None, "a few-step student has its times"
        return phase.sampling.times[-1]

    def state(
        self,
        x: Images,
        eps: Images,
        *,
        t: Times,
        label: Condition,
        w: Weights | None,
        nets: Networks,
        draws: Draws,
        step: int,
        phase: Phase,
        lowest: float | None = None,
    ) -> Prediction:
        """The source's states at times t: x noised with eps, or a roll-out that begins at eps, of which z alone counts.

        Args:
            lowest: no t is below it; None: `lowest_time`.
        """
        source, log_snr = self.source_at(step), nets.schedule.log_snr(t)
        if source == "data":
            return diffuse(x=x, eps=eps, log_snr=log_snr)
        sampling, denoise = phase.sampling, nets.student
        if source == "teacher":
            assert self.state_source is not None, "no method's own states are the teacher's"
            # A teacher of a stochastic chain makes jumps of two of its steps, like its student.
            sampler = "stochastic" if sampling.sampler == "stochastic" else "deterministic"
            sampling = Sampling.uniform(phase.teacher_steps or self.state_source.teacher_steps, sampler=sampler)
            denoise = nets.frozen_teacher
        elif nets.bounds is not None:
            denoise = Clipped(nets.student, *nets.bounds)
        assert sampling.times is not None, "a few-step student has its times"
        z = sample_until(
            denoise,
            eps,
            until=t,
            lowest=self.lowest_time(phase) if lowest is None else lowest,
            schedule=nets.schedule,
            times=sampling.times,
            label=label,
            w=w,
            sampler=SAMPLERS[sampling.sampler],
            fresh=lambda step: draws.normal(),
        )
        return Prediction(z=z, v=torch.zeros_like(z), log_snr=log_snr)
