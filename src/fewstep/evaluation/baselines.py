"""Baselines of students: the fast solvers of diffusers, with the same network and times."""

from typing import Any

import torch

from fewstep.diffusion.prediction import Condition, Denoise, Weights
from fewstep.diffusion.schedule import Images, Schedule, alpha, uniform_times

SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {  # the scheduler's class and its arguments
    "ddim-diffusers": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}),  # 2M, Lu 2022
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}),  # Zhao et al. 2023
}


def scheduler_of(solver: str, schedule: Schedule, num_steps: int) -> Any:
    """The scheduler of diffusers whose `num_steps` timesteps are t = 1, 1 - 1/N, ..., 1/N of `schedule`.

    It is built for N training timesteps, these, and given their alpha^2; from betas the last would lose its digits.
    """
    import diffusers  # takes a second, and most runs start without it

    name, arguments = SOLVERS[solver]
    build = getattr(diffusers, name)
    scheduler = build(num_train_timesteps=num_steps, timestep_spacing="trailing", prediction_type="sample", **arguments)
    scheduler.alphas_cumprod = alpha(schedule.log_snr(uniform_times(num_steps).flip(0))).square()
    scheduler.set_timesteps(num_steps)
    return scheduler


@torch.no_grad()
def sample_with(
    solver: str,
    denoise: Denoise,
    noise: Images,
    *,
    schedule: Schedule,
    num_steps: int,
    label: Condition,
    w: Weights | None,
) -> Images:
    """Sample with one of SOLVERS, with one evaluation per step; else as `fewstep.diffusion.sampler.sample`."""
    scheduler, z = scheduler_of(solver, schedule, num_steps), noise
    times = schedule.log_snr(uniform_times(num_steps)).to(noise.device)
    for log_snr, timestep in zip(times, scheduler.timesteps, strict=True):
        x = denoise(z, log_snr.expand(len(z)), label, w).x
        z = scheduler.step(x, timestep, z).prev_sample.to(noise)
    return z
