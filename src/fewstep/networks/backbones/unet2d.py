"""diffusers' UNet2DModel, the shape of ADM's and of the paper's pixel models, behind this library's signature."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Int
from torch import Tensor, nn

from fewstep.diffusion.schedule import Images
from fewstep.networks.backbones.wrapping import GivenFeatures, TimeFeatures, build, check_levels, output_of
from fewstep.networks.inputs import Outputs, Scalar, Scalars, plain_arguments, scalar_inputs


class UNet2D(nn.Module):
    """`UNet2DModel` with a w input beside its time (see `TimeFeatures`); `unet` has diffusers' own names of weights.

    Args:
        shape: (C, H, W); H and W divisible by 2 to the number of levels minus one.
        num_classes: labels are 0..num_classes - 1, and num_classes means "no class", one row more of the table of
            classes. 0 for an unconditional model, which has no table and does not look at labels.
        config: arguments of `UNet2DModel` but those that follow from the others, which are refused: sample_size,
            in_channels, num_class_embeds. Of 2 C `out_channels` the first C are the prediction.
        guidance_input, extra_inputs: see `ScalarInputs`. guidance_dim: size of each of their sinusoids.
        components: of a policy, see `outputs_of`.

    Raises:
        ValueError: a setting that UNet2DModel does not know, or sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        config: Mapping[str, Any],
        guidance_dim: int = 256,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
        components: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        self.components = components
        if config.get("time_embedding_type", "positional") != "positional" or config.get("class_embed_type"):
            raise ValueError(
                "a UNet2D needs the positional time_embedding_type and class_embed_type null (a table of classes), got "
                f"{config.get('time_embedding_type', 'positional')!r} and {config.get('class_embed_type')!r}; such a "
                "model cannot be used here"
            )
        check_levels(shape, config)
        follows = {
            "sample_size": tuple(shape[1:]),
            "in_channels": shape[0],
            "num_class_embeds": num_classes + 1 if num_classes else None,
            "num_train_timesteps": None,
        }
        self.unet = build(UNet2DModel, self.arguments["config"], follows, components)
        width = self.unet.config["block_out_channels"][0]
        inputs = scalar_inputs(guidance_input, extra_inputs, dim=guidance_dim, num_features=width)
        self.time_features = TimeFeatures(self.unet.time_proj, inputs)
        self.unet.register_module("time_proj", GivenFeatures())

    def forward(
        self, z: Images, time: Scalar, label: Int[Tensor, "batch"], w: Scalar | None, extra: Scalars | None = None
    ) -> Outputs:
        labels = None if self.unet.class_embedding is None else label
        output = self.unet(z, self.time_features(time, w, extra), class_labels=labels, return_dict=False)[0]
        return output_of(output, z, self.components)
