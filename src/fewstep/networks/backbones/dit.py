"""diffusers' DiTTransformer2DModel (Peebles & Xie 2023), behind this library's signature."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings, PatchEmbed
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from jaxtyping import Int
from torch import Tensor, nn

from fewstep.diffusion.schedule import Images
from fewstep.networks.backbones.wrapping import GivenFeatures, TimeFeatures, build, check_divisible, output_of
from fewstep.networks.inputs import Outputs, Scalar, Scalars, plain_arguments, scalar_inputs

TIME_FEATURES = 256  # of diffusers' embedding of time in a DiT
MOST_PATCHES = 256  # along a side: what a file says must not make us allocate without limit


class DiT(nn.Module):
    """`DiTTransformer2DModel` with a w input beside its time (see `TimeFeatures`), shared by all blocks.

    `transformer` has diffusers' own names of weights; each block has its own MLP of time and table of classes there.

    Args:
        shape: (C, H, H), H divisible by the patch size.
        num_classes: labels are 0..num_classes - 1, and num_classes means "no class".
        config: arguments of `DiTTransformer2DModel` but those that follow from the others, which are refused:
            sample_size, in_channels, num_embeds_ada_norm. Of 2 C `out_channels` the first C are the prediction.
        guidance_input, extra_inputs: see `ScalarInputs`. guidance_dim: size of each of their sinusoids.
        components: of a policy, see `outputs_of`.

    Raises:
        ValueError: a setting that DiTTransformer2DModel does not know, or sizes that do not fit each other.
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
        patch = int(config.get("patch_size", 2))
        check_divisible(shape, patch, f"a DiT of patches of {patch}")
        if shape[1] != shape[2] or shape[1] > MOST_PATCHES * patch or num_classes < 1:
            raise ValueError(
                f"a DiT needs square images of at most {MOST_PATCHES} patches a side, and classes, got {tuple(shape)} "
                f"and num_classes={num_classes}; choose another model="
            )
        follows = {
            "sample_size": shape[1],
            "in_channels": shape[0],
            "num_embeds_ada_norm": num_classes,
        }
        self.transformer = build(DiTTransformer2DModel, self.arguments["config"], follows, components)
        with torch.device("cpu"):  # of no state dict, so it must have its values even in a network built for its shapes
            width = self.transformer.inner_dim
            table = PatchEmbed(height=shape[1], width=shape[1], patch_size=patch, in_channels=1, embed_dim=width)
        self.transformer.pos_embed.pos_embed = table.pos_embed
        embeddings = [m for m in self.transformer.modules() if isinstance(m, CombinedTimestepLabelEmbeddings)]
        inputs = scalar_inputs(guidance_input, extra_inputs, dim=guidance_dim, num_features=TIME_FEATURES)
        self.time_features = TimeFeatures(embeddings[0].time_proj, inputs)
        for embedding in embeddings:
            embedding.register_module("time_proj", GivenFeatures())
            embedding.class_embedder.dropout_prob = 0.0  # the stage drops labels, and no block does on its own

    def forward(
        self, z: Images, time: Scalar, label: Int[Tensor, "batch"], w: Scalar | None, extra: Scalars | None = None
    ) -> Outputs:
        output = self.transformer(z, self.time_features(time, w, extra), class_labels=label, return_dict=False)[0]
        return output_of(output, z, self.components)
