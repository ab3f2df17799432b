"""pi-Flow: a network that gives, at the start of a segment, a policy for all of it, imitated on its own states."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.policy import SUBSTEPS
from fewstep.diffusion.prediction import diffuse
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Method, Networks, Phase
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss, regress
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.methods.training import STUDENT
from fewstep.system.validation import AtLeastOne


@dataclass(frozen=True, kw_only=True)
class PiFlow(GuidedStudentSettings, Method):
    """Policy imitation (pi-Flow: Chen et al. 2025), with a Gaussian mixture as policy.

    From data noised to the start t_0 of one of N equal segments the student gives a `Policy` in one evaluation. As a
    constant it is followed to a t of the segment, where its velocity regresses to the guided teacher's:
    |v_policy(z_t, t) - v_teacher(z_t, t)|^2. The teacher so corrects the states that the student makes itself.

    Args:
        num_steps: N. components: Gaussians of the mixture at each location.
        states: of a policy at which the teacher is evaluated; the network is evaluated once for all.
        The rest: see `Method` and `GuidedStudentSettings`.

    Raises:
        ValueError: fewer than one step, component or state, or an adapter.
    """

    paper: ClassVar[str] = "Chen et al. 2025 (2510.14974), GM policy"
    certainty: ClassVar[str] = (
        "objective and posterior are sure; a deviation for each component, the noise that tells components apart, the "
        "sub-steps, uniform t and w are ours; scheduled mixing and dropout of components are left out"
    )

    name: str = "pi_flow"
    num_steps: AtLeastOne = 4
    components: AtLeastOne = 4
    states: AtLeastOne = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is not None:
            raise ValueError(
                f"stage.adapter={self.adapter} changes the layers of a teacher by little, and the last one of a policy "
                "is new; use stage.adapter=null"
            )

    def with_steps(self, num_steps: int) -> "PiFlow":
        return replace(self, num_steps=num_steps)

    def phases(self) -> tuple[Phase, ...]:
        sampling = Sampling.uniform(self.num_steps, sampler="policy", guidance="input")
        return (Phase(sampling, num_steps=self.num_steps, components=self.components),)

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return phase.sampling.grid()

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        teacher, w = nets.teacher_and_weights(draws)
        start = draws.integers(1, self.num_steps + 1).double() / self.num_steps
        source = diffuse(x=x, eps=draws.normal(), log_snr=nets.schedule.log_snr(start))
        policy = nets.student.policy(source.z, source.log_snr, label, w)
        gone = torch.stack([draws.uniform().double() for _ in range(self.states)]).sort(0).values / self.num_steps
        z, log_snr, errors = source.z, source.log_snr, []
        for t in start - gone:
            following = nets.schedule.log_snr(t.clamp(min=0))
            with torch.no_grad():
                z = policy.detach().follow(following, (z, log_snr), -(-SUBSTEPS // self.states))
                target = teacher(z, following, label, w)
            log_snr = following
            errors.append(regress(policy.at(z, log_snr), target, self.training, t=t, w=w).error)
        return {STUDENT: Loss(torch.stack(errors).mean(0), start, w)}
