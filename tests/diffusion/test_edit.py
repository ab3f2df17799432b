"""The tasks on exact teachers: one Gaussian a class, where every answer has a closed form, and a mixture."""

from collections.abc import Callable
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.diffusion.edit import edit, inpaint, slerp, steps_for, transfer
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise, Prediction, interpret
from fewstep.diffusion.sampler import encode, renoise, sample
from fewstep.diffusion.schedule import CosineSchedule, alpha, sigma, uniform_times

MakeMixture = Callable[..., GaussianMixture]
SCHEDULE = CosineSchedule()
MEANS = torch.tensor([[-0.6, 0.2], [0.5, -0.3], [0.1, 0.7]], dtype=torch.float64)
STDS = torch.tensor([[0.3, 0.2], [0.1, 0.4], [0.25, 0.15]], dtype=torch.float64)
GAUSSIANS = GaussianMixture(MEANS, STDS, torch.full((3,), 1 / 3, dtype=torch.float64), torch.arange(3))


def noise(count: int, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(t: float) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the schedule at t."""
    log_snr = SCHEDULE.log_snr(torch.tensor(t))
    return alpha(log_snr), sigma(log_snr)


def asked(denoise: Denoise) -> tuple[Denoise, list[float]]:
    """The denoiser, and the times at which it is asked."""
    times: list[float] = []

    def ask(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        times.append(round(float(SCHEDULE.time(log_snr)[0]), 6))
        return denoise(z, log_snr, label, w)

    return ask, times


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75])
def test_an_edit_follows_the_gaussian_flow_from_the_noised_source(strength: float) -> None:
    x, eps, label = noise(64), noise(64, seed=1), torch.arange(64) % 3
    edited = edit(
        GAUSSIANS.denoise, x, eps, schedule=SCHEDULE, times=uniform_times(512), strength=strength, label=label, w=None
    )
    a, s = at(strength)
    deviation = ((a * STDS[label]).square() + s.square()).sqrt()
    expected = MEANS[label] + STDS[label] / deviation * (a * x + s * eps - a * MEANS[label])
    torch.testing.assert_close(edited, expected, rtol=0, atol=0.01)


def test_strength_zero_is_the_source_and_strength_one_is_sampling(make_mixture: MakeMixture) -> None:
    denoise, label = Guided(make_mixture().denoise, 3), torch.arange(8) % 3
    x, eps, w = 3 * noise(8), noise(8, seed=1), torch.full((8,), 2.0, dtype=torch.float64)

    def at_strength(strength: float) -> Tensor:
        return edit(denoise, x, eps, schedule=SCHEDULE, times=uniform_times(4), strength=strength, label=label, w=w)

    assert torch.equal(at_strength(0.0), x)
    assert torch.equal(
        at_strength(1.0), sample(denoise, eps, schedule=SCHEDULE, times=uniform_times(4), label=label, w=w)
    )
    distance = [float((at_strength(strength) - x).square().mean()) for strength in (0.25, 0.5, 0.75, 1.0)]
    assert distance == sorted(distance), "a stronger edit keeps less of the source"


@pytest.mark.parametrize(
    ("strength", "num_steps", "times"),
    [(0.5, 4, [0.5, 0.25]), (0.75, 4, [0.75, 0.5, 0.25]), (0.6, 4, [0.5, 0.25]), (0.5, 3, [0.666667, 0.333333])],
)
def test_an_edit_is_asked_in_the_times_of_the_n_step_sampler(
    strength: float, num_steps: int, times: list[float]
) -> None:
    denoise, seen = asked(GAUSSIANS.denoise)
    label = torch.zeros(2).long()
    edit(
        denoise,
        noise(2),
        noise(2),
        schedule=SCHEDULE,
        times=uniform_times(num_steps),
        strength=strength,
        label=label,
        w=None,
    )
    assert seen == times
    assert steps_for(strength, uniform_times(num_steps)) == len(times) == floor(strength * num_steps + 0.5)


@pytest.mark.parametrize(
    ("strength", "steps"),
    [(0.0, 0), (0.04, 0), (0.05, 1), (0.2, 1), (0.34, 1), (0.36, 2), (0.9, 3), (1.0, 3)],
)
def test_an_edit_starts_at_the_level_nearest_to_its_strength(strength: float, steps: int) -> None:
    assert steps_for(strength, torch.tensor([1.0, 0.6, 0.1])) == steps


@given(num_steps=st.integers(1, 64), strength=st.floats(0, 1))
def test_of_uniform_times_it_is_the_rounded_share(num_steps: int, strength: float) -> None:
    if abs(strength * num_steps % 1 - 0.5) > 1e-6:
        assert steps_for(strength, uniform_times(num_steps)) == round(strength * num_steps)


@pytest.mark.parametrize(
    ("strength", "num_steps", "rule"),
    [
        (-0.1, 4, r"strength must be in \[0, 1\]"),
        (1.1, 4, r"strength must be in \[0, 1\]"),
        (float("nan"), 4, r"strength must be in \[0, 1\]"),
        (0.5, 0, "at least one of them"),
    ],
)
def test_other_strengths_are_refused(strength: float, num_steps: int, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        steps_for(strength, torch.arange(num_steps, 0, -1) / 4)


def test_inpainting_keeps_the_known_part_bit_for_bit_and_samples_the_rest() -> None:
    """Where one coordinate says nothing of the other, the missing one is what sampling makes of its noise."""
    x, eps, label = 2 * noise(64), noise(64, seed=1), torch.arange(64) % 3
    missing = torch.tensor([False, True]).expand(64, 2)
    filled = inpaint(GAUSSIANS.denoise, x, missing, eps, schedule=SCHEDULE, times=uniform_times(4), label=label, w=None)
    sampled = sample(GAUSSIANS.denoise, eps, schedule=SCHEDULE, times=uniform_times(4), label=label, w=None)
    assert torch.equal(filled[:, 0], x[:, 0])
    torch.testing.assert_close(filled[:, 1], sampled[:, 1], rtol=0, atol=1e-9)


def test_inpainting_with_all_missing_is_sampling_and_with_none_the_source(make_mixture: MakeMixture) -> None:
    mixture, label, x, eps = make_mixture(), torch.arange(8) % 3, noise(8), noise(8, seed=1)

    def fill(missing: Tensor) -> Tensor:
        return inpaint(mixture.denoise, x, missing, eps, schedule=SCHEDULE, times=uniform_times(4), label=label, w=None)

    sampled = sample(mixture.denoise, eps, schedule=SCHEDULE, times=uniform_times(4), label=label, w=None)
    torch.testing.assert_close(fill(torch.ones(8, 2).bool()), sampled, rtol=0, atol=1e-9)
    assert torch.equal(fill(torch.zeros(8, 2).bool()), x)


def test_every_step_of_inpainting_sees_the_known_part_noised() -> None:
    x, eps, missing = noise(4), noise(4, seed=1), torch.tensor([False, True]).expand(4, 2)
    seen = []

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        a, s = alpha(log_snr)[:, None], sigma(log_snr)[:, None]
        seen.append((z - (a * x + s * eps))[:, 0].abs().max())
        return GAUSSIANS.denoise(z, log_snr, label, w)

    inpaint(denoise, x, missing, eps, schedule=SCHEDULE, times=uniform_times(4), label=torch.zeros(4).long(), w=None)
    assert len(seen) == 4
    assert max(map(float, seen)) < 1e-12


def test_inpainting_uses_what_is_known() -> None:
    """One class of two far points: the known coordinate says which, and the missing one follows (by chance: half).

    Not always, with any number of steps: what is replaced tells the first steps, deep in noise, next to nothing.
    """
    means = torch.tensor([[-0.8, -0.8], [0.8, 0.8]], dtype=torch.float64)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    pair = GaussianMixture(means, torch.full_like(means, 0.1), half, torch.zeros(2).long())
    label = torch.zeros(512).long()
    x = pair.draw(label, torch.Generator().manual_seed(0))
    missing = torch.tensor([False, True]).expand(512, 2)
    start = noise(512, seed=1)
    right = [
        float(
            (
                inpaint(
                    pair.denoise, x, missing, start, schedule=SCHEDULE, times=uniform_times(n), label=label, w=None
                ).prod(1)
                > 0
            )
            .double()
            .mean()
        )
        for n in (4, 16, 64)
    ]
    assert min(right) > 0.75, right


def to_the_end(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
    """An exact consistency model of the Gaussians: x is where the flow from z ends."""
    a, s = alpha(log_snr)[:, None], sigma(log_snr)[:, None]
    deviation = ((a * STDS[label]).square() + s.square()).sqrt()
    return interpret("x", MEANS[label] + STDS[label] / deviation * (z - a * MEANS[label]), z=z, log_snr=log_snr)


def test_students_that_go_to_the_end_edit_and_fill_in_by_noising_afresh() -> None:
    """Their samples keep the data's distribution from step to step with `renoise`, and not with DDIM."""
    label = torch.arange(30_000) % 3
    x = GAUSSIANS.draw(label, torch.Generator().manual_seed(0))
    eps, times = noise(len(x), seed=1), torch.tensor([1.0, 0.6, 0.3])

    def fresh(step: int) -> Tensor:
        return noise(len(x), seed=1 + step)

    def error(made: Tensor) -> float:
        """The largest deviation, relative to the data's, of a class's mean or standard deviation."""
        own = [made[label == number] for number in range(3)]
        means = torch.stack([(part.mean(0) - MEANS[n]) / STDS[n] for n, part in enumerate(own)])
        stds = torch.stack([part.std(0) / STDS[n] - 1 for n, part in enumerate(own)])
        return float(torch.cat([means, stds]).abs().max())

    for strength in (1 / 3, 2 / 3, 1.0):
        edited = edit(
            to_the_end,
            x,
            eps,
            schedule=SCHEDULE,
            times=times,
            strength=strength,
            label=label,
            w=None,
            sampler=renoise,
            fresh=fresh,
        )
        assert error(edited) < 0.03
    missing = torch.tensor([False, True]).expand_as(x)
    given = {"schedule": SCHEDULE, "times": times, "label": label, "w": None}
    filled = inpaint(to_the_end, x, missing, eps, **given, sampler=renoise, fresh=fresh)
    assert torch.equal(filled[:, 0], x[:, 0])
    assert error(filled) < 0.03
    assert error(inpaint(to_the_end, x, missing, eps, **given)) > 0.1


def closed_form_transfer(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The flow of a Gaussian keeps the number of standard deviations, so a transfer does."""
    return MEANS[target] + STDS[target] / STDS[source] * (x - MEANS[source])


def moved(x: Tensor, source: Tensor, target: Tensor, num_steps: int) -> Tensor:
    return transfer(
        GAUSSIANS.denoise,
        x,
        encoder=GAUSSIANS.denoise,
        schedule=SCHEDULE,
        times=uniform_times(num_steps),
        encode_times=uniform_times(num_steps),
        source=source,
        target=target,
        w=None,
        encode_w=None,
    )


def test_transfer_maps_class_to_class_as_the_closed_form_does() -> None:
    source, target = torch.arange(96) % 3, (torch.arange(96) // 3) % 3
    x = GAUSSIANS.draw(source, torch.Generator().manual_seed(0))
    expected = closed_form_transfer(x, source, target)
    errors = [float((moved(x, source, target, n) - expected).abs().max()) for n in (64, 128, 256)]
    assert errors[-1] < 0.03, errors
    assert errors[0] > 1.7 * errors[1] > 1.7 * 1.7 * errors[2], errors  # order one


def test_transfer_to_itself_is_the_cycle_and_converges_to_the_source(make_mixture: MakeMixture) -> None:
    mixture, label = make_mixture(), torch.arange(32) % 3
    x = mixture.draw(label, torch.Generator().manual_seed(0))
    denoise, w = Guided(mixture.denoise, 3), torch.full((32,), 1.0, dtype=torch.float64)

    def error(num_steps: int) -> float:
        back = transfer(
            denoise,
            x,
            encoder=denoise,
            schedule=SCHEDULE,
            times=uniform_times(num_steps),
            encode_times=uniform_times(num_steps),
            source=label,
            target=label,
            w=w,
            encode_w=w,
        )
        return float((back - x).square().mean().sqrt())

    few, many = error(16), error(256)
    assert many < 0.02
    assert few > 8 * many


def test_transfer_encodes_with_the_encoder_and_the_source_alone() -> None:
    """Each of its two models is asked once a step, in its own times, with its own condition and w."""
    calls: list[tuple[str, float, int, float]] = []

    def named(name: str) -> Denoise:
        def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
            assert w is not None
            calls.append((name, round(float(SCHEDULE.time(log_snr)[0]), 6), int(label[0]), float(w[0])))
            return GAUSSIANS.denoise(z, log_snr, label, None)

        return denoise

    transfer(
        named("decoder"),
        noise(2),
        encoder=named("encoder"),
        schedule=SCHEDULE,
        times=uniform_times(2),
        encode_times=uniform_times(4),
        source=torch.tensor([0, 0]),
        target=torch.tensor([1, 1]),
        w=torch.tensor([2.0, 2.0]),
        encode_w=torch.tensor([0.0, 0.0]),
    )
    encoding = [("encoder", t, 0, 0.0) for t in (0.0, 0.25, 0.5, 0.75)]
    assert calls == [*encoding, ("decoder", 1.0, 1, 2.0), ("decoder", 0.5, 1, 2.0)]


def test_the_ends_of_a_blend_are_the_encodings(make_mixture: MakeMixture) -> None:
    mixture, label = make_mixture(), torch.arange(4) % 3
    first, second = (
        encode(mixture.denoise, noise(4, seed=seed), schedule=SCHEDULE, times=uniform_times(16), label=label, w=None)
        for seed in (0, 1)
    )
    torch.testing.assert_close(slerp(first, second, torch.zeros(4)), first, rtol=0, atol=1e-12)
    torch.testing.assert_close(slerp(first, second, torch.ones(4)), second, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 10_000), fraction=st.floats(0, 1), dim=st.integers(2, 40), norm=st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_slerp_keeps_the_norm_and_turns_evenly(seed: int, fraction: float, dim: int, norm: float) -> None:
    a, b = noise(3, dim, seed), noise(3, dim, seed + 1)
    a, b = (norm * v / v.norm(dim=1, keepdim=True) for v in (a, b))
    between = slerp(a, b, torch.full((3,), fraction, dtype=torch.float64))
    torch.testing.assert_close(between.norm(dim=1), torch.full((3,), norm, dtype=torch.float64), rtol=1e-9, atol=0)
    whole = torch.acos(((a * b).sum(1) / norm**2).clamp(-1, 1))
    part = torch.acos(((a * between).sum(1) / norm**2).clamp(-1, 1))
    torch.testing.assert_close(part, fraction * whole, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1 + 1e-13, -1.0])
def test_slerp_of_what_is_parallel_or_opposite_stays_finite(scale: float) -> None:
    a = noise(3, 5)
    between = slerp(a, scale * a, torch.full((3,), 0.25))
    assert torch.isfinite(between).all()
    if scale > 0:
        torch.testing.assert_close(between, a, rtol=0, atol=1e-9)


def test_slerp_of_opposites_stays_on_their_line_and_reaches_both() -> None:
    a = noise(3, 5)
    fractions = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64)
    for fraction, sign in zip(fractions, (1, 1, -1, -1), strict=True):
        torch.testing.assert_close(slerp(a, -a, fraction.expand(3)), sign * a)


def test_slerp_keeps_dtype_shape_and_blends_norms() -> None:
    a, b = torch.randn(2, 1, 4, 4), 3 * torch.randn(2, 1, 4, 4)
    between = slerp(a, b, torch.tensor([0.5, 0.5]))
    assert (between.dtype, between.shape) == (a.dtype, a.shape)
    norms = [v.flatten(1).norm(dim=1) for v in (a, between, b)]
    torch.testing.assert_close(norms[1], (norms[0] + norms[2]) / 2)


UNEVEN = torch.tensor([0.9, 0.5, 0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize(
    ("strength", "times"), [(0.24, [0.2]), (0.35, [0.3, 0.2]), (0.5, [0.5, 0.3, 0.2]), (1.0, [0.9, 0.5, 0.3, 0.2])]
)
def test_an_edit_takes_the_given_times_from_the_nearest_on(strength: float, times: list[float]) -> None:
    """Only at t = 1 there is nothing of the source left."""
    starts: list[Tensor] = []
    denoise, seen = asked(GAUSSIANS.denoise)

    def started(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        starts.append(z)
        return denoise(z, log_snr, label, w)

    x, eps, label = noise(4), noise(4, seed=1), torch.zeros(4).long()
    edit(started, x, eps, schedule=SCHEDULE, times=UNEVEN, strength=strength, label=label, w=None)
    assert seen == times
    log_snr = SCHEDULE.log_snr(UNEVEN[-len(times)])
    a, s = alpha(log_snr), sigma(log_snr)
    torch.testing.assert_close(starts[0], a * x + s * eps, rtol=0, atol=1e-12)


def test_inpainting_and_transfer_follow_the_given_times() -> None:
    denoise, seen = asked(GAUSSIANS.denoise)
    x, eps, label, missing = noise(4), noise(4, seed=1), torch.zeros(4).long(), torch.ones(4, 2).bool()
    inpaint(denoise, x, missing, eps, schedule=SCHEDULE, times=UNEVEN, label=label, w=None)
    assert seen == UNEVEN.tolist()
    seen.clear()
    transfer(
        denoise,
        x,
        encoder=denoise,
        schedule=SCHEDULE,
        times=UNEVEN,
        encode_times=UNEVEN[:2],
        source=label,
        target=label,
        w=None,
        encode_w=None,
    )
    assert seen == [0.0, 0.5, *UNEVEN.tolist()]
