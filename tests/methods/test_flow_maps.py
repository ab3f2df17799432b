"""Flow maps and what is trained by derivatives, on Gaussians, whose guided flow has a closed form."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_methods import NULL, NUM_CLASSES, SCHEDULE, Nothing, gaussian, small
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.flow_map import mean_velocity, start_derivative
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.sampler import END, SAMPLERS, ddim_step, invert_ddim, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import alpha, angle, expand, sigma, uniform_times
from fewstep.methods import GuidanceRange, Networks
from fewstep.methods.derivative import along_the_flow
from fewstep.methods.draws import Draws
from fewstep.methods.freeflow import FAKE
from fewstep.methods.scm import WEIGHTING, Weighting, consistency_tangent
from fewstep.networks import Denoiser

W = GuidanceRange(0.0, 2.0)
STDS = (0.4, 0.7)  # of `gaussian`, with a class and without
teacher = Guided(gaussian, NULL)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """All random numbers in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


pytestmark = pytest.mark.usefixtures("unchecked")


def ratio(log_snr: Tensor, log_snr_end: Tensor, w: Tensor) -> Tensor:
    """Of z at the end of the guided flow to z at its start: v is linear in z, so the deviations' ratios multiply."""

    def deviation(at: Tensor, std: float) -> Tensor:
        return ((alpha(at) * std) ** 2 + sigma(at) ** 2).sqrt()

    (now, now_null), (then, then_null) = ([deviation(at, std) for std in STDS] for at in (log_snr, log_snr_end))
    return (then / now) ** (1 + w) * (then_null / now_null) ** -w


class ExactMap(Denoiser):
    """The exact flow map of the guided Gaussians, to the end that it is told, or to t = 0; `off` is added to F.

    Where the step has no length F is the teacher's v.
    """

    def __init__(self, *, off: float = 0.0, end_input: bool = True) -> None:
        network = Nothing(guidance_input=True, off=off)
        network.arguments |= {"extra_inputs": [END] if end_input else []}
        super().__init__(network)

    def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
        assert w is not None
        psi = extra[END] * torch.pi / 2 if extra else angle(SCHEDULE.log_snr(torch.zeros_like(log_snr)))
        end = -2 * psi.tan().log()
        d = expand(angle(log_snr) - psi, z)
        moved = (torch.cos(d) * z - expand(ratio(log_snr, end, w), z) * z) / torch.where(d.abs() < 1e-9, 1.0, d).sin()
        v = torch.where(d.abs() < 1e-9, teacher(z, log_snr, label, w).v, moved)
        return Prediction(z=z, v=v + self.network.off, log_snr=log_snr)


def losses(
    name: str, student: Denoiser, *, step: int = 10, count: int = 64, trained: Any = None, **changes: Any
) -> Any:
    """The mean loss of each role, late enough that warm-ups are over, and the losses themselves."""
    method = small(name, **changes)
    nets = Networks(student, teacher, SCHEDULE, W, trained=trained or {})
    given = Batch(0.4 * torch.randn(count, 2), torch.arange(count) % NUM_CLASSES)
    draws = Draws.begin(given.x, "0/flow-maps", step)
    found = method.losses(given, nets, draws, step=step, phase=method.phases()[0])
    return {role: float(each.error.detach().mean()) for role, each in found.items()}


def test_the_exact_map_is_the_flow_of_the_teacher() -> None:
    """Composed of many steps of DDIM, and of two of its own."""
    z, label, w = torch.randn(8, 2), torch.arange(8) % 3, torch.linspace(0, 2, 8)
    ends = SCHEDULE.log_snr(torch.tensor([0.9, 0.1]))
    start, end = (each.expand(8) for each in ends)
    landed = ddim_step(ExactMap()(z, start, label, w, extra={END: angle(end) / (torch.pi / 2)}), end)
    followed = z
    times = torch.linspace(0.9, 0.1, 4001)
    for now, then in pairwise(times):
        here, there = (SCHEDULE.log_snr(t).expand(8) for t in (now, then))
        followed = ddim_step(teacher(followed, here, label, w), there)
    torch.testing.assert_close(landed, followed, rtol=0, atol=1e-3)


def test_the_mean_velocity_is_that_of_the_step() -> None:
    z, v = torch.randn(6, 2), torch.randn(6, 2)
    start, end = SCHEDULE.log_snr(torch.linspace(0.3, 1, 6)), SCHEDULE.log_snr(torch.linspace(0.29, 0, 6))
    prediction = Prediction(z=z, v=v, log_snr=start)
    d = expand(angle(start) - angle(end), z)
    torch.testing.assert_close(mean_velocity(prediction, end), (z - ddim_step(prediction, end)) / d)
    torch.testing.assert_close(mean_velocity(prediction, start), v, rtol=0, atol=1e-12)


def differentiated(how: Any) -> tuple[Tensor, Tensor, Tensor]:
    z, label, w = torch.randn(16, 2), torch.arange(16) % 3, torch.linspace(0, 2, 16)
    log_snr, psi = SCHEDULE.log_snr(torch.linspace(0.3, 0.95, 16)), torch.linspace(0.05, 0.25, 16) * torch.pi / 2

    def of(z: Tensor, phi: Tensor) -> Tensor:
        return ExactMap()(z, -2 * phi.tan().log(), label, w, extra={END: psi / (torch.pi / 2)}).v

    velocity = teacher(z, log_snr, label, w).v
    before, change = along_the_flow(of, z, angle(log_snr), velocity, how)
    end = -2 * psi.tan().log()
    prediction = Prediction(z=z, v=before, log_snr=log_snr)
    return before, change, start_derivative(prediction, end, velocity=velocity, change=change)


def test_forward_mode_is_what_a_difference_approaches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    exactly = differentiated("jvp")
    assert float(exactly[2].abs().max()) < 1e-9  # an exact map does not change along the flow
    errors = []
    for step in (2e-3, 1e-3):
        monkeypatch.setattr("fewstep.methods.derivative.STEP", step)
        torch.manual_seed(0)
        about = differentiated("finite_difference")
        assert torch.equal(exactly[0], about[0])
        torch.testing.assert_close(about[1], exactly[1], rtol=0, atol=5 * step)
        assert float(about[2].abs().max()) < 5 * step
        errors.append(float((about[1] - exactly[1]).norm()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)  # of first order


def test_a_part_without_a_derivative_is_named_with_the_other_way() -> None:
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

    with pytest.raises(ValueError, match="derivative=finite_difference"):
        along_the_flow(lambda z, phi: Odd.apply(z), torch.ones(2, 2), torch.ones(2), torch.ones(2, 2), "jvp")


def test_other_errors_of_a_network_are_its_own() -> None:
    def exhausted(z: Tensor, phi: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        along_the_flow(exhausted, torch.ones(2, 2), torch.ones(2), torch.ones(2, 2), "jvp")


EXACT = {
    "flow_map": ({"most_share": 1.0}, 1e-12),
    "meanflow": ({"equal_share": 0.0}, 1e-12),
    "freeflow without correction": ({}, 1e-12),
}


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_map_has_no_error(name: str) -> None:
    changes, most = EXACT[name]
    found, wrong = (losses(name, ExactMap(off=off), **changes)["student"] for off in (0.0, 0.1))
    assert found < most
    assert wrong > 1e-3


def test_an_exact_consistency_model_has_no_tangent() -> None:
    """f at psi = 0; the weights over t count nothing at first."""
    for off, low, high in ((0.0, 0.0, 1e-9), (0.1, 1e-3, 10.0)):
        student = ExactMap(off=off, end_input=False)
        found = losses("scm", student, trained={WEIGHTING: Weighting().double()})
        assert low <= found["student"] <= high
        assert found["weighting"] == pytest.approx(found["student"])


def test_the_consistency_tangent_of_any_network_is_cos_times_the_derivative() -> None:
    """Lu & Song's tangent, -cos^2 (F - dx/dt) - cos sin (x + dF/dt), against a difference of f along the flow."""
    z, w, label = torch.randn(8, 2), torch.linspace(0, 2, 8), torch.arange(8) % 3
    log_snr = SCHEDULE.log_snr(torch.linspace(0.2, 0.9, 8))
    end = SCHEDULE.log_snr(torch.zeros(8))
    velocity, phi, h = teacher(z, log_snr, label, w).v, angle(log_snr), 1e-6

    def network(z: Tensor, phi: Tensor) -> Tensor:
        return torch.sin(3 * z + expand(phi, z))

    def f(z: Tensor, phi: Tensor) -> Tensor:
        d = expand(phi - angle(end), z)
        return torch.cos(d) * z - torch.sin(d) * network(z, phi)

    before, change = along_the_flow(network, z, phi, velocity, "jvp")
    known = Prediction(z=z, v=before, log_snr=log_snr)
    found = consistency_tangent(known, end, velocity=velocity, change=change, share=1.0)
    expected = expand(phi.cos(), z) * (f(z + h * velocity, phi + h) - f(z - h * velocity, phi - h)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    cos, sin = (expand(each, z) for each in (phi.cos(), phi.sin()))
    theirs = -(cos**2) * (before - velocity) - cos * sin * (z + change)
    away = expand(angle(end), z) * (z.abs() + velocity.abs() + before.abs() + change.abs())  # their end is at angle 0
    assert bool(((found - theirs).abs() <= away).all())


class Teaching(Denoiser):
    """The teacher itself as a network, whatever end it is told."""

    def __init__(self) -> None:
        network = Nothing(guidance_input=True, off=0.0)
        network.arguments |= {"extra_inputs": [END]}
        super().__init__(network)

    def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
        return Prediction(z=z, v=teacher(z, log_snr, label, w).v + self.network.off, log_snr=log_snr)


def test_a_fake_flow_that_is_the_teacher_corrects_nothing() -> None:
    found = losses("freeflow", ExactMap(), trained={FAKE: Teaching()})
    assert found["student"] < 1e-12
    assert found[FAKE] > 1e-3  # the variance of data given z
    off = Teaching()
    off.network.off.data.fill_(0.1)
    wrong = ExactMap(off=0.1)
    same, other = (losses("freeflow", wrong, trained={FAKE: fake})["student"] for fake in (Teaching(), off))
    assert other > same + 1e-3


def test_meanflow_from_data_has_the_guided_velocity_as_its_fixed_point() -> None:
    """v + w / (1 + w) (v_w - v_0) has the mean (1 + w) v_c - w v_0 where v_w is that and v_0 the unconditional one."""
    method = small("meanflow from data")
    count = 200_000
    x, label = 0.4 * torch.randn(count, 1), torch.zeros(count, dtype=torch.long)
    log_snr = SCHEDULE.log_snr(torch.full((count,), 0.5))
    eps, w = torch.randn(count, 1), torch.full((count,), 1.5)
    a, s = alpha(log_snr)[:, None], sigma(log_snr)[:, None]
    noised = Prediction(z=a * x + s * eps, v=a * eps - s * x, log_snr=log_snr)
    nets = Networks(Teaching(), None, SCHEDULE, W)
    target, own = method.velocities(noised, label, w, nets)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(own, teacher(noised.z, log_snr, label, w).v)
    slope = (target * noised.z).mean() / noised.z.square().mean()
    expected = (own * noised.z).mean() / noised.z.square().mean()
    assert float(slope) == pytest.approx(float(expected), abs=5e-3)


def test_meanflow_divides_an_examples_error_by_a_power_of_it() -> None:
    """The sum of squares + 0.01, to the power p (Geng et al. 2025): with p = 0 the plain mean is left, half the sum."""
    errors = []
    for power in (0.0, 0.5, 1.0):
        method = small("meanflow", power=power)
        nets = Networks(ExactMap(off=0.3), teacher, SCHEDULE, W)
        x, label = 0.4 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
        draws = Draws.begin(x, "0/flow-maps", 0)
        found = method.losses(Batch(x, label), nets, draws, step=0, phase=method.phases()[0])
        errors.append(found["student"].error.detach())
    plain = errors[0]
    for power, error in zip((0.5, 1.0), errors[1:], strict=True):
        torch.testing.assert_close(error, plain / (2 * plain + 0.01) ** power)


class ByDDIM(Denoiser):
    """From noise to each level of a grid by the teacher's DDIM along the grid; `off` is added to F."""

    def __init__(self, num_levels: int, off: float = 0.0) -> None:
        network = Nothing(guidance_input=True, off=off)
        network.arguments |= {"extra_inputs": [END]}
        super().__init__(network)
        self.num_levels = num_levels

    def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
        end = -2 * (extra[END] * torch.pi / 2).tan().log()
        moved, reached = z, teacher(z, log_snr, label, w).v
        for step in range(self.num_levels):
            here, there = (SCHEDULE.log_snr(torch.tensor(1 - k / self.num_levels)) for k in (step, step + 1))
            moved = ddim_step(teacher(moved, here.expand(len(z)), label, w), there.expand(len(z)))
            at = expand((end - there).abs() < 1e-6, z).bool()
            reached = torch.where(at, invert_ddim(z=z, z_next=moved, log_snr=log_snr, log_snr_next=end).v, reached)
        return Prediction(z=z, v=reached + self.network.off, log_snr=log_snr)


@pytest.mark.parametrize("num_levels", [4, 16])
def test_boots_fixed_point_is_the_teachers_ddim(num_levels: int) -> None:
    found, wrong = (losses("boot", ByDDIM(num_levels, off), num_levels=num_levels)["student"] for off in (0.0, 0.1))
    assert found < 1e-12
    assert wrong > 1e-3
    assert losses("boot", ExactMap(), num_levels=num_levels)["student"] > 1e-6  # the flow itself is not it


def test_pids_residual_at_the_exact_trajectory_is_of_first_order() -> None:
    """Its x is by a difference quotient: not 0, but what the closed form says, and a quarter of its square at 2 N."""
    coarse, fine, wrong = (
        losses("pid", ExactMap(off=off), num_levels=n, count=4096)["student"]
        for n, off in ((250, 0.0), (500, 0.0), (250, 0.1))
    )
    assert coarse / fine == pytest.approx(4, rel=0.1)
    assert wrong > 100 * coarse
    t = torch.arange(1, 251) / 250
    now, then = SCHEDULE.log_snr(t), SCHEDULE.log_snr(t - 1 / 250)
    w = torch.linspace(0, 2, 41)[:, None]
    start = SCHEDULE.log_snr(torch.tensor(1.0))
    z_t, z_s = ratio(start, now, w), ratio(start, then, w)  # of noise 1
    x = (sigma(now) * z_s - sigma(then) * z_t) / (alpha(then) * sigma(now) - alpha(now) * sigma(then))
    gains = [alpha(now) * std**2 / ((alpha(now) * std) ** 2 + sigma(now) ** 2) for std in STDS]
    expected = (x - ((1 + w) * gains[0] - w * gains[1]) * z_t).square().mean()
    assert coarse == pytest.approx(float(expected), rel=0.1)


# Many steps -----------------------------------------------------------------------------------------------------------


def std_error(student: Any, sampler: str, steps: int) -> float:
    """Relative error of the deviation of 400,000 samples."""
    count = 400_000
    generator = torch.Generator().manual_seed(0)
    x = sample(
        student,
        torch.randn(count, 1, generator=generator),
        schedule=SCHEDULE,
        times=uniform_times(steps),
        label=torch.zeros(count, dtype=torch.long),
        w=torch.zeros(count),
        sampler=SAMPLERS[sampler],
        fresh=lambda step: torch.randn(count, 1, generator=generator),
    )
    return float(x.std() / STDS[0] - 1)


def test_flow_maps_keep_their_quality_as_steps_grow_and_consistency_models_do_not() -> None:
    """A consistency model 2 % too small, noised afresh at each step, against a map too small by 2 % of its jump."""

    def consistency(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor) -> Prediction:
        end = SCHEDULE.log_snr(torch.zeros_like(log_snr))
        x = 0.98 * expand(ratio(log_snr, end, w), z) * z
        return interpret("x", x, z=z, log_snr=log_snr)

    def by_jump(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor, *, extra: Any) -> Prediction:
        end = -2 * (extra[END] * torch.pi / 2).tan().log()
        jump = SCHEDULE.time(log_snr) - SCHEDULE.time(end)
        landed = expand((1 - 0.02 * jump) * ratio(log_snr, end, w), z) * z
        return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=end)

    errors = {n: (std_error(consistency, "renoise", n), std_error(by_jump, "flow_map", n)) for n in (1, 4, 16)}
    assert errors[1][0] == pytest.approx(-0.02, abs=2e-3)
    assert errors[16][0] < errors[4][0] - 0.01
    assert errors[4][0] < errors[1][0] - 0.005
    assert all(by_map == pytest.approx(-0.02, abs=2e-3) for _, by_map in errors.values())


def test_a_flow_map_is_made_for_every_divisor_of_its_steps() -> None:
    assert Sampling.uniform(8, sampler="flow_map", guidance="input").steps == (1, 2, 4, 8)
