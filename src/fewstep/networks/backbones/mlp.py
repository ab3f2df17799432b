"""A residual network of matrix products: for points and for images so small that convolutions waste the machine."""

from collections.abc import Sequence
from math import prod

import torch
from torch import nn
from torch.nn import functional

from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.networks.inputs import (
    Outputs,
    Scalar,
    Scalars,
    condition_embedding,
    outputs_of,
    plain_arguments,
    scalar_inputs,
    sinusoid,
    zeroed,
)


class ResidualMLP(nn.Module):
    """num_blocks blocks h + W2 silu(W1 (norm(h) * (1 + scale) + shift)), modulated by time, label and w.

    Args:
        shape: shape of one example, (D,) or (C, H, W); flattened inside.
        num_classes: labels are 0..num_classes - 1, and num_classes means "no class".
        features: of a state that is the condition in the place of a class, where all zeros mean none; see `DataFacts`.
        width, num_blocks, embedding_dim: size; embedding_dim even and at least 4.
        dropout: in [0, 1), inside each block.
        guidance_input, extra_inputs: see `ScalarInputs`. components: of a policy, see `outputs_of`.

    Raises:
        ValueError: a size outside its range.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        width: int,
        num_blocks: int,
        embedding_dim: int,
        dropout: float = 0.0,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
        components: int = 0,
        features: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        if embedding_dim < 4 or embedding_dim % 2:
            raise ValueError(f"embedding_dim must be even and at least 4, got {embedding_dim}")
        if width < 1 or num_blocks < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "a ResidualMLP needs width and num_blocks of at least 1 and dropout in [0, 1), got "
                f"width={width}, num_blocks={num_blocks}, dropout={dropout}"
            )
        self.embedding_dim, self.outputs = embedding_dim, outputs_of(components)
        self.guidance_projection = scalar_inputs(
            guidance_input, extra_inputs, dim=embedding_dim, num_features=embedding_dim
        )
        self.time = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        )
        self.label = condition_embedding(num_classes, features, embedding_dim)
        self.modulation = nn.Linear(embedding_dim, 2 * num_blocks * width)
        self.inward = nn.Linear(prod(shape), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(num_blocks))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(num_blocks))
        self.second = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(num_blocks))
        self.dropout = dropout
        self.outward = nn.Sequential(nn.LayerNorm(width), zeroed(nn.Linear(width, prod(shape) * self.outputs)))

    def forward(
        self, z: Images, time: Scalar, label: Condition, w: Scalar | None, extra: Scalars | None = None
    ) -> Outputs:
        features = sinusoid(time, self.embedding_dim)
        if self.guidance_projection is not None:
            features = features + self.guidance_projection(self.guidance_projection.sinusoids(w, extra))
        embedding = functional.silu(self.time(features) + self.label(label))
        modulation = self.modulation(embedding).chunk(2 * len(self.norms), dim=1)
        h = self.inward(z.flatten(1))
        for block, norm in enumerate(self.norms):
            scale, shift = modulation[2 * block], modulation[2 * block + 1]
            modulated = torch.addcmul(shift, norm(h), 1 + scale)
            inner = functional.silu(self.first[block](modulated))
            h = h + self.second[block](functional.dropout(inner, self.dropout, self.training))
        output = self.outward(h)
        return output.reshape(z.shape) if self.outputs == 1 else output.reshape(*z.shape, -1).movedim(-1, 1)
