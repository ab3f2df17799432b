"""Beta schedules against diffusers' schedulers, which define them: the same table, timesteps and DDIM steps."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.sampler import sample, trajectory
from fewstep.diffusion.schedule import Schedule, alpha, uniform_times

TRAINED = tuple(float(beta) for beta in torch.linspace(0.001, 0.03, 60, dtype=torch.float64))
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # ours, theirs
    "linear": (
        {"kind": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    ),
    "stable diffusion": (
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": ({"kind": "squaredcos_cap_v2"}, {"beta_schedule": "squaredcos_cap_v2"}),
    "few timesteps": (
        {"kind": "linear", "beta_start": 0.001, "beta_end": 0.2, "num_timesteps": 50},
        {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.2, "num_train_timesteps": 50},
    ),
    "trained": (
        {"kind": "trained", "betas": TRAINED, "num_timesteps": 60},
        {"trained_betas": list(TRAINED), "num_train_timesteps": 60},
    ),
}
EACH = pytest.mark.parametrize("case", CASES)


@EACH
@pytest.mark.parametrize("rescaled", [False, True])
def test_the_table_is_that_of_diffusers(case: str, rescaled: bool) -> None:
    """diffusers computes in float32, whose products of a thousand factors are good to about 1e-5."""
    ours, theirs = CASES[case]
    schedule = BetaSchedule(**ours, rescale_zero_snr=rescaled)
    kept = DDPMScheduler(**theirs, rescale_betas_zero_snr=rescaled).alphas_cumprod.double()
    t = (torch.arange(len(kept), dtype=torch.float64) + 1) / len(kept)
    torch.testing.assert_close(alpha(schedule.log_snr(t)).square(), kept, rtol=0, atol=2e-6)
    assert isinstance(schedule, Schedule)
    assert schedule.has_zero_terminal_snr == (rescaled or case == "cosine")
    assert schedule.lowest_log_snr == float(schedule.log_snr(torch.tensor(1.0)))


@EACH
@pytest.mark.parametrize("rescaled", [False, True])
def test_time_is_the_inverse_and_timesteps_are_whole_at_them(case: str, rescaled: bool) -> None:
    schedule = BetaSchedule(**CASES[case][0], rescale_zero_snr=rescaled)
    t = torch.linspace(0, 1, 997, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(schedule.time(log_snr), t, rtol=0, atol=1e-9)
    steps = torch.arange(schedule.num_timesteps, dtype=torch.float64)
    torch.testing.assert_close(
        schedule.timestep(schedule.log_snr((steps + 1) / schedule.num_timesteps)), steps, rtol=0, atol=1e-9
    )


def test_beyond_its_ends_the_schedule_stays_at_them() -> None:
    schedule = BetaSchedule()
    beyond = torch.tensor([-50.0, 50.0], dtype=torch.float64)
    assert schedule.time(beyond).tolist() == [1.0, 0.0]
    assert schedule.timestep(beyond).tolist() == [999.0, 0.0]
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(schedule.log_snr(torch.tensor([-0.1, 1.1], dtype=torch.float64)), ends)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 8, 10, 20, 50])
def test_the_grid_visits_the_trailing_timesteps_of_diffusers(num_steps: int) -> None:
    theirs = DDIMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(num_steps)
    schedule = BetaSchedule()
    ours = schedule.timestep(schedule.log_snr(uniform_times(num_steps)))
    torch.testing.assert_close(ours, theirs.timesteps.double(), rtol=0, atol=1e-9)


def wavy(z: Tensor, timestep: Tensor) -> Tensor:
    """A network's output, of no meaning."""
    return torch.sin(3 * z) + 0.3 * torch.cos(timestep / 300)[:, None]


@pytest.mark.parametrize(("kind", "theirs"), [("eps", "epsilon"), ("v", "v_prediction"), ("x", "sample")])
@pytest.mark.parametrize("case", ["linear", "stable diffusion"])
def test_ddim_is_that_of_diffusers_step_by_step(case: str, kind: str, theirs: str) -> None:
    """`set_alpha_to_one` lets diffusers' last step end at the predicted x, as ours does."""
    ours, beta = CASES[case]
    schedule = BetaSchedule(**ours)
    scheduler = DDIMScheduler(
        **beta, prediction_type=theirs, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return interpret(kind, wavy(z, schedule.timestep(log_snr)), z=z, log_snr=log_snr)  # pyright: ignore

    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.zeros(4, dtype=torch.long)
    steps = trajectory(denoise, noise, schedule=schedule, times=uniform_times(10), label=label, w=None)
    z = noise
    for step, prediction in zip(scheduler.timesteps, steps, strict=True):
        torch.testing.assert_close(prediction.z, z, rtol=1e-5, atol=1e-4)
        z = scheduler.step(wavy(z, step.double().expand(len(z))), int(step), z).prev_sample
    ended = sample(denoise, noise, schedule=schedule, times=uniform_times(10), label=label, w=None)
    torch.testing.assert_close(ended, z, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"kind": "sigmoid"}, "one of linear, scaled_linear, squaredcos_cap_v2, trained"),
        ({"kind": "trained"}, "trained has its betas, got 'trained' with none"),
        ({"kind": "linear", "betas": (0.1, 0.2)}, "got 'linear' with betas"),
        ({"kind": "trained", "betas": (0.1, 0.2)}, "as many betas"),
        ({"kind": "trained", "betas": (0.1, 1.0), "num_timesteps": 2}, "between 1e-09 and 1, got 0.1 to 1"),
        ({"beta_start": 0.0}, "between 1e-09 and 1, got 0 to"),
        ({"beta_start": 1e-20}, "between 1e-09 and 1, got 1e-20 to"),
        ({"kind": "trained", "betas": (1e-9, 0.5), "num_timesteps": 2}, "got 1e-09 to 0.5"),
        ({"num_timesteps": 1}, "2 to 100,000 timesteps .* got 1$"),
        ({"num_timesteps": 100_001}, "2 to 100,000 timesteps .* got 100001$"),
        ({"log_snr_min": -1001.0}, "log_snr_min < log_snr_max, neither beyond 1000, got -1001 and 20$"),
        ({"log_snr_max": 1001.0}, "log_snr_min < log_snr_max, neither beyond 1000, got -20 and 1001$"),
        ({"log_snr_min": 2.0, "log_snr_max": 2.0}, "got 2 and 2$"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_schedule_that_is_none_is_refused(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        BetaSchedule(**arguments)


def test_a_schedule_at_its_limits_is_taken() -> None:
    assert BetaSchedule(num_timesteps=2).table.shape == (3,)
    assert BetaSchedule(beta_start=1e-6, beta_end=1e-5, num_timesteps=100_000).table.shape == (100_001,)
    assert BetaSchedule(log_snr_min=-1000.0, log_snr_max=1000.0).table[0] == 1000
