"""The samplers that add noise and the encoder, against closed forms: moments for every number of steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise, Prediction, diffuse, interpret
from fewstep.diffusion.sampler import (
    BEGINS_AT_IMAGE,
    END,
    SAMPLERS,
    TOLD_THE_END,
    Sampler,
    ancestral,
    ddim_step,
    diffuse_further,
    encode,
    integrate,
    invert_ddim,
    renoise,
    sample,
    stochastic,
    trajectory,
)
from fewstep.diffusion.schedule import CosineSchedule, Schedule, alpha, expand, sigma, uniform_times
from fewstep.system.seeds import fresh_noise

MakeMixture = Callable[..., GaussianMixture]
SCHEDULE = CosineSchedule()
STEPS = [1, 2, 3, 4, 8, 16]
FROM_NOISE = [name for name in SAMPLERS if name not in BEGINS_AT_IMAGE]  # the others: methods/test_restoring.py
MEAN, STD = 0.6, 0.3
COUNT = 64


def whitened(count: int = COUNT, columns: int = 17) -> Tensor:
    """Noise (columns, count, 1) whose sample means are 0, variances 1 and covariances 0: moments without error."""
    draws = torch.randn(count, columns + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[:, 0] = 1
    return torch.linalg.qr(draws).Q[:, 1:].T[..., None] * count**0.5


def deviation(log_snr: Tensor) -> Tensor:
    """Of z, for data of deviation STD."""
    return ((alpha(log_snr) * STD).square() + sigma(log_snr).square()).sqrt()


def flow(z: Tensor, log_snr: Tensor, log_snr_next: Tensor) -> Tensor:
    """Where the probability flow of N(MEAN, STD^2) takes z."""
    ratio = expand(deviation(log_snr_next) / deviation(log_snr), z)
    return expand(alpha(log_snr_next), z) * MEAN + ratio * (z - expand(alpha(log_snr), z) * MEAN)


def student(length: Callable[[int], int], num_steps: int) -> Denoise:
    """The perfect student of the Gaussian whose native jump from time i / N is `length(i)` / N long."""

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        i = round(float(SCHEDULE.time(log_snr)[0]) * num_steps)
        landing = SCHEDULE.log_snr(torch.full_like(log_snr, (i - length(i)) / num_steps))
        return invert_ddim(z=z, z_next=flow(z, log_snr, landing), log_snr=log_snr, log_snr_next=landing)

    return denoise


def ancestral_student(num_steps: int) -> Denoise:
    """The affine denoiser that makes z_s have the right moments if z_s is drawn from q(z_s | z_t, x), g = 0.

    By the algebra of Gaussians: q(z_s | z_t, x) is z_s = alpha_s x + sigma_s eps given z_t = a z_s + noise of variance
    b, so it has the precision 1 / sigma_s^2 + a^2 / b.
    """

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        i = round(float(SCHEDULE.time(log_snr)[0]) * num_steps)
        at = SCHEDULE.log_snr(torch.full_like(log_snr, (i - 1) / num_steps))
        if i == 1:  # the last x is the sample
            slope = STD / deviation(log_snr)
        else:
            a = alpha(log_snr) / alpha(at)
            b = sigma(log_snr) ** 2 - (a * sigma(at)) ** 2
            variance = 1 / (1 / sigma(at) ** 2 + a**2 / b)
            from_z, from_x = variance * a / b, variance * alpha(at) / sigma(at) ** 2
            slope = ((deviation(at) ** 2 - variance).sqrt() / deviation(log_snr) - from_z) / from_x
        x = MEAN + expand(slope, z) * (z - expand(alpha(log_snr), z) * MEAN)
        return interpret("x", x, z=z, log_snr=log_snr)

    return denoise


PERFECT = {
    "deterministic": lambda n: student(lambda i: 1, n),
    "flow_map": lambda n: student(lambda i: 1, n),
    "policy": lambda n: student(lambda i: 1, n),
    "stochastic": lambda n: student(lambda i: min(i, 2), n),
    "ancestral": ancestral_student,
    "renoise": lambda n: student(lambda i: i, n),
}


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("name", FROM_NOISE)
def test_each_sampler_keeps_the_moments_for_every_number_of_steps(name: str, num_steps: int) -> None:
    noise, label, calls = whitened(), torch.zeros(COUNT, dtype=torch.long), []
    denoise = PERFECT[name](num_steps)

    def counted(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, **told: Any) -> Prediction:
        calls.append(float(SCHEDULE.time(log_snr)[0]))
        if name in TOLD_THE_END:  # where its step ends
            assert float(told["extra"][END][0]) == pytest.approx(calls[-1] - 1 / num_steps, abs=1e-4)
        return denoise(z, log_snr, label, w)

    def plain_ancestral(*arguments: Tensor) -> Tensor:
        return ancestral(*arguments, g=0.0)

    sampler = plain_ancestral if name == "ancestral" else SAMPLERS[name]
    x = sample(
        counted,
        noise[0],
        schedule=SCHEDULE,
        times=uniform_times(num_steps),
        label=label,
        w=None,
        sampler=sampler,
        fresh=lambda step: noise[step],
    )
    assert calls == pytest.approx([1 - i / num_steps for i in range(num_steps)])
    assert float(x.mean()) == pytest.approx(MEAN, abs=2e-4)  # alpha(1) = 4.5e-5
    assert float(x.var(correction=0)) == pytest.approx(STD**2, rel=5e-4)  # and sigma(0)


def test_a_student_of_the_wrong_chain_loses_the_variance() -> None:
    noise, label = whitened(), torch.zeros(COUNT, dtype=torch.long)
    x = sample(
        PERFECT["deterministic"](4),
        noise[0],
        schedule=SCHEDULE,
        times=uniform_times(4),
        label=label,
        w=None,
        sampler=stochastic,
        fresh=lambda step: noise[step],
    )
    assert abs(float(x.var()) / STD**2 - 1) > 0.02


@pytest.mark.parametrize("num_steps", STEPS)
def test_the_stochastic_sampler_keeps_the_moments_of_the_mixture(make_mixture: MakeMixture, num_steps: int) -> None:
    mixture, count = make_mixture(num_classes=1, dim=1), 2000

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        """The perfect stochastic student: its jump of 2/N, or what is left, follows the exact flow."""
        t = float(SCHEDULE.time(log_snr)[0])
        end = SCHEDULE.log_snr(torch.tensor(max(0.0, t - 2 / num_steps), dtype=torch.float64))
        landed = integrate(mixture.denoise, z, log_snr=log_snr[0], log_snr_next=end, num_steps=8, label=label, w=None)
        return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=end.expand(len(z)))

    noise = whitened(count)
    x = sample(
        denoise,
        noise[0],
        schedule=SCHEDULE,
        times=uniform_times(num_steps),
        label=torch.zeros(count, dtype=torch.long),
        w=None,
        sampler=stochastic,
        fresh=lambda step: noise[step],
    )
    mean, variance = moments(mixture)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.035)
    torch.testing.assert_close(x.var(0), variance, rtol=0.08, atol=0)


def moments(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    weight = mixture.weights[:, None]
    mean = (weight * mixture.means).sum(0)
    return mean, (weight * (mixture.means.square() + mixture.stds.square())).sum(0) - mean.square()


@pytest.mark.parametrize("name", ["deterministic", "ancestral"])
def test_with_many_steps_the_exact_denoiser_keeps_the_moments_of_the_mixture(
    make_mixture: MakeMixture, name: str
) -> None:
    mixture, count = make_mixture(num_classes=1, dim=1), 4000
    generator = torch.Generator().manual_seed(1)
    x = sample(
        mixture.denoise,
        torch.randn(count, 1, generator=generator, dtype=torch.float64),
        schedule=SCHEDULE,
        times=uniform_times(100),
        label=torch.zeros(count, dtype=torch.long),
        w=None,
        sampler=SAMPLERS[name],
        fresh=lambda _: torch.randn(count, 1, generator=generator, dtype=torch.float64),
    )
    mean, variance = moments(mixture)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.035)
    torch.testing.assert_close(x.var(0), variance, rtol=0.08, atol=0)


@pytest.mark.parametrize(("g", "data"), [(0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("num_steps", [2, 3, 16])
def test_the_ancestral_bounds_are_exact_for_a_point_and_for_standard_normal_data(
    g: float, data: float, num_steps: int
) -> None:
    """At g = 0 and 1 the chain of z keeps its variance under the plain posterior mean E[x | z]."""
    noise, label = whitened(), torch.zeros(COUNT, dtype=torch.long)

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return interpret("x", data * expand(alpha(log_snr), z) * z, z=z, log_snr=log_snr)

    def sampler(*arguments: Tensor) -> Tensor:
        return ancestral(*arguments, g=g)

    for prediction in trajectory(
        denoise,
        noise[0],
        schedule=SCHEDULE,
        times=uniform_times(num_steps),
        label=label,
        w=None,
        sampler=sampler,
        fresh=lambda step: noise[step],
    ):
        expected = (alpha(prediction.log_snr[0]) * data) ** 2 + sigma(prediction.log_snr[0]) ** 2
        assert float(prediction.z.var(correction=0)) == pytest.approx(float(expected), rel=1e-6)


def test_diffusing_further_is_the_forward_process() -> None:
    noise, label = whitened(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    there, back = SCHEDULE.log_snr(label)
    z = alpha(there) * MEAN + deviation(there) * noise[0]
    again = diffuse_further(z, log_snr=there.expand(COUNT), log_snr_next=back.expand(COUNT), noise=noise[1])
    assert float(again.mean()) == pytest.approx(float(alpha(back)) * MEAN)
    assert float(again.std(correction=0)) == pytest.approx(float(deviation(back)))
    still = diffuse_further(z, log_snr=there.expand(COUNT), log_snr_next=there.expand(COUNT), noise=noise[1])
    torch.testing.assert_close(still, z)


@pytest.mark.parametrize("num_steps", STEPS)
def test_a_perfect_encoder_and_a_perfect_decoder_undo_each_other(num_steps: int) -> None:
    noise, label = whitened(), torch.zeros(COUNT, dtype=torch.long)
    x = MEAN + STD * noise[0]

    def encoder(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        following = SCHEDULE.log_snr(SCHEDULE.time(log_snr) + 1 / num_steps)
        return invert_ddim(z=z, z_next=flow(z, log_snr, following), log_snr=log_snr, log_snr_next=following)

    code = encode(encoder, x, schedule=SCHEDULE, times=uniform_times(num_steps), label=label, w=None)
    torch.testing.assert_close(code, noise[0], rtol=0, atol=1e-3)
    decoder = PERFECT["deterministic"](num_steps)
    again = sample(decoder, code, schedule=SCHEDULE, times=uniform_times(num_steps), label=label, w=None)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-3)


def test_the_guided_encoder_nears_the_exact_solution_with_order_one(make_mixture: MakeMixture) -> None:
    denoise, x = Guided(make_mixture().denoise, 3), 0.5 * whitened(64, 2).squeeze(2).T.contiguous()
    label, w = torch.arange(64) % 3, torch.full((64,), 1.0, dtype=torch.float64)
    ends = SCHEDULE.log_snr(torch.tensor([0.0, 1.0]))
    truth = integrate(denoise, x, log_snr=ends[0], log_snr_next=ends[1], num_steps=60, label=label, w=w)
    errors = [
        float((encode(denoise, x, schedule=SCHEDULE, times=uniform_times(n), label=label, w=w) - truth).abs().mean())
        for n in (16, 32, 64)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.4)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.3)


def test_fresh_noise_depends_on_seed_image_and_move_alone() -> None:
    whole = fresh_noise(3, 0, 5, (2,))
    parts = torch.cat([fresh_noise(3, 0, 2, (2,))(4), fresh_noise(3, 2, 3, (2,))(4)])
    assert torch.equal(whole(4), parts)
    assert not torch.equal(whole(4), whole(3))
    assert not torch.equal(whole(4), fresh_noise(4, 0, 5, (2,))(4))


def test_the_stochastic_move_is_a_double_jump_and_noise_back(make_mixture: MakeMixture) -> None:
    noise, label = whitened(6, 3).squeeze(2)[:2, :, None].expand(2, 6, 2).contiguous(), torch.arange(6) % 3
    denoise = make_mixture().denoise
    first, second = trajectory(
        denoise,
        noise[0],
        schedule=SCHEDULE,
        times=uniform_times(2),
        label=label,
        w=None,
        sampler=stochastic,
        fresh=lambda step: noise[step],
    )
    start, middle, end = (SCHEDULE.log_snr(torch.full((6,), t)) for t in (1.0, 0.5, 0.0))
    torch.testing.assert_close(first.log_snr, start)
    kept = alpha(middle) / alpha(end)
    added = (sigma(middle) ** 2 - (kept * sigma(end)) ** 2).sqrt()
    expected = kept[:, None] * ddim_step(first, end) + added[:, None] * noise[1]
    torch.testing.assert_close(second.z, expected, rtol=0, atol=1e-12)


UNEVEN = torch.tensor([1.0, 0.7, 0.65, 0.2], dtype=torch.float64)


def test_the_renoising_move_is_the_predicted_x_with_fresh_noise(make_mixture: MakeMixture) -> None:
    noise, label = whitened(12, 6).reshape(6, 6, 2), torch.arange(6) % 3
    drawn: list[int] = []

    def fresh(step: int) -> Tensor:
        drawn.append(step)
        return noise[step]

    def steps(times: Tensor, fresh: Callable[[int], Tensor]) -> list[Prediction]:
        return list(
            trajectory(
                make_mixture().denoise,
                noise[0],
                schedule=SCHEDULE,
                times=times,
                label=label,
                w=None,
                sampler=renoise,
                fresh=fresh,
            )
        )

    made = steps(UNEVEN, fresh)
    assert drawn == [1, 2, 3]
    for step in (1, 2, 3):
        log_snr = SCHEDULE.log_snr(UNEVEN[step : step + 1]).expand(6)
        torch.testing.assert_close(made[step].log_snr, log_snr)
        assert torch.equal(made[step].z, diffuse(x=made[step - 1].x, eps=noise[step], log_snr=log_snr).z)
    assert torch.equal(made[-1].x, steps(UNEVEN, lambda step: noise[step])[-1].x)
    assert not torch.equal(made[-1].x, steps(UNEVEN, lambda step: noise[step + 1])[-1].x)


def test_the_renoising_sampler_needs_noise_beyond_one_step(make_mixture: MakeMixture) -> None:
    def last(times: Tensor) -> Tensor:
        label = torch.zeros(COUNT).long()
        noise = whitened()[0]
        mixture = make_mixture(num_classes=1, dim=1)
        return sample(mixture.denoise, noise, schedule=SCHEDULE, times=times, label=label, w=None, sampler=renoise)

    assert torch.isfinite(last(UNEVEN[:1])).all()
    with pytest.raises(AssertionError, match="needs `fresh`"):
        last(UNEVEN)


class RectifiedFlow:
    """The log-SNR of z = (1 - t) x + t eps."""

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * ((1 - t.double()) / t.double()).log()

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


def biased_map(std: float, error: float) -> Denoise:
    """The consistency map of N(0, std^2), too small by a share of `error`."""

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        whole = ((alpha(log_snr) * std).square() + sigma(log_snr).square()).sqrt()
        return interpret("x", expand((1 - error) * std / whole, z) * z, z=z, log_snr=log_snr)

    return denoise


def std_error(denoise: Denoise, std: float, schedule: Schedule, times: Tensor, sampler: Sampler) -> float:
    """Relative error of the standard deviation of the samples."""
    noise, label = whitened(columns=len(times)), torch.zeros(COUNT, dtype=torch.long)
    x = sample(
        denoise,
        noise[0],
        schedule=schedule,
        times=times,
        label=label,
        w=None,
        sampler=sampler,
        fresh=lambda step: noise[step],
    )
    return float(x.std(correction=0)) / std - 1


LADDER = {1: -0.020, 2: -0.026, 4: -0.041, 8: -0.065, 16: -0.103, 32: -0.161}


@pytest.mark.parametrize("num_steps", LADDER)
def test_renoising_adds_up_the_error_of_a_consistency_map(num_steps: int) -> None:
    """A map 2 % too small, uniform times of rectified flow: the more steps, the worse, as AYF's theorem has it."""
    error = std_error(biased_map(0.7, 0.02), 0.7, RectifiedFlow(), uniform_times(num_steps), renoise)
    assert error == pytest.approx(LADDER[num_steps], abs=6e-4)


@pytest.mark.parametrize("num_steps", LADDER)
def test_a_flow_map_whose_error_is_in_proportion_to_its_jump_does_not_get_worse(num_steps: int) -> None:
    schedule = RectifiedFlow()

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        end = schedule.log_snr((schedule.time(log_snr) - 1 / num_steps).clamp(min=0))
        ratio = ((alpha(end) * 0.7).square() + sigma(end).square()).sqrt()
        ratio = ratio / ((alpha(log_snr) * 0.7).square() + sigma(log_snr).square()).sqrt()
        landed = expand((1 - 0.02 / num_steps) * ratio, z) * z
        return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=end)

    error = std_error(denoise, 0.7, schedule, uniform_times(num_steps), SAMPLERS["deterministic"])
    assert error == pytest.approx(-0.02, abs=3e-4)


@pytest.mark.parametrize("times", [UNEVEN, uniform_times(8)])
@pytest.mark.parametrize("error", [0.0, 0.02, -0.1])
def test_renoising_a_biased_map_follows_the_recursion_of_the_variance(times: Tensor, error: float) -> None:
    """Var x' = (1 - error)^2 std^2 (alpha^2 Var x + sigma^2) / (alpha^2 std^2 + sigma^2) at each level."""
    log_snr = SCHEDULE.log_snr(times)
    a, s = alpha(log_snr).square(), sigma(log_snr).square()
    variance, of_z = torch.tensor(STD**2), torch.ones(())
    for step in range(len(times)):
        of_z = torch.ones(()) if step == 0 else a[step] * variance + s[step]
        variance = (1 - error) ** 2 * STD**2 * of_z / (a[step] * STD**2 + s[step])
    made = std_error(biased_map(STD, error), STD, SCHEDULE, times, renoise)
    assert made == pytest.approx(float(variance.sqrt()) / STD - 1, abs=1e-9)


@pytest.mark.parametrize("name", FROM_NOISE)
def test_any_times_are_evaluated_in_their_order_and_no_others(make_mixture: MakeMixture, name: str) -> None:
    mixture, calls, noise = make_mixture(num_classes=1, dim=1), [], whitened()

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any = None) -> Prediction:
        calls.append(float(SCHEDULE.time(log_snr)[0]))
        return mixture.denoise(z, log_snr, label, w)

    label = torch.zeros(COUNT).long()
    x = sample(
        denoise,
        noise[0],
        schedule=SCHEDULE,
        times=UNEVEN,
        label=label,
        w=None,
        sampler=SAMPLERS[name],
        fresh=lambda step: noise[step],
    )
    assert calls == pytest.approx(UNEVEN.tolist())
    assert torch.isfinite(x).all()
    calls.clear()
    encode(denoise, x, schedule=SCHEDULE, times=UNEVEN, label=label, w=None)
    assert calls == pytest.approx([0, *UNEVEN[1:].flip(0).tolist()])


def test_encoding_ends_at_the_first_time() -> None:
    """Whether or not that is 1: the perfect encoder of uneven times lands where the flow is then."""
    noise, label = whitened(), torch.zeros(COUNT, dtype=torch.long)
    x, times = MEAN + STD * noise[0], UNEVEN[1:]
    following = dict(zip([0.0, *times.flip(0).tolist()], times.flip(0).tolist(), strict=False))

    def encoder(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        here = float(SCHEDULE.time(log_snr)[0])
        end = SCHEDULE.log_snr(torch.full_like(log_snr, next(s for t, s in following.items() if abs(t - here) < 1e-6)))
        return invert_ddim(z=z, z_next=flow(z, log_snr, end), log_snr=log_snr, log_snr_next=end)

    code = encode(encoder, x, schedule=SCHEDULE, times=times, label=label, w=None)
    ends = SCHEDULE.log_snr(torch.tensor([0.0, float(times[0])], dtype=torch.float64))
    torch.testing.assert_close(code, flow(x, ends[0].expand(COUNT), ends[1].expand(COUNT)), rtol=0, atol=1e-9)


def test_times_that_are_none_are_refused() -> None:
    noise, label = whitened()[0], torch.zeros(COUNT).long()
    rising, denoise = UNEVEN.flip(0), biased_map(STD, 0.0)
    with pytest.raises(ValueError, match="strictly decrease"):
        sample(denoise, noise, schedule=SCHEDULE, times=rising, label=label, w=None)
    with pytest.raises(ValueError, match="strictly decrease"):
        encode(denoise, noise, schedule=SCHEDULE, times=rising, label=label, w=None)


def test_one_ancestral_step_is_a_draw_of_ddpms_posterior() -> None:
    """Its mean and, at g, its deviation, times the noise; without a g it is that of Ho & Salimans, 0.3."""
    log_snr, following = (SCHEDULE.log_snr(torch.full((4,), t, dtype=torch.float64)) for t in (0.8, 0.5))
    x, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    noise = torch.randn(4, 3, dtype=torch.float64)
    prediction = diffuse(x=x, eps=eps, log_snr=log_snr)
    before, after = sigma(log_snr[0]) ** 2, sigma(following[0]) ** 2
    ratio = alpha(log_snr[0]) / alpha(following[0])  # z_t = ratio z_s + noise of the variance `added`
    added = before - ratio**2 * after
    mean = (after * ratio * prediction.z + added * alpha(following[0]) * x) / before
    low, high = (added * after / before).sqrt(), added.sqrt()  # low is the true posterior's, for a known x
    for g in (0.0, 0.3, 1.0):
        found = ancestral(prediction, following, following, lambda: noise, g)
        torch.testing.assert_close(found, mean + low ** (1 - g) * high**g * noise)
    default = ancestral(prediction, following, following, lambda: noise)
    assert torch.equal(default, ancestral(prediction, following, following, lambda: noise, 0.3))
