"""Expectation maximisation: the mixture of experts that is most likely given the data, without a teacher."""

from dataclasses import dataclass, replace
from typing import ClassVar

from fewstep.data.batch import Batch
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Method, Networks, Phase
from fewstep.methods.draws import Draws
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.methods.vdd import ExpertSettings


@dataclass(frozen=True, kw_only=True)
class EMMixture(ExpertSettings, Method):
    """Generalised expectation maximisation of a mixture of Gaussian experts (Jacobs et al. 1991): the baseline of VDD.

    Minimise -log q(x) over data x. Its gradient is that of the expected complete log-likelihood under the present
    responsibilities (Fisher's identity): each step is an E-step and a step towards the M-step's maximum.

    Args: see `Method` and `ExpertSettings`.
    """

    paper: ClassVar[str] = "Jacobs et al. 1991 (10.1162/neco.1991.3.1.79)"
    certainty: ClassVar[str] = "sure: the likelihood; the network is VDD's, and steps of gradients are ours"

    name: str = "em_mixture"

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling.uniform(1, sampler="policy", guidance="none")),)

    def guidance(self, parent: GuidanceRange | None) -> None:
        return None

    def networks(self, nets: Networks, stream: str) -> Networks:
        student = self.new_student(nets.student, stream, guidance_input=False)
        return super().networks(replace(nets, student=student), stream)

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        experts = nets.student.mixture(x, label, None)
        return {STUDENT: Loss(-experts.log_density(x.flatten(1)), draws.uniform())}
