"""A residual network of matrix products that is told a prompt: for latents so small that a U-Net wastes the machine."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.networks.backbones.mlp import ResidualMLP
from fewstep.networks.inputs import plain_arguments


class TextMLP(ResidualMLP):
    """`ResidualMLP` whose condition is the embedding of a prompt, all its tokens side by side.

    That of the empty prompt is the buffer `empty_prompt`, zero until it is copied there.

    Args:
        num_classes: 0, there are none. tokens, features: shape of the embedding of a prompt.
        The rest: see `ResidualMLP`.

    Raises:
        ValueError: a size outside its range, or classes.
    """

    empty_prompt: Float[Tensor, "tokens features"]

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        tokens: int,
        features: int,
        width: int,
        num_blocks: int,
        embedding_dim: int,
        dropout: float = 0.0,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
        components: int = 0,
    ) -> None:
        arguments = plain_arguments(locals())
        if num_classes or tokens < 1 or features < 1:
            raise ValueError(
                "a TextMLP has prompts of at least 1 token and 1 feature and no classes, got num_classes="
                f"{num_classes}, tokens={tokens}, features={features}; use dataset=text_latents"
            )
        super().__init__(
            shape=shape,
            num_classes=num_classes,
            features=tokens * features,
            width=width,
            num_blocks=num_blocks,
            embedding_dim=embedding_dim,
            dropout=dropout,
            guidance_input=guidance_input,
            extra_inputs=extra_inputs,
            components=components,
        )
        self.arguments = arguments
        self.register_buffer("empty_prompt", torch.zeros(tokens, features))
