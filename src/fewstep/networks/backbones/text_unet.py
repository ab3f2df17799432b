"""diffusers' UNet2DConditionModel attending to a prompt: the shape of Stable Diffusion 1.5 and 2.1."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.diffusion.schedule import Images
from fewstep.networks.backbones.wrapping import add_scalar_inputs, build, check_levels, output_of, timestep_cond
from fewstep.networks.inputs import Outputs, Scalar, Scalars, plain_arguments

ELSEWHERE = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type")


Prompts = Float[Tensor, "batch tokens features"]


class TextUNet(nn.Module):
    """`UNet2DConditionModel` with prompts as condition and w by `time_cond_proj_dim`.

    `unet` is the plain model, whose weights open in stock diffusers pipelines. The condition is the embedding of a
    prompt; that of the empty prompt is the buffer `empty_prompt`, zero until it is copied there.

    Args:
        shape: (C, H, W); H and W divisible by 2 to the number of levels minus one.
        num_classes: 0, there are none.
        tokens, features: shape of the embedding of a prompt.
        config: arguments of `UNet2DConditionModel` but those that follow from the others, which are refused:
            sample_size, in_channels, cross_attention_dim, time_cond_proj_dim, num_class_embeds. Of 2 C `out_channels`
            the first C are the prediction.
        guidance_input, extra_inputs: see `ScalarInputs`. guidance_dim: size of each of their sinusoids.
        components: of a policy, see `outputs_of`.

    Raises:
        ValueError: a setting that UNet2DConditionModel does not know, a condition besides the prompt, or sizes that do
            not fit each other.
    """

    empty_prompt: Float[Tensor, "tokens features"]

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        tokens: int,
        features: int,
        config: Mapping[str, Any],
        guidance_dim: int = 256,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
        components: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        self.components = components
        if num_classes:
            raise ValueError(f"a TextUNet has prompts and no classes, got num_classes={num_classes}; use dataset=text")
        if others := [key for key in ELSEWHERE if config.get(key) is not None]:
            raise ValueError(
                f"a TextUNet has no condition but the prompt, so {others[0]} must be null, got {config[others[0]]!r}; "
                "such a model cannot be used here"
            )
        check_levels(shape, config)
        follows = {
            "sample_size": shape[1] if shape[1] == shape[2] else tuple(shape[1:]),  # LCM's pipeline takes one number
            "in_channels": shape[0],
            "cross_attention_dim": features,
            "time_cond_proj_dim": guidance_dim if guidance_input else None,
            "num_class_embeds": None,
        }
        self.unet = build(UNet2DConditionModel, self.arguments["config"], follows, components)
        self.register_buffer("empty_prompt", torch.zeros(tokens, features))
        add_scalar_inputs(self.unet, guidance_input, extra_inputs, guidance_dim)

    def forward(
        self, z: Images, time: Scalar, label: Prompts, w: Scalar | None, extra: Scalars | None = None
    ) -> Outputs:
        output = self.unet(
            z,
            1000 * time,
            encoder_hidden_states=label.to(z.dtype),
            timestep_cond=timestep_cond(self.unet, w, extra),
            return_dict=False,
        )[0]
        return output_of(output, z, self.components)
