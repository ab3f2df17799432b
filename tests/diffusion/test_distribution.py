"""Distribution matching on the tilted Gaussian: where the guided direction stops, in closed form.

Conditional N(m, c^2), unconditional N(0, C^2), one level: with A = alpha^2 c^2 + sigma^2, B = alpha^2 C^2 + sigma^2 and
P = omega / A - (omega - 1) / B an affine generator stops at the mean omega m / (A P) and the variance
max(0, (1 / P - sigma^2) / alpha^2); omega = 1 + w.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.distribution import matching_direction
from fewstep.diffusion.guidance import guide
from fewstep.diffusion.prediction import Prediction, diffuse, interpret
from fewstep.diffusion.schedule import alpha, expand, sigma

LOG_SNR = 2 * math.log(0.8 / 0.6)
MEAN, CONDITIONAL, UNCONDITIONAL = 1.0, 0.5, 1.4
OMEGAS = torch.tensor([1.0, 1.25, 1.5, 2.0], dtype=torch.float64)
STOPS = torch.tensor([[1.0, 1.069, 1.120, 1.192], [0.5, 0.364, 0.211, 0.0]], dtype=torch.float64)
Direction = Callable[[Tensor, Prediction, Prediction, Prediction], Tensor]
"""(x, fake, conditional, unconditional) -> g."""


def gaussian(z: Tensor, mean: Tensor | float, std: Tensor | float) -> Prediction:
    """The exact denoiser of N(mean, std^2), both per example."""
    log_snr = torch.full((len(z),), LOG_SNR, dtype=torch.float64)
    mean, std = (torch.as_tensor(value, dtype=torch.float64).expand(len(z)) for value in (mean, std))
    a, s = alpha(log_snr), sigma(log_snr)
    gain = expand(a * std.square() / ((a * std).square() + s.square()), z)
    x = expand(mean, z) + gain * (z - expand(a * mean, z))
    return interpret("x", x, z=z, log_snr=log_snr)


def whitened(count: int = 64) -> tuple[Tensor, Tensor]:
    """Two rows of noise with sample means 0, variances 1 and covariance 0, so that affine maps have exact moments."""
    draws = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[:, 0] = 1
    first, second = torch.linalg.qr(draws).Q[:, 1:].T * count**0.5
    return first, second


def trained(direction: Direction, *, steps: int = 600, rate: float = 0.2) -> Tensor:
    """Mean and std of the generator a + b noise after descent along g, one example for each omega."""
    first, second = whitened()
    a, b = torch.zeros(len(OMEGAS), dtype=torch.float64), torch.full((len(OMEGAS),), 0.8, dtype=torch.float64)
    log_snr = torch.full((len(OMEGAS),), LOG_SNR, dtype=torch.float64)
    for step in range(steps):
        x = a[:, None] + b[:, None] * first
        z = diffuse(x=x, eps=second.expand_as(x), log_snr=log_snr).z
        g = direction(x, gaussian(z, a, b), gaussian(z, MEAN, CONDITIONAL), gaussian(z, 0.0, UNCONDITIONAL))
        falling = rate * (1 - step / steps)  # at a point the normalised direction keeps its length
        a, b = a - falling * g.mean(1), b - falling * (g * first).mean(1)
    return torch.stack([a, b.abs()])


def guided(conditional: Prediction, unconditional: Prediction, w: Tensor) -> Prediction:
    v = guide(conditional=conditional.v, unconditional=unconditional.v, w=w)
    return Prediction(z=conditional.z, v=v, log_snr=conditional.log_snr)


def right(x: Tensor, fake: Prediction, conditional: Prediction, unconditional: Prediction) -> Tensor:
    return matching_direction(x=x, fake=fake, real=guided(conditional, unconditional, OMEGAS - 1))


def scale_for_w(x: Tensor, fake: Prediction, conditional: Prediction, unconditional: Prediction) -> Tensor:
    return matching_direction(x=x, fake=fake, real=guided(conditional, unconditional, OMEGAS))


def wrong_sign(x: Tensor, fake: Prediction, conditional: Prediction, unconditional: Prediction) -> Tensor:
    return -right(x, fake, conditional, unconditional)


def swapped(x: Tensor, fake: Prediction, conditional: Prediction, unconditional: Prediction) -> Tensor:
    return matching_direction(x=x, fake=guided(conditional, unconditional, OMEGAS - 1), real=fake)


def guided_fake(x: Tensor, fake: Prediction, conditional: Prediction, unconditional: Prediction) -> Tensor:
    """Guidance on the wrong side."""
    return matching_direction(x=x, fake=guided(fake, unconditional, OMEGAS - 1), real=conditional)


def guidance_alone(x: Tensor, fake: Prediction, conditional: Prediction, unconditional: Prediction) -> Tensor:
    """Without the pull towards the conditional distribution: what the generator made takes no part."""
    return matching_direction(x=x, fake=conditional, real=guided(conditional, unconditional, OMEGAS))


def closed_form() -> Tensor:
    a2, s2 = 0.8**2, 0.6**2
    of_conditional, of_unconditional = a2 * CONDITIONAL**2 + s2, a2 * UNCONDITIONAL**2 + s2
    precision = OMEGAS / of_conditional - (OMEGAS - 1) / of_unconditional
    mean = OMEGAS * MEAN / (of_conditional * precision)
    return torch.stack([mean, ((1 / precision - s2) / a2).clamp(min=0).sqrt()])


def test_the_table_is_the_closed_form() -> None:
    torch.testing.assert_close(closed_form(), STOPS, rtol=0, atol=6e-4)


def test_the_guided_direction_stops_at_the_tilted_gaussian() -> None:
    torch.testing.assert_close(trained(right), closed_form(), rtol=0, atol=1e-3)


def test_the_guided_direction_is_zero_at_the_tilted_gaussian() -> None:
    """Where it exists (omega = 2 has no variance left), for every sample and not on average alone."""
    first, second = whitened()
    a, b = closed_form()
    x = a[:, None] + b[:, None] * first
    z = 0.8 * x + 0.6 * second
    g = right(x, gaussian(z, a, b), gaussian(z, MEAN, CONDITIONAL), gaussian(z, 0.0, UNCONDITIONAL))
    assert float(g[:3].abs().max()) < 1e-12
    assert float(g[3].mean().abs()) < 1e-12
    assert float((g[3] * first).mean()) > -1e-12


def test_without_guidance_it_stops_at_the_conditional_distribution() -> None:
    made = trained(lambda x, fake, conditional, _: matching_direction(x=x, fake=fake, real=conditional))
    expected = torch.tensor([[MEAN], [CONDITIONAL]], dtype=torch.float64).expand(2, 4)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_guidance_alone_collapses_to_a_point_beyond_the_mean() -> None:
    made = trained(guidance_alone)
    of_conditional, of_unconditional = 0.64 * CONDITIONAL**2 + 0.36, 0.64 * UNCONDITIONAL**2 + 0.36
    point = MEAN * of_unconditional / (of_unconditional - of_conditional)
    assert point == pytest.approx(1.475, abs=5e-4)
    torch.testing.assert_close(made[0], torch.full((4,), point, dtype=torch.float64), rtol=0, atol=1e-3)
    assert float(made[1].max()) < 1e-3


@pytest.mark.parametrize("wrong", [scale_for_w, wrong_sign, swapped, guided_fake])
def test_other_directions_stop_elsewhere(wrong: Direction) -> None:
    error = (trained(wrong) - closed_form()).abs().amax(0)
    affected = error if wrong is not guided_fake else error[1:]  # at omega = 1 there is no guidance to misplace
    assert not bool((affected < 0.02).any()), error


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Prediction, Prediction]:
    generator = torch.Generator().manual_seed(0)
    x, eps, v, w = (torch.randn(5, 1, 3, 3, generator=generator, dtype=dtype) for _ in range(4))
    log_snr = torch.linspace(-4, 4, 5, dtype=torch.float64)
    z = diffuse(x=x, eps=eps, log_snr=log_snr).z
    return x, Prediction(z=z, v=v, log_snr=log_snr), Prediction(z=z, v=w, log_snr=log_snr)


def test_the_direction_is_the_difference_of_x_over_the_mean_absolute_error_of_each_example() -> None:
    x, fake, real = pair()
    error = (x - real.x).abs().mean((1, 2, 3), keepdim=True)
    g = matching_direction(x=x, fake=fake, real=real)
    torch.testing.assert_close(g, (fake.x - real.x) / error)
    alone = Prediction(z=fake.z[:1], v=fake.v[:1], log_snr=fake.log_snr[:1])
    same = Prediction(z=real.z[:1], v=real.v[:1], log_snr=real.log_snr[:1])
    torch.testing.assert_close(matching_direction(x=x[:1], fake=alone, real=same), g[:1])


def test_a_confirmed_sample_has_a_finite_direction() -> None:
    x, fake, _ = pair(torch.float32)
    truth = interpret("x", x, z=fake.z, log_snr=fake.log_snr)
    assert not matching_direction(x=x, fake=truth, real=truth).any()
    assert torch.isfinite(matching_direction(x=x, fake=fake, real=truth)).all()


def test_no_gradient_passes_through_the_direction() -> None:
    x, fake, real = pair()
    assert not matching_direction(x=x.requires_grad_(), fake=fake, real=real).requires_grad
