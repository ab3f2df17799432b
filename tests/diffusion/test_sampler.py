from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise, Prediction, diffuse, interpret
from fewstep.diffusion.sampler import ddim_step, integrate, invert_ddim, sample, trajectory
from fewstep.diffusion.schedule import CosineSchedule, alpha, append_zero, sigma, uniform_times

MakeMixture = Callable[..., GaussianMixture]
SCHEDULE = CosineSchedule()
TO_THE_DATA = CosineSchedule(-20.0, 50.0)  # sigma(0) = 1e-11: the solution at t = 0 is the sample itself
PAIRS = [(1.0, 0.5), (0.7, 0.6), (0.3, 0.0), (0.5, 1.0), (0.2, 0.201)]  # both directions


def noise(count: int, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(t: float, count: int = 6) -> Tensor:
    return SCHEDULE.log_snr(torch.full((count,), t))


def order(steps: list[int], errors: list[float]) -> float:
    """Slope of -log(error) over log(steps)."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_ddim_converges_with_order_one_on_the_exact_guided_mixture(make_mixture: MakeMixture, w: float) -> None:
    denoise = Guided(make_mixture().denoise, 3)
    start, label, weight = noise(64), torch.arange(64) % 3, torch.full((64,), w, dtype=torch.float64)
    ends = TO_THE_DATA.log_snr(torch.tensor([1.0, 0.0]))
    truth = integrate(denoise, start, log_snr=ends[0], log_snr_next=ends[1], num_steps=150, label=label, w=weight)
    steps = [16, 32, 64, 128, 256]
    errors = [
        float(
            (sample(denoise, start, schedule=TO_THE_DATA, times=uniform_times(n), label=label, w=weight) - truth)
            .square()
            .mean()
            .sqrt()
        )
        for n in steps
    ]
    assert order(steps, errors) == pytest.approx(1, abs=0.1), errors


def gaussian_flow(z: Tensor, log_snr: Tensor, log_snr_next: Tensor, *, mean: float, std: float) -> Tensor:
    """Where the probability flow of N(mean, std^2) takes z: it keeps the number of standard deviations."""

    def deviation(log_snr: Tensor) -> Tensor:
        return ((alpha(log_snr) * std).square() + sigma(log_snr).square()).sqrt()

    return alpha(log_snr_next) * mean + deviation(log_snr_next) / deviation(log_snr) * (z - alpha(log_snr) * mean)


def test_the_integrator_has_order_four_on_a_closed_form() -> None:
    mean, std, weight = (torch.tensor(value, dtype=torch.float64) for value in ([[0.6]], [[0.3]], [1.0]))
    mixture = GaussianMixture(mean, std, weight, torch.tensor([0]))
    start, label = noise(16, 1), torch.zeros(16, dtype=torch.long)
    log_snr, log_snr_next = SCHEDULE.log_snr(torch.tensor([1.0, 0.1]))
    truth = gaussian_flow(start, log_snr, log_snr_next, mean=0.6, std=0.3)
    steps = [16, 32, 64, 128]
    errors = [
        float(
            (
                integrate(
                    mixture.denoise, start, log_snr=log_snr, log_snr_next=log_snr_next, num_steps=n, label=label, w=None
                )
                - truth
            )
            .abs()
            .max()
        )
        for n in steps
    ]
    assert order(steps, errors) == pytest.approx(4, abs=0.2), errors
    assert errors[-1] < 1e-8


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_the_integrator_undoes_itself(make_mixture: MakeMixture, w: float) -> None:
    denoise = Guided(make_mixture().denoise, 3)
    start, label, weight = noise(8), torch.arange(8) % 3, torch.full((8,), w, dtype=torch.float64)
    ends = SCHEDULE.log_snr(torch.tensor([0.9, 0.1]))

    def go(z: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return integrate(denoise, z, log_snr=start, log_snr_next=end, num_steps=100, label=label, w=weight)

    torch.testing.assert_close(go(go(start, ends[0], ends[1]), ends[1], ends[0]), start, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_a_step_with_the_truth_lands_on_the_truth_and_undoes_itself(t: float, s: float) -> None:
    truth = diffuse(x=noise(6), eps=noise(6, seed=1), log_snr=at(t))
    there = diffuse(x=noise(6), eps=noise(6, seed=1), log_snr=at(s))
    landed = ddim_step(truth, at(s))
    torch.testing.assert_close(landed, there.z, rtol=0, atol=1e-12)
    back = ddim_step(Prediction(z=landed, v=there.v, log_snr=at(s)), at(t))
    torch.testing.assert_close(back, truth.z, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_inversion_gives_the_prediction_back(t: float, s: float) -> None:
    prediction = Prediction(z=noise(6), v=noise(6, seed=1), log_snr=at(t))
    inverted = invert_ddim(z=prediction.z, z_next=ddim_step(prediction, at(s)), log_snr=at(t), log_snr_next=at(s))
    torch.testing.assert_close(inverted.v, prediction.v, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_a_step_turns_z_by_the_angle(t: float, s: float) -> None:
    """z_s = cos(d) z_t - sin(d) v."""
    prediction = Prediction(z=noise(6), v=noise(6, seed=1), log_snr=at(t))
    d = torch.atan2(sigma(at(t)), alpha(at(t))) - torch.atan2(sigma(at(s)), alpha(at(s)))
    expected = d.cos()[:, None] * prediction.z - d.sin()[:, None] * prediction.v
    torch.testing.assert_close(ddim_step(prediction, at(s)), expected, rtol=0, atol=1e-12)


def point_mass(position: float) -> Denoise:
    """Data that is one point: its flow has constant x and eps, and every number of steps is exact."""

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return interpret("x", torch.full_like(z, position), z=z, log_snr=log_snr)

    return denoise


@pytest.mark.parametrize("num_steps", [1, 2, 5, 64])
def test_a_point_mass_is_sampled_exactly_and_encoded_back(num_steps: int) -> None:
    denoise, start, label = point_mass(0.3), noise(6), torch.zeros(6, dtype=torch.long)
    *_, last = trajectory(denoise, start, schedule=SCHEDULE, times=uniform_times(num_steps), label=label, w=None)
    torch.testing.assert_close(last.x, torch.full_like(start, 0.3), rtol=0, atol=1e-12)
    z = ddim_step(last, SCHEDULE.log_snr(torch.zeros(6)))
    for t, following in pairwise(append_zero(uniform_times(num_steps)).flip(0).tolist()):
        z = ddim_step(denoise(z, at(t), label, None), at(following))
    torch.testing.assert_close(z, start, rtol=0, atol=1e-7)  # eps is read at sigma(0) = 4.5e-5


def test_sampling_evaluates_once_a_step_from_one_to_one_nth(make_mixture: MakeMixture) -> None:
    mixture, times = make_mixture(), []

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        times.append(SCHEDULE.time(log_snr))
        return mixture.denoise(z, log_snr, label, w)

    sample(denoise, noise(3), schedule=SCHEDULE, times=uniform_times(5), label=torch.arange(3), w=None)
    expected = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)[:, None].expand(5, 3)
    torch.testing.assert_close(torch.stack(times), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_clipping_holds_every_x_inside(make_mixture: MakeMixture, num_steps: int) -> None:
    mixture, label = make_mixture(), torch.arange(32) % 3
    denoise, w = Guided(mixture.denoise, 3), torch.full((32,), 8.0, dtype=torch.float64)
    free, clipped = (
        list(
            trajectory(
                denoise, noise(32), schedule=SCHEDULE, times=uniform_times(num_steps), label=label, w=w, clip=clip
            )
        )
        for clip in (None, (-0.5, 0.5))
    )
    assert max(float(p.x.abs().max()) for p in free) > 0.6
    for prediction in clipped:
        assert prediction.x.abs().max() <= 0.5 + 1e-9
    x = sample(
        denoise, noise(32), schedule=SCHEDULE, times=uniform_times(num_steps), label=label, w=w, clip=(-0.5, 0.5)
    )
    assert torch.equal(x, clipped[-1].x)


def test_samples_of_the_exact_denoiser_have_the_moments_of_the_data(make_mixture: MakeMixture) -> None:
    mixture, count = make_mixture(), 8_000
    start, label = noise(count), torch.full((count,), 3)
    x = sample(mixture.denoise, start, schedule=SCHEDULE, times=uniform_times(64), label=label, w=None)
    weight = mixture.weights[:, None]
    mean = (weight * mixture.means).sum(0)
    variance = (weight * (mixture.means.square() + mixture.stds.square())).sum(0) - mean.square()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.var(0), variance, rtol=0.06, atol=0)


def test_samples_keep_the_dtype_and_shape_of_the_noise() -> None:
    start = torch.randn(4, 3, 2, 2)
    x = sample(point_mass(0.1), start, schedule=SCHEDULE, times=uniform_times(3), label=torch.zeros(4).long(), w=None)
    assert (x.dtype, x.shape) == (start.dtype, start.shape)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        sample(
            point_mass(0.0), noise(2), schedule=SCHEDULE, times=uniform_times(0), label=torch.zeros(2).long(), w=None
        )
