"""A network with a native schedule: evaluated at any log-SNR, in the timesteps it was trained with."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import KINDS, PredictionKind
from fewstep.networks import Denoiser

NATIVE = BetaSchedule()  # Stable Diffusion's: alpha = 0.068 at its last timestep


class RecordingNetwork(nn.Module):
    """An exact network: x, eps or v of the mixture at a timestep over 1000; it keeps the timesteps of its calls."""

    def __init__(self, mixture: GaussianMixture, kind: PredictionKind) -> None:
        super().__init__()
        self.arguments = {"guidance_input": False, "num_classes": mixture.num_classes}
        self.mixture, self.kind = mixture, kind
        self.timesteps: list[Tensor] = []

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        self.timesteps.append(1000 * time)
        log_snr = NATIVE.log_snr((1000 * time + 1) / NATIVE.num_timesteps)
        return getattr(self.mixture.denoise(z, log_snr, label), self.kind)


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_timesteps_it_is_the_exact_denoiser(
    make_mixture: Callable[..., GaussianMixture], kind: PredictionKind
) -> None:
    mixture = make_mixture()
    network = RecordingNetwork(mixture, kind)
    timesteps = torch.tensor([0, 250, 499, 998, 999], dtype=torch.float64)
    log_snr = NATIVE.log_snr((timesteps + 1) / 1000)
    z, label = torch.randn(5, 2, dtype=torch.float64), torch.arange(5) % 3
    prediction = Denoiser(network, kind, NATIVE)(z, log_snr, label)
    torch.testing.assert_close(network.timesteps[0], timesteps, rtol=0, atol=1e-8)
    torch.testing.assert_close(prediction.v, mixture.denoise(z, log_snr, label).v, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_noisier_than_it_knows_its_x_is_that_of_its_last_timestep(
    make_mixture: Callable[..., GaussianMixture], kind: PredictionKind
) -> None:
    network = RecordingNetwork(make_mixture(), kind)
    denoiser = Denoiser(network, kind, NATIVE)
    z, label = torch.randn(4, 2, dtype=torch.float64), torch.arange(4) % 3
    last = torch.full((4,), NATIVE.lowest_log_snr, dtype=torch.float64)
    beyond = denoiser(z, torch.tensor([-20.0, -12.0, -6.0, -5.5], dtype=torch.float64), label)
    torch.testing.assert_close(network.timesteps[0], torch.full((4,), 999.0, dtype=torch.float64))
    torch.testing.assert_close(beyond.x, denoiser(z, last, label).x, rtol=1e-6, atol=1e-8)
    assert beyond.v.isfinite().all()
