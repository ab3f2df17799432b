"""A mixture of Gaussian experts: means, factors of covariances and gates, of the condition alone."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.networks.inputs import Scalar, Scalars, condition_embedding, plain_arguments, scalar_inputs, zeroed

MOST_VALUES = 64  # of an example: an expert's factor has half its square


class MixtureOfExperts(nn.Module):
    """Two stacks of layers on the condition and w: one gives each expert's mean and factor, the other the gates.

    The gates share no weight with the experts, so that each is trained by an objective of its own. The output does not
    depend on z and time: (batch, experts, 1 + dim + dim (dim + 1) / 2), of each expert the gate's logit, the mean and
    the rows of the lower triangle; see `Denoiser.mixture`. At first all of it is zero but for what `spread` adds.

    Args:
        shape: shape of one example, whose dim values a Gaussian has together.
        num_classes, features: of the condition, see `ResidualMLP`.
        experts: of the mixture. width, num_blocks: of the layers of each stack.
        guidance_input, extra_inputs: see `ScalarInputs`.

    Raises:
        ValueError: a size outside its range, or examples of more than MOST_VALUES values.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        experts: int,
        width: int,
        num_blocks: int,
        features: int = 0,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        if min(experts, num_blocks) < 1 or width < 4 or width % 2:
            raise ValueError(
                "a MixtureOfExperts needs experts and num_blocks of at least 1 and an even width of at least 4, got "
                f"experts={experts}, num_blocks={num_blocks}, width={width}"
            )
        if (dim := prod(shape)) > MOST_VALUES:
            raise ValueError(
                f"experts of full covariance are for actions and points of at most {MOST_VALUES} values, and examples "
                f"of this shape, {tuple(shape)}, have {dim}"
            )
        self.experts, self.dim = experts, dim

        def stack(outputs: int) -> Stack:
            return Stack(num_classes, features, guidance_input, extra_inputs, width, num_blocks, outputs)

        self.gaussians = stack(experts * (dim + dim * (dim + 1) // 2))
        self.gates = stack(experts)

    def forward(
        self, z: Images, time: Scalar, label: Condition, w: Scalar | None, extra: Scalars | None = None
    ) -> Float[Tensor, "batch experts outputs"]:
        gaussians = self.gaussians(label, w, extra).unflatten(1, (self.experts, -1))
        return torch.cat([self.gates(label, w, extra)[..., None], gaussians], dim=2)

    @torch.no_grad()
    def spread(self, distance: float) -> None:
        """Move the experts apart: their means are uniform in [-distance, distance], drawn from torch's generator."""
        bias = self.gaussians.outward[-1].get_parameter("bias").view(self.experts, -1)
        bias[:, : self.dim].uniform_(-distance, distance)


class Stack(nn.Module):
    """num_blocks layers h + silu(W norm(h)) on the embedded condition, and a last one that is zero at first."""

    def __init__(
        self,
        num_classes: int,
        features: int,
        guidance_input: bool,
        extra_inputs: Sequence[str],
        width: int,
        num_blocks: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.label = condition_embedding(num_classes, features, width)
        self.scalars = scalar_inputs(guidance_input, extra_inputs, dim=width, num_features=width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(num_blocks)))
        self.outward = nn.Sequential(nn.LayerNorm(width), zeroed(nn.Linear(width, outputs)))

    def forward(self, label: Condition, w: Scalar | None, extra: Scalars | None) -> Float[Tensor, "batch outputs"]:
        h = self.label(label)
        if self.scalars is not None:
            h = h + self.scalars(self.scalars.sinusoids(w, extra))
        return self.outward(self.blocks(h))


class Block(nn.Module):
    """h + silu(W norm(h))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())

    def forward(self, h: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return h + self.layer(h)
