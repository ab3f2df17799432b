"""The guidance input of a network whose class in diffusers has none. Needs torch and diffusers alone."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin


class WInput(ModelMixin, ConfigMixin):
    """A projection of the sinusoid of 1000 w, to be added to the sinusoid of time before the network's time MLP."""

    @register_to_config
    def __init__(self, guidance_dim: int, num_features: int) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(guidance_dim, num_features, bias=False)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        features = get_timestep_embedding(1000 * w, self.projection.in_features, downscale_freq_shift=1)
        return self.projection(features.to(self.projection.weight.dtype))
