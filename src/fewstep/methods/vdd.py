"""Variational distillation: a mixture of experts that one evaluation gives, in the place of a diffusion model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.experts import expert_error, gate_error
from fewstep.diffusion.prediction import Condition, Denoise
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Images, alpha, expand, network_time
from fewstep.methods.base import Method, Networks, Parent, Phase, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.guidance_range import GuidanceRange, chosen_weights
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser, MixtureOfExperts
from fewstep.networks.denoiser import arguments_of
from fewstep.system.seeds import reseed, seed_for
from fewstep.system.validation import AtLeastOne, Bounded, NotNegative

GATES = "gates"


@dataclass(frozen=True, kw_only=True)
class ExpertSettings(Bounded):
    """The student of methods that make a mixture of experts.

    Args:
        experts: Gaussians, of full covariance. width, num_blocks: of the network's layers.
        spread: the means are at first uniform in [-spread, spread]. Experts that start on one side of several modes
            may all stay there: a reverse KL divergence does not see what the student leaves out.

    Raises:
        ValueError: a size below 1, or a negative spread.
    """

    experts: AtLeastOne = 8
    width: int = 128
    num_blocks: AtLeastOne = 3
    spread: NotNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 4 or self.width % 2:
            raise ValueError(f"stage.width must be even and at least 4, got {self.width}")

    def new_student(self, parent: Denoiser, stream: str, *, guidance_input: bool) -> Denoiser:
        """A mixture of the parent's data and conditions, which has none of its weights."""
        reseed(seed_for(stream, "experts"), torch.device("cpu"))
        known = arguments_of(parent.network)
        network = MixtureOfExperts(
            shape=known["shape"],
            num_classes=known["num_classes"],
            features=known.get("features", 0),
            experts=self.experts,
            width=self.width,
            num_blocks=self.num_blocks,
            guidance_input=guidance_input,
        )
        network.spread(self.spread)
        return Denoiser(network, "x")


@dataclass(frozen=True, kw_only=True)
class VDD(ExpertSettings, Method):
    """Variational diffusion distillation (Zhou et al. 2024) of a guided model into a mixture of Gaussian experts.

    For expert k, with x ~ q_k by reparameterisation, maximise E[ score(x) . x + log r_k(x) ] + H(q_k), weighted by the
    gate: see `expert_error`. The score of the teacher at a small noise level sigma, at the sample itself, which is not
    noised, is (D(x, sigma) - x) / sigma^2: that of the data blurred by sigma, so that experts of modes of standard
    deviation s come to sqrt(s^2 + sigma^2). The gates learn the experts' responsibilities for data (`gate_error`), in
    one step after every `expert_updates` of the experts.

    Args:
        samples: of each expert for an example. expert_updates: for one of the gates.
        sigma: the noise levels [lowest, highest], uniform, of noise over data without scaling.
        w_min, w_max: guidance weights trained at, None for the parent's range.
        The rest: see `Method` and `ExpertSettings`; `training.roles` needs gates.

    Raises:
        ValueError: fewer than one sample or update, or bad levels.
    """

    paper: ClassVar[str] = "Zhou et al. 2024 (2406.12538)"
    certainty: ClassVar[str] = (
        "sure: read in the authors' code; w as an input, gates that share no layer with the experts, and residual "
        "layers are ours"
    )

    name: str = "vdd"
    samples: AtLeastOne = 2
    expert_updates: AtLeastOne = 2
    sigma: Sequence[float] = (0.1, 0.1)
    w_min: float | None = None
    w_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sigma) != 2 or not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(
                f"stage.sigma must be two levels [lowest, highest] with 0 < lowest <= highest, got {[*self.sigma]}"
            )
        self.training.of_role(GATES)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, GATES)

    def parent(self) -> Parent:
        return Parent(guidance=("input", "two_evaluations"))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling.uniform(1, sampler="policy", guidance="input")),)

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return phase.sampling.grid()

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange | None:
        return chosen_weights(parent, self.w_min, self.w_max)

    def networks(self, nets: Networks, stream: str) -> Networks:
        student = self.new_student(nets.student, stream, guidance_input=True)
        nets = super().networks(replace(nets, student=student), stream)
        return replace(nets, trained={GATES: student.network.get_submodule(GATES)})

    def moving(self, step: int) -> tuple[str, ...]:
        return (GATES,) if step % (self.expert_updates + 1) == self.expert_updates else (STUDENT,)

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        teacher, w = nets.teacher_and_weights(draws)
        experts = nets.student.mixture(x, label, w)
        if GATES in self.moving(step):
            return {GATES: Loss(gate_error(experts, x.flatten(1)), draws.uniform(), w)}
        low, high = self.sigma
        log_snr = -2 * (low + (high - low) * draws.uniform().double()).log()
        eps = [draws.normal().flatten(1) for _ in range(self.samples * self.experts)]
        samples = experts.of_each(torch.stack(eps).unflatten(0, (self.samples, self.experts)))
        score = teacher_score(teacher, samples.detach(), x, log_snr, label, w)
        return {STUDENT: Loss(expert_error(experts, samples, score), network_time(log_snr), w)}


@torch.no_grad()
def teacher_score(
    teacher: Denoise,
    samples: Float[Tensor, "samples experts batch dim"],
    x: Images,
    log_snr: Float[Tensor, "batch"],
    label: Condition,
    w: Weights,
) -> Float[Tensor, "samples experts batch dim"]:
    """(D(x) - x) / sigma^2 at each sample x, with sigma^2 = 1 / SNR: of the teacher's data blurred by sigma.

    A network sees x scaled to alpha x, which is as likely under the noise alpha sigma.

    Args:
        x: a batch, of which only the shape counts.
    """
    number = samples[..., 0, 0].numel()
    flat, levels = samples.flatten(0, 2), log_snr.repeat(number)
    z = (expand(alpha(levels), flat) * flat).unflatten(1, x.shape[1:])
    labels = label.repeat(number, *[1] * (label.ndim - 1))
    denoised = teacher(z, levels, labels, w.repeat(number)).x.flatten(1)
    return (expand(levels.exp(), flat) * (denoised - flat)).view_as(samples)
