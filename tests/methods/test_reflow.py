"""Knowledge distillation and reflow: the exact map has no error, and the flow of pairs is straight where it can be."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_methods import NULL, SCHEDULE, Exact, batch_for, gaussian, network, small
from torch import Tensor

from fewstep.data.batch import Pairs
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Denoise, Prediction, diffuse
from fewstep.diffusion.sampler import ddim_step, integrate, sample
from fewstep.diffusion.schedule import alpha, angle, expand, sigma, uniform_times
from fewstep.methods import GuidanceRange, Networks
from fewstep.methods.draws import Draws
from fewstep.methods.from_pairs import between
from fewstep.networks import Denoiser

pytestmark = pytest.mark.usefixtures("unchecked")

STD = 0.4  # of `gaussian`, given a class


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """All random numbers in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def losses(name: str, student: Denoiser, pairs: Pairs, *, number: int = 0, schedule: Any = SCHEDULE) -> Tensor:
    """Of each pair."""
    method = small(name)
    nets = Networks(student, None, schedule, GuidanceRange(0.0, 2.0))
    draws = Draws.begin(pairs.x, "0/reflow", 3)
    return method.losses(pairs, nets, draws, step=3, phase=method.phases()[number])["student"].error.detach()


def starts(count: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, labels and weights."""
    return torch.randn(count, 2), torch.arange(count) % 3, torch.linspace(0, 2, count)


# The exact map --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("knowledge_distillation", 0), ("reflow", 1)])
def test_the_exact_map_of_the_mixture_has_no_error(make_mixture: Any, name: str, number: int) -> None:
    noise, label, w = starts()
    one = SCHEDULE.log_snr(torch.ones(64))
    student = Exact(Guided(make_mixture().denoise, NULL), torch.zeros_like)
    pairs = Pairs(student(noise, one, label, w).x.detach(), label, noise, w)
    assert float(losses(name, student, pairs, number=number).max()) < 1e-20
    wrong = losses(name, Exact(student.denoise, torch.zeros_like, off=0.1), pairs, number=number)
    torch.testing.assert_close(wrong, torch.full((64,), 0.01), rtol=1e-6, atol=0)  # snr_plus_one: the square in v


@pytest.mark.parametrize("name", ["knowledge_distillation", "reflow"])
def test_one_step_starts_from_the_noise_alone_on_any_schedule(name: str) -> None:
    """Also where alpha at t = 1 is 0.07, as of Stable Diffusion: there is no signal in what is sampled from."""
    seen: list[Tensor] = []

    class Watched(Exact):
        def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
            seen.append(z)
            return super().predict(z, log_snr, label, w, extra)

    given: Any = batch_for(small(name))
    pairs = Pairs(given.x.double(), given.label, given.noise.double(), given.w.double())
    losses(name, Watched(Guided(gaussian, NULL)), pairs, number=-1, schedule=BetaSchedule())
    assert torch.equal(seen[0], pairs.noise)


# The rectified flow in the angle --------------------------------------------------------------------------------------


def rectified_time(log_snr: Tensor) -> Tensor:
    """r = sigma / (alpha + sigma)."""
    return sigma(log_snr) / (alpha(log_snr) + sigma(log_snr))


def straightened(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """y = z / (alpha + sigma), and the velocity eps - x of the rectified flow there."""
    scale = alpha(prediction.log_snr) + sigma(prediction.log_snr)
    return prediction.z / expand(scale, prediction.z), prediction.eps - prediction.x


def test_a_ddim_step_is_eulers_in_the_coordinates_of_the_rectified_flow() -> None:
    now, then = SCHEDULE.log_snr(torch.linspace(0.4, 1, 9)), SCHEDULE.log_snr(torch.linspace(0, 0.3, 9))
    prediction = Prediction(z=torch.randn(9, 2), v=torch.randn(9, 2), log_snr=now)
    y, u = straightened(prediction)
    moved = y + expand(rectified_time(then) - rectified_time(now), y) * u
    torch.testing.assert_close(ddim_step(prediction, then), expand(alpha(then) + sigma(then), y) * moved)


def test_the_squared_error_of_v_is_that_of_the_rectified_flow() -> None:
    """Pointwise (alpha + sigma)^2 times it, which dr/dphi takes away: the means over r and over the angle agree."""
    phi = torch.linspace(0, torch.pi / 2, 20_001)[1:-1]
    log_snr = -2 * phi.tan().log()
    z, v, wrong = (torch.randn(1, 2).expand(len(phi), 2) for _ in range(3))
    wrong = wrong * expand(1 + torch.sin(3 * phi), wrong)  # an error that depends on the time
    of_v = wrong.square().sum(1)
    u, other = (straightened(Prediction(z=z, v=each, log_snr=log_snr))[1] for each in (v, v + wrong))
    of_u = (other - u).square().sum(1)
    torch.testing.assert_close(of_u, (alpha(log_snr) + sigma(log_snr)).square() * of_v)
    mean_over_r = float(torch.trapezoid(of_u, rectified_time(log_snr)))
    assert mean_over_r == pytest.approx(torch.pi / 2 * float(of_v.mean()), rel=1e-3)


def deviation(log_snr: Tensor) -> Tensor:
    """Of z, for data N(0, STD^2) and independent noise."""
    return ((alpha(log_snr) * STD) ** 2 + sigma(log_snr) ** 2).sqrt()


def rectified(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None = None) -> Prediction:
    """The rectified flow of the pairs (eps, STD eps), the exact map of N(0, STD^2): z = (STD alpha + sigma) eps."""
    eps = z / expand(STD * alpha(log_snr) + sigma(log_snr), z)
    return diffuse(x=STD * eps, eps=eps, log_snr=log_snr)


def straightness(denoise: Denoise, steps: int = 150, *, label: Tensor, noise: Tensor, w: Tensor) -> Tensor:
    """Integral over r of |(eps - x) - u(y_r, r)|^2 along the flow from eps to x: 0 if and only if it is straight.

    (Liu et al. 2022, section 3.2.)
    """
    knots, z, velocities = SCHEDULE.log_snr(torch.linspace(1, 0, steps + 1)), noise, []
    for now, then in pairwise([*knots, knots[-1]]):  # at t = 0 a step of no length
        velocities.append(straightened(denoise(z, now.expand(len(z)), label, w))[1])
        z = integrate(denoise, z, log_snr=now, log_snr_next=then, num_steps=1, label=label, w=w)
    off = (noise - z - torch.stack(velocities)).square().sum(-1)
    return torch.trapezoid(off, rectified_time(knots), dim=0).abs()


def test_the_flow_is_as_curved_as_the_closed_form_before_and_straight_after_a_round() -> None:
    """Of a Gaussian with independent noise y = rho(r) eps, rho^2 = ((1 - r) STD)^2 + r^2, so u = rho'(r) eps."""
    noise, label, w = starts(16)
    r = torch.linspace(0, 1, 20_001)
    rho = (((1 - r) * STD) ** 2 + r**2).sqrt()
    slope = (r - (1 - r) * STD**2) / rho
    expected = torch.trapezoid((1 - STD - slope).square(), r) * noise.square().sum(1)
    curved = straightness(gaussian, label=label, noise=noise, w=w)
    torch.testing.assert_close(curved, expected, rtol=1e-3, atol=0)
    assert float(expected.mean()) > 0.05
    after = straightness(rectified, label=label, noise=noise, w=w)
    assert float(after.max()) < 1e-7  # alpha is 4.5e-5 at t = 1


def test_reflow_learns_that_straight_flow() -> None:
    """Pairs on one line each: the expectation given z is the truth, and one step of it is the whole flow."""
    noise, label, w = starts()
    pairs = Pairs(STD * noise, label, noise, w)
    assert float(losses("reflow", Exact(rectified), pairs).max()) < 1e-20
    assert float(losses("reflow", Exact(gaussian), pairs).mean()) > 1e-3
    for steps in (1, 3):
        made = sample(rectified, noise, schedule=SCHEDULE, times=uniform_times(steps), label=label, w=w)
        torch.testing.assert_close(made, STD * noise, rtol=0, atol=1e-4)
    one = sample(gaussian, noise, schedule=SCHEDULE, times=uniform_times(1), label=label, w=w)
    assert float(one.abs().max()) < 1e-3  # what it is without: the mean of the data


def test_paths_join_the_sample_and_the_noise() -> None:
    pairs = Pairs(torch.randn(5, 2), torch.arange(5) % 3, torch.randn(5, 2), torch.zeros(5))
    nets = Networks(network(), None, SCHEDULE, None)
    t = torch.tensor([0.0, 0.3, 0.7, 0.999, 1.0])
    path = between(pairs, nets, t)
    torch.testing.assert_close(path.x, pairs.x)
    torch.testing.assert_close(path.eps[:-1], pairs.noise[:-1])
    assert torch.equal(path.z[-1], pairs.noise[-1])
    phi = expand(angle(path.log_snr), path.z)
    torch.testing.assert_close(path.z[:-1], (phi.cos() * pairs.x + phi.sin() * pairs.noise)[:-1])


# Settings -------------------------------------------------------------------------------------------------------------


def test_each_round_begins_with_pairs_of_the_model_before() -> None:
    phases = small("reflow", steps=[8, 4, 1], teacher_steps=16).phases()
    assert [(phase.teacher_steps, phase.num_steps) for phase in phases] == [(16, 8), (8, 4), (4, 1)]
    assert [small("reflow", steps=[8, 4, 1]).times(phase) is None for phase in phases] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("reflow", {"steps": []}, "stage.steps"),
        ("reflow", {"steps": [2, 2]}, "stage.steps"),
        ("reflow", {"steps": [2, 0]}, "stage.steps"),
        ("reflow", {"teacher_steps": 0}, "stage.teacher_steps"),
        (
            "knowledge_distillation",
            {"teacher_steps": 0},
            "stage.teacher_steps must be a whole number of at least 1, got 0",
        ),
        ("knowledge_distillation", {"num_pairs": 0}, "stage.num_pairs must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_settings_are_one_line(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        small(name, **changes)
    assert "\n" not in str(caught.value)
