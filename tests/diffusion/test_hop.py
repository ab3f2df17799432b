from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise, Prediction, interpret
from fewstep.diffusion.sampler import ddim_step, invert_ddim
from fewstep.diffusion.schedule import CosineSchedule, alpha, angle, expand, sigma
from fewstep.diffusion.target import guided_target, progressive_target

MakeMixture = Callable[..., GaussianMixture]
SCHEDULE = CosineSchedule()
RUNGS = [1, 2, 4, 8, 64, 512, 1024]


def rung(num_steps: int, count: int = 64, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """z, and the log-SNR where a step of that rung begins, where its halves meet and where it ends."""
    generator = torch.Generator().manual_seed(num_steps)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64).to(dtype)
    step = torch.randint(1, num_steps + 1, (count,), generator=generator)
    step[:2] = torch.tensor([1, num_steps])  # both ends of time are among them
    t = step.double() / num_steps
    return z, SCHEDULE.log_snr(t), SCHEDULE.log_snr(t - 0.5 / num_steps), SCHEDULE.log_snr(t - 1 / num_steps)


def ask(teacher: Denoise, *where: Tensor, w: Tensor | None = None) -> Prediction:
    z, log_snr, mid, end = where
    label = torch.arange(len(z)) % 3
    return progressive_target(teacher=teacher, z=z, log_snr=log_snr, log_snr_mid=mid, log_snr_end=end, label=label, w=w)


def naive(teacher: Denoise, *where: Tensor, w: Tensor | None = None) -> Prediction:
    """The target as the papers write it: take the two steps, then invert."""
    z, log_snr, mid, end = where
    label = torch.arange(len(z)) % 3
    half = ddim_step(teacher(z, log_snr, label, w), mid)
    landed = ddim_step(teacher(half, mid, label, w), end)
    return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=end)


@pytest.mark.parametrize("num_steps", RUNGS)
def test_one_student_step_makes_the_teachers_two(make_mixture: MakeMixture, num_steps: int) -> None:
    teacher, where = Guided(make_mixture().denoise, 3), rung(num_steps)
    w = torch.linspace(0, 4, 64, dtype=torch.float64)
    target, expected = ask(teacher, *where, w=w), naive(teacher, *where, w=w)
    torch.testing.assert_close(target.v, expected.v, rtol=0, atol=1e-9)
    torch.testing.assert_close(ddim_step(target, where[3]), ddim_step(expected, where[3]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", RUNGS)
def test_equal_halves_give_the_half_angle_form(make_mixture: MakeMixture, num_steps: int) -> None:
    """v = (v1 + v2 / cos(d/2) - tan(d/2) z) / 2, facts/guided-distillation.md section 3."""
    mixture, (z, log_snr, mid, end) = make_mixture(), rung(num_steps)
    label = torch.arange(64) % 3
    first = mixture.denoise(z, log_snr, label)
    second = mixture.denoise(ddim_step(first, mid), mid, label)
    half = ((angle(log_snr) - angle(end)) / 2)[:, None]
    expected = (first.v + second.v / half.cos() - half.tan() * z) / 2
    torch.testing.assert_close(ask(mixture.denoise, z, log_snr, mid, end).v, expected, rtol=0, atol=1e-9)


def test_unequal_halves_work_too(make_mixture: MakeMixture) -> None:
    z = torch.randn(64, 2, dtype=torch.float64)
    times = [torch.full((64,), t) for t in (0.8, 0.7, 0.3)]
    where = (z, *(SCHEDULE.log_snr(t) for t in times))
    denoise = make_mixture().denoise
    torch.testing.assert_close(ask(denoise, *where).v, naive(denoise, *where).v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", RUNGS)
def test_a_point_mass_is_its_own_target(num_steps: int) -> None:
    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return interpret("x", torch.full_like(z, 0.3), z=z, log_snr=log_snr)

    z, log_snr, mid, end = rung(num_steps)
    own = teacher(z, log_snr, torch.zeros(64, dtype=torch.long), None)
    torch.testing.assert_close(ask(teacher, z, log_snr, mid, end).v, own.v, rtol=0, atol=1e-9)


def exact_flow(num_steps: int, std: float = 0.4) -> Denoise:
    """The perfect N-step model of N(0, std^2): its DDIM step follows the probability flow, in closed form."""

    def deviation(log_snr: Tensor, z: Tensor) -> Tensor:
        return expand(((alpha(log_snr) * std).square() + sigma(log_snr).square()).sqrt(), z)

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        following = SCHEDULE.log_snr(SCHEDULE.time(log_snr) - 1 / num_steps)
        landed = deviation(following, z) / deviation(log_snr, z) * z
        return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=following)

    return denoise


@pytest.mark.parametrize("num_steps", RUNGS)
def test_a_perfect_student_has_no_error(num_steps: int) -> None:
    z, log_snr, mid, end = rung(num_steps)
    student = exact_flow(num_steps)(z, log_snr, torch.zeros(64, dtype=torch.long), None)
    target = ask(exact_flow(2 * num_steps), z, log_snr, mid, end)
    torch.testing.assert_close(target.v, student.v, rtol=0, atol=1e-9)


def smooth(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
    """A teacher whose v is as accurate as its dtype allows, so that all other error is the target's own."""
    turn = torch.tensor([[0.6, -0.3], [0.5, 0.8]], dtype=torch.float64)
    v = torch.tanh(z.double() @ turn + angle(log_snr)[:, None])
    return Prediction(z=z, v=v.to(z.dtype), log_snr=log_snr)


def test_float32_costs_the_same_on_every_rung_unlike_the_inversion() -> None:
    ours, inverted = [], []
    for num_steps in RUNGS:
        z, *where = rung(num_steps, count=2000, dtype=torch.float32)
        truth = naive(smooth, z.double(), *where).v
        ours.append(float((ask(smooth, z, *where).v - truth).square().mean().sqrt()))
        inverted.append(float((naive(smooth, z, *where).v - truth).square().mean().sqrt()))
    assert max(ours) < 2e-7, ours
    assert inverted[-1] > 100 * ours[-1], inverted
    assert inverted[-1] > 50 * inverted[2], inverted


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_guided_target_is_the_closed_form(make_mixture: MakeMixture, dim: int) -> None:
    mixture, label = make_mixture(dim=dim), torch.arange(16) % 3
    z, w = torch.randn(16, dim, dtype=torch.float64), torch.linspace(0, 4, 16, dtype=torch.float64)
    log_snr = SCHEDULE.log_snr(torch.linspace(0.02, 1, 16))
    target = guided_target(teacher=Guided(mixture.denoise, 3), z=z, log_snr=log_snr, label=label, w=w)
    conditional = mixture.denoise(z, log_snr, label).x
    unconditional = mixture.denoise(z, log_snr, torch.full_like(label, 3)).x
    torch.testing.assert_close(target.x, (1 + w[:, None]) * conditional - w[:, None] * unconditional)


def test_no_gradient_reaches_a_teacher() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return Prediction(z=z, v=weight * z, log_snr=log_snr)

    z, log_snr, mid, end = rung(4)
    assert not ask(teacher, z, log_snr, mid, end).v.requires_grad
    guided = guided_target(teacher=teacher, z=z, log_snr=log_snr, label=torch.zeros(64).long(), w=torch.zeros(64))
    assert not guided.v.requires_grad
