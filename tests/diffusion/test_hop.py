"""The two-hop identity: against the inversion of its two steps, and the fixed points of the methods made of it."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.hop import two_hop
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise, Prediction, diffuse, interpret
from fewstep.diffusion.sampler import ddim_step, integrate, invert_ddim
from fewstep.diffusion.schedule import CosineSchedule, Schedule, alpha, angle, expand, sigma

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


def progressive(teacher: Denoise, *where: Tensor, w: Tensor | None = None) -> Prediction:
    """Progressive distillation: both hops are the teacher's."""
    z, log_snr, mid, end = where
    label = torch.arange(len(z)) % 3
    first = teacher(z, log_snr, label, w)
    return two_hop(first=first, second=teacher, log_snr_mid=mid, log_snr_end=end, label=label, w=w)


def naive(teacher: Denoise, *where: Tensor, w: Tensor | None = None) -> Prediction:
    """The same as the papers write it: take the two steps, then invert."""
    z, log_snr, mid, end = where
    label = torch.arange(len(z)) % 3
    half = ddim_step(teacher(z, log_snr, label, w), mid)
    landed = ddim_step(teacher(half, mid, label, w), end)
    return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=end)


@pytest.mark.parametrize("num_steps", RUNGS)
def test_one_student_step_makes_the_teachers_two(make_mixture: MakeMixture, num_steps: int) -> None:
    teacher, where = Guided(make_mixture().denoise, 3), rung(num_steps)
    w = torch.linspace(0, 4, 64, dtype=torch.float64)
    target, expected = progressive(teacher, *where, w=w), naive(teacher, *where, w=w)
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
    torch.testing.assert_close(progressive(mixture.denoise, z, log_snr, mid, end).v, expected, rtol=0, atol=1e-9)


def test_unequal_halves_work_too(make_mixture: MakeMixture) -> None:
    z = torch.randn(64, 2, dtype=torch.float64)
    times = [torch.full((64,), t) for t in (0.8, 0.7, 0.3)]
    where = (z, *(SCHEDULE.log_snr(t) for t in times))
    denoise = make_mixture().denoise
    torch.testing.assert_close(progressive(denoise, *where).v, naive(denoise, *where).v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", RUNGS)
def test_a_point_mass_is_its_own_target(num_steps: int) -> None:
    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return interpret("x", torch.full_like(z, 0.3), z=z, log_snr=log_snr)

    z, log_snr, mid, end = rung(num_steps)
    own = teacher(z, log_snr, torch.zeros(64, dtype=torch.long), None)
    torch.testing.assert_close(progressive(teacher, z, log_snr, mid, end).v, own.v, rtol=0, atol=1e-9)


STD = 0.4


def flow(z: Tensor, log_snr: Tensor, log_snr_next: Tensor) -> Tensor:
    """Where the probability flow of N(0, STD^2) takes z."""

    def deviation(log_snr: Tensor) -> Tensor:
        return expand(((alpha(log_snr) * STD).square() + sigma(log_snr).square()).sqrt(), z)

    return deviation(log_snr_next) / deviation(log_snr) * z


def gaussian(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
    """The exact denoiser of N(0, STD^2)."""
    a, s = alpha(log_snr), sigma(log_snr)
    x = expand(a * STD**2 / ((a * STD).square() + s.square()), z) * z
    return interpret("x", x, z=z, log_snr=log_snr)


def flow_to(end: Tensor) -> Denoise:
    """The perfect model of N(0, STD^2) that goes to `end` from anywhere: its DDIM step there follows the flow."""

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return invert_ddim(z=z, z_next=flow(z, log_snr, end), log_snr=log_snr, log_snr_next=end)

    return denoise


def exact_flow(num_steps: int) -> Denoise:
    """The perfect N-step model of N(0, STD^2)."""

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        following = SCHEDULE.log_snr(SCHEDULE.time(log_snr) - 1 / num_steps)
        return flow_to(following)(z, log_snr, label, w)

    return denoise


@pytest.mark.parametrize("num_steps", RUNGS)
def test_a_perfect_student_has_no_error(num_steps: int) -> None:
    z, log_snr, mid, end = rung(num_steps)
    student = exact_flow(num_steps)(z, log_snr, torch.zeros(64, dtype=torch.long), None)
    target = progressive(exact_flow(2 * num_steps), z, log_snr, mid, end)
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
        ours.append(float((progressive(smooth, z, *where).v - truth).square().mean().sqrt()))
        inverted.append(float((naive(smooth, z, *where).v - truth).square().mean().sqrt()))
    assert max(ours) < 2e-7, ours
    assert inverted[-1] > 100 * ours[-1], inverted
    assert inverted[-1] > 50 * inverted[2], inverted


def at(t: Tensor | float, schedule: Schedule = SCHEDULE) -> Tensor:
    return schedule.log_snr(torch.as_tensor(t, dtype=torch.float64))


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_any_three_times_agree_with_the_inversion(make_mixture: MakeMixture) -> None:
    """t > u > s at least 1/200 apart, from noise to data, each example with its own."""
    count = 4000
    gaps = torch.rand(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.01
    t, u, s, _ = (gaps / gaps.sum(1, keepdim=True)).cumsum(1).flip(1).T[[1, 2, 3, 0]]
    t[:100], s[100:200] = 1, 0
    assert float(torch.minimum(t - u, u - s).min()) > 1 / 500
    where = (noise(count), at(t), at(u), at(s))
    teacher, w = Guided(make_mixture().denoise, 3), torch.linspace(0, 4, count, dtype=torch.float64)
    target, expected = progressive(teacher, *where, w=w), naive(teacher, *where, w=w)
    torch.testing.assert_close(target.v, expected.v, rtol=0, atol=1e-11)
    torch.testing.assert_close(target.x, expected.x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_second_hop_has_no_length_the_first_prediction_is_the_result(dtype: torch.dtype) -> None:
    z, log_snr, mid, end = rung(8, dtype=dtype)
    none = torch.arange(64) % 2 == 0
    end = torch.where(none, mid, end)
    label, batches = torch.arange(64) % 3, []

    def second(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        batches.append(len(z))
        return smooth(z, log_snr, label, w)

    first = smooth(z, log_snr, label, None)
    target = two_hop(first=first, second=second, log_snr_mid=mid, log_snr_end=end, label=label, w=None)
    assert torch.equal(target.v[none], first.v[none])
    assert not bool((target.v[~none] == first.v[~none]).any())
    assert batches == [64]


def grouped(num_groups: int, hop: float, count: int = 64) -> tuple[Tensor, ...]:
    """z and the log-SNR at t, u = t - hop and s, for the groups of TRACT: s is the end of the group of t."""
    group = torch.arange(count) % num_groups
    inside = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s = group.double() / num_groups
    t = s + (0.5 + 0.5 * inside) / num_groups
    t[-num_groups:] = s[-num_groups:] + 1 / num_groups
    return noise(count), at(t), at(t - hop), at(s)


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_tract_reproduces_the_exact_flow_from_exact_hops(num_groups: int) -> None:
    z, log_snr, mid, end = grouped(num_groups, hop=0.01)
    label, student = torch.zeros(64).long(), flow_to(end)
    first = flow_to(mid)(z, log_snr, label, None)
    target = two_hop(first=first, second=student, log_snr_mid=mid, log_snr_end=end, label=label, w=None)
    torch.testing.assert_close(target.v, student(z, log_snr, label, None).v, rtol=0, atol=1e-12)


def test_tract_nears_the_exact_flow_with_the_square_of_the_teachers_hop() -> None:
    errors = []
    for hop in (0.04, 0.02, 0.01, 0.005):
        z, log_snr, mid, end = grouped(2, hop)
        label, student = torch.zeros(64).long(), flow_to(end)
        first = gaussian(z, log_snr, label, None)
        target = two_hop(first=first, second=student, log_snr_mid=mid, log_snr_end=end, label=label, w=None)
        errors.append(float((target.v - student(z, log_snr, label, None).v).abs().mean()))
    assert all(before / after == pytest.approx(4, rel=0.1) for before, after in pairwise(errors)), errors


def test_tract_reproduces_the_exact_flow_of_the_guided_mixture(make_mixture: MakeMixture) -> None:
    mixture = Guided(make_mixture().denoise, 3)
    z, label, w = noise(8), torch.arange(8) % 3, torch.linspace(0, 3, 8, dtype=torch.float64)
    t, u, s = (at(t).expand(8) for t in (0.6, 0.5, 0.3))

    def solved_to(end: Tensor) -> Denoise:
        def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
            landed = integrate(mixture, z, log_snr=log_snr[0], log_snr_next=end[0], num_steps=150, label=label, w=w)
            return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=end)

        return denoise

    first = solved_to(u)(z, t, label, w)
    target = two_hop(first=first, second=solved_to(s), log_snr_mid=u, log_snr_end=s, label=label, w=w)
    torch.testing.assert_close(target.v, solved_to(s)(z, t, label, w).v, rtol=0, atol=1e-8)


@pytest.mark.parametrize("log_snr_max", [20.0, 50.0])
@pytest.mark.parametrize("data", [False, True])
def test_consistency_targets_are_the_self_teachers_x_up_to_the_noise_left_at_zero(
    make_mixture: MakeMixture, data: bool, log_snr_max: float
) -> None:
    """s = 0: consistency distillation by the teacher's hop, consistency training by the data's."""
    schedule = CosineSchedule(-20.0, log_snr_max)
    mixture, label, seen = make_mixture(), torch.arange(64) % 3, []
    t = torch.linspace(0.2, 1, 64, dtype=torch.float64)
    start, middle, end = (at(time, schedule) for time in (t, t - 0.1, torch.zeros(64)))
    x, eps = mixture.draw(label, torch.Generator().manual_seed(0)), noise(64)
    noised = diffuse(x=x, eps=eps, log_snr=start)
    first = noised if data else mixture.denoise(noised.z, start, label)

    def self_teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        seen.append(mixture.denoise(z, log_snr, label))
        return seen[-1]

    target = two_hop(first=first, second=self_teacher, log_snr_mid=middle, log_snr_end=end, label=label, w=None)
    assert float((target.x - seen[0].x).abs().max()) < 20 * float(sigma(end[0]))
    if data:
        torch.testing.assert_close(seen[0].z, diffuse(x=x, eps=eps, log_snr=middle).z, rtol=0, atol=1e-12)


def test_consistency_training_is_consistency_distillation_on_average() -> None:
    """With an affine self-teacher the mean over p(x | z) of the data's hops is the hop of E[x | z]."""
    z, (start, middle, end) = noise(64), (at(t).expand(64) for t in (0.7, 0.6, 0.0))
    label, own = torch.zeros(64).long(), flow_to(end)
    teacher = gaussian(z, start, label, None)

    def target(first: Prediction) -> Tensor:
        return two_hop(first=first, second=own, log_snr_mid=middle, log_snr_end=end, label=label, w=None).v

    offset = noise(64, seed=1)
    draws = [interpret("x", teacher.x + sign * offset, z=z, log_snr=start) for sign in (-1, 1)]
    mean = sum(target(truth) for truth in draws) / 2
    torch.testing.assert_close(mean, target(teacher), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_fold_makes_one_step_of_many(make_mixture: MakeMixture, count: int) -> None:
    """Repeated with the fold of the steps before as the first hop, SFDDM-style."""
    teacher, z, label = Guided(make_mixture().denoise, 3), noise(64), torch.arange(64) % 3
    w = torch.linspace(0, 4, 64, dtype=torch.float64)
    levels = [at(t).expand(64) for t in torch.linspace(0.9, 0.4, count + 1, dtype=torch.float64)]
    folded = teacher(z, levels[0], label, w)
    for mid, end in pairwise(levels[1:]):
        folded = two_hop(first=folded, second=teacher, log_snr_mid=mid, log_snr_end=end, label=label, w=w)
    landed = z
    for here, following in pairwise(levels):
        landed = ddim_step(teacher(landed, here, label, w), following)
    expected = invert_ddim(z=z, z_next=landed, log_snr=levels[0], log_snr_next=levels[-1])
    torch.testing.assert_close(folded.v, expected.v, rtol=0, atol=1e-12)


def test_no_gradient_reaches_a_teacher() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return Prediction(z=z, v=weight * z, log_snr=log_snr)

    z, log_snr, mid, end = rung(4)
    assert not progressive(teacher, z, log_snr, mid, end).v.requires_grad
