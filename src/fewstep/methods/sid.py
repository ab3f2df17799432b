"""Score identity distillation: a generator that lowers the difference of two scores itself, through both of them."""

from dataclasses import dataclass
from typing import ClassVar

from fewstep.diffusion.distribution import score_identity
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.methods.base import Networks, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.fake_score import FAKE, FakeScore
from fewstep.methods.losses import Loss, frozen
from fewstep.networks.denoiser import differentiable
from fewstep.system.validation import NotNegative


@dataclass(frozen=True, kw_only=True)
class SiD(FakeScore):
    """Score identity distillation (Zhou et al. 2024, 2404.04057).

    Where distribution matching moves a sample along the difference of two scores, here the expectation of the squared
    difference is lowered, in a form (`score_identity`) in which the fake score, which is only near the generator's own,
    counts for less. Gradients run through the fake score and the teacher into z, and not into their weights.

    Guidance: with w an input of the teacher, the fake score and the student, each is guided in one evaluation. That the
    fake score is guided too is what the long-short guidance of SiD-LSG (Zhou et al. 2024, 2406.01561) does with two
    evaluations of one weight.

    Args:
        alpha: see `score_identity`.
        The rest: see `FakeScore`.

    Raises:
        ValueError: see `FakeScore`, or a negative alpha.
    """

    paper: ClassVar[str] = "Zhou et al. 2024 (2404.04057)"
    certainty: ClassVar[str] = (
        "sure: the loss was read in the authors' code; levels uniform in t, several of them, and w as an input are ours"
    )

    name: str = "sid"
    alpha: NotNegative = 1.2

    def student_loss(
        self, x: Images, nets: Networks, draws: Draws, label: Condition, w: Weights, *, level: Times
    ) -> Loss:
        noised, t = self.noised(x, nets, draws)
        with frozen(nets.trained[FAKE]):
            fake = self.fake_score(nets, level)(noised.z, noised.log_snr, label, w)
        real = differentiable(nets.frozen_teacher)(noised.z, noised.log_snr, label, w)
        return Loss(score_identity(x=x, fake=fake, real=real, alpha=self.alpha), t, w)
