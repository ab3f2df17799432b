"""diffusers' U-Net for class-conditional images, behind the signature of this library's networks."""

from collections.abc import Sequence

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.networks.backbones.wrapping import add_scalar_inputs, check_divisible, output_of, timestep_cond
from fewstep.networks.inputs import Outputs, Scalar, Scalars, outputs_of, plain_arguments


class UNet(nn.Module):
    """`UNet2DConditionModel` without cross-attention; classes by `num_class_embeds`, w by `time_cond_proj_dim`.

    With `image_condition` the condition is an image of z's shape, put beside z's channels, in the place of a class
    (Saharia et al. 2021, SR3, 2104.07636); none is the grey image, zero everywhere.

    Args:
        shape: (C, H, W); H and W divisible by 2 to the number of levels minus one.
        num_classes: labels are 0..num_classes - 1, and num_classes means "no class".
        channels: of each level, finest first; multiples of `norm_groups`.
        num_blocks: residual blocks per level.
        attention: for each level, whether it attends.
        head_dim: channels per attention head.
        guidance_input, extra_inputs: see `ScalarInputs`. guidance_dim: size of each of their sinusoids.
        components: of a policy, see `outputs_of`.
        image_condition: whether the condition is an image; num_classes is then 0.

    Raises:
        ValueError: classes where the condition is an image, or sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int],
        num_blocks: int,
        attention: Sequence[bool],
        head_dim: int = 32,
        norm_groups: int = 32,
        dropout: float = 0.0,
        guidance_dim: int = 256,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
        components: int = 0,
        image_condition: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        self.components, self.image_condition = components, image_condition
        if image_condition != (num_classes == 0):
            raise ValueError(
                f"a U-Net has either classes or image_condition, got num_classes={num_classes} and image_condition="
                f"{image_condition}; model=patches_sr is for dataset=patches_sr"
            )
        check_divisible(shape, 2 ** (len(channels) - 1), f"a U-Net of {len(channels)} levels")
        if len(attention) != len(channels):
            raise ValueError(f"model.attention needs one value per level ({len(channels)}), got {list(attention)}")
        if norm_groups < 1 or head_dim < 1 or any(size < 1 or size % norm_groups for size in channels):
            raise ValueError(
                f"a U-Net needs channels that are multiples of norm_groups, and head_dim of at least 1, got "
                f"channels={list(channels)}, norm_groups={norm_groups}, head_dim={head_dim}"
            )
        self.unet = UNet2DConditionModel(
            sample_size=shape[1],
            in_channels=shape[0] * (1 + image_condition),
            out_channels=shape[0] * outputs_of(components),
            block_out_channels=tuple(channels),
            layers_per_block=num_blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            mid_block_type="UNetMidBlock2D",
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=head_dim,
            norm_num_groups=norm_groups,
            dropout=dropout,
            num_class_embeds=None if image_condition else num_classes + 1,
            time_cond_proj_dim=guidance_dim if guidance_input else None,
        )
        add_scalar_inputs(self.unet, guidance_input, extra_inputs, guidance_dim)

    @property
    def null_image(self) -> Tensor | None:
        """The condition that is none, where conditions are images."""
        return torch.zeros(self.arguments["shape"]) if self.image_condition else None

    def forward(
        self, z: Images, time: Scalar, label: Condition, w: Scalar | None, extra: Scalars | None = None
    ) -> Outputs:
        output = self.unet(
            torch.cat([z, label.to(z.dtype)], dim=1) if self.image_condition else z,
            1000 * time,
            encoder_hidden_states=None,
            class_labels=None if self.image_condition else label,
            timestep_cond=timestep_cond(self.unet, w, extra),
            return_dict=False,
        )[0]
        return output_of(output, z, self.components)
