"""The reversed chain: two steps of the teacher from data towards noise into one step of the student."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Networks, Parent, Phase, Times
from fewstep.methods.draws import Draws
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.progressive import Progressive


@dataclass(frozen=True, kw_only=True)
class Encoder(Progressive):
    """An encoder of N steps from one of 2N, for each N of a ladder (Meng et al. 2023, on encoding and style transfer).

    Times are i / N, i uniform in 0..N-1, and the step from t ends at t + 1/N; t = 0 is among them, where encoding
    begins. The target is that of `Progressive` with the steps taken towards noise: the same formula with negative
    angles. Deterministic, by its nature. How the paper sets it up beyond "the reverse-direction DDIM, distilled in the
    same way" we could not read; the rest is ours.

    Args:
        w_min, w_max: of the encoder, inside the parent's range.
        The rest: see `Progressive`, less its sampler and variant.

    Raises:
        ValueError: the network predicts x.
    """

    paper: ClassVar[str] = "Meng et al. 2023 (2210.03142), encoding"
    certainty: ClassVar[str] = "our reconstruction, from the paper's one sentence"

    name: str = "encoder"
    w_min: float = 0.0
    w_max: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        GuidanceRange(self.w_min, self.w_max)
        if (self.sampler, self.variant) != ("deterministic", "joint"):
            raise ValueError(
                f"an encoder is deterministic and has a w input, got stage.sampler={self.sampler} and "
                f"stage.variant={self.variant}"
            )

    def sampling(self, num_steps: int) -> Sampling:
        return Sampling.uniform(num_steps, guidance="input", direction="encode")

    def parent(self) -> Parent:
        return Parent(guidance=("input",), continues=self.sampling(self.ladder[0]))

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange:
        assert parent is not None, "an encoder's parent has a w input"
        return parent.narrowed(self.w_min, self.w_max)

    def networks(self, nets: Networks, stream: str) -> Networks:
        if nets.student.prediction == "x":
            raise ValueError(
                "an encoder begins at data without noise, where a predicted x says nothing of the noise to come, and "
                "this parent predicts x; use one that predicts v or eps"
            )
        return super().networks(nets, stream)

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return 1 - phase.sampling.grid()

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        return draws.integers(0, phase.own_steps).double() / phase.own_steps

    def hops(self, t: Times, phase: Phase) -> tuple[Times, Times]:
        return t + 0.5 / phase.own_steps, t + 1 / phase.own_steps
