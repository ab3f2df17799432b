"""The solvers of diffusers on the exact mixture: DDIM is ours, the others converge faster than it."""

from collections.abc import Callable
from functools import partial
from math import log2

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.sampler import integrate, sample
from fewstep.diffusion.schedule import CosineSchedule, uniform_times
from fewstep.evaluation.baselines import SOLVERS, sample_with, scheduler_of

MakeMixture = Callable[..., GaussianMixture]
SCHEDULE = CosineSchedule(-20.0, 30.0)
COUNT = 64


def solve(make_mixture: MakeMixture, w: float) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor]:
    """Our DDIM at given times, the solvers of diffusers with a number of steps, and the exact solution."""
    denoise = Guided(make_mixture().denoise, 3)
    noise = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, weight = torch.arange(COUNT) % 3, torch.full((COUNT,), w, dtype=torch.float64)
    problem = {"denoise": denoise, "noise": noise, "schedule": SCHEDULE, "label": label, "w": weight}
    ends = SCHEDULE.log_snr(torch.tensor([1.0, 0.0]))
    truth = integrate(denoise, noise, log_snr=ends[0], log_snr_next=ends[1], num_steps=80, label=label, w=weight)
    return partial(sample, **problem), partial(sample_with, **problem), truth


@pytest.mark.parametrize("num_steps", [1, 2, 5, 16])
def test_ddim_of_diffusers_is_our_sampler(make_mixture: MakeMixture, num_steps: int) -> None:
    ours, solver, _ = solve(make_mixture, 1.0)
    theirs = solver("ddim-diffusers", num_steps=num_steps)
    torch.testing.assert_close(theirs, ours(times=uniform_times(num_steps)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("w", [0.0, 2.0])
@pytest.mark.parametrize("name", ["dpmsolver++", "unipc"])
def test_a_baseline_converges_faster_than_ddim(make_mixture: MakeMixture, name: str, w: float) -> None:
    ours, solver, truth = solve(make_mixture, w)
    draws = [lambda n: ours(times=uniform_times(n)), lambda n: solver(name, num_steps=n)]
    ddim, fast = ([float((draw(n) - truth).square().mean().sqrt()) for n in (8, 64)] for draw in draws)
    assert log2(ddim[0] / ddim[1]) / 3 == pytest.approx(1, abs=0.1)  # order 1, eight times the steps
    assert log2(fast[0] / fast[1]) / 3 > 1.5
    assert fast[0] < ddim[0] / 2


@pytest.mark.parametrize("name", SOLVERS)
def test_a_baseline_evaluates_at_our_times(name: str) -> None:
    scheduler = scheduler_of(name, SCHEDULE, 4)
    assert scheduler.timesteps.tolist() == [3, 2, 1, 0]
    expected = torch.sigmoid(SCHEDULE.log_snr(torch.tensor([0.25, 0.5, 0.75, 1.0])))
    torch.testing.assert_close(scheduler.alphas_cumprod, expected)
