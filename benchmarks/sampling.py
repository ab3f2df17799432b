"""Is `sample()` as fast as a loop written by hand, and as diffusers' own?

Three loops and the bare network take turns, call by call, on one untrained digits network, noise, labels, w and number
of steps: `sample()`; DDIM written out in float32 with all coefficients computed beforehand; diffusers' DDIMScheduler,
called as its pipelines call it. A teacher is guided, both branches in one batched call; a student has w as an input.
"""

from collections.abc import Callable
from itertools import pairwise
from math import atan, cos, exp, pi, sin
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float
from measure import Spread, in_turns, report
from omegaconf import OmegaConf
from torch import Tensor

from fewstep.data.digits import DigitsData
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import CosineSchedule, uniform_times
from fewstep.networks import Denoiser, Frozen, ResidualMLP

MODEL = Path(__file__).parents[1] / "conf" / "model" / "digits.yaml"
OFFSET = atan(exp(-10.0))  # of the angle at t = 0: the schedule's log-SNR runs from -20 to 20
TOLERANCE = 1e-4  # largest difference between the images of sample() and of the loop by hand
WARM_UP_CALLS = 3

Images = Float[Tensor, "batch 1 8 8"]
Sampler = Callable[[], Images]


def main(
    student_steps: Annotated[int, typer.Option(min=1)] = 4,
    teacher_steps: Annotated[int, typer.Option(min=1)] = 8,
    batch: Annotated[
        list[int] | None, typer.Option(help="Images at once; may be repeated.  [default: 1 64 500]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for each row of the table.")] = 16.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare sample() with a DDIM loop by hand, diffusers' loop and the bare network, in turns."""
    torch.set_num_threads(threads or torch.get_num_threads())
    rows = [
        measure(guided, num_steps, size, seconds)
        for guided, num_steps in ((False, student_steps), (True, teacher_steps))
        for size in batch or (1, 64, 500)
    ]
    columns = ["model", "steps", "batch", "images/s", "/ by hand", "/ diffusers", "/ network only"]
    report("sample(): speed over that of other loops, wall clock and processor time, medians", rows, columns, out)


def measure(guided: bool, num_steps: int, size: int, seconds: float) -> dict[str, Any]:
    """One row of the result."""
    loops = samplers(guided, num_steps, size)
    for loop in list(loops.values()) * WARM_UP_CALLS:
        loop()
    images = {name: loop() for name, loop in loops.items()}
    difference = float((images["sample()"] - images["by hand"]).abs().max())
    assert difference < TOLERANCE, f"the loops must make the same images, and differ by {difference}"
    times = in_turns(loops, seconds)
    ours = times.pop("sample()")
    wall = {name: Spread.of([a.wall / b.wall for a, b in zip(t, ours, strict=True)]) for name, t in times.items()}
    cpu = {name: Spread.of([a.cpu / b.cpu for a, b in zip(t, ours, strict=True)]) for name, t in times.items()}
    median = {name: Spread.of([t.wall for t in own]).median for name, own in ({"sample()": ours} | times).items()}
    return {
        "model": "guided teacher" if guided else "student",
        "steps": num_steps,
        "batch": size,
        "images/s": round(size / median["sample()"]),
        **{f"/ {name}": f"{wall[name].median:.3f}, {cpu[name].median:.3f}" for name in times},
        "wall_ratios": {name: ratio._asdict() for name, ratio in wall.items()},
        "cpu_ratios": {name: ratio._asdict() for name, ratio in cpu.items()},
        "milliseconds": {name: 1e3 * time for name, time in median.items()},
        "calls": len(ours),
        "largest_difference": {
            "by hand": difference,
            "diffusers": float((images["sample()"] - images["diffusers"]).abs().max()),
        },
    }


def samplers(guided: bool, num_steps: int, size: int) -> dict[str, Sampler]:
    """The loops to compare, of one signature, on one problem."""
    facts = DigitsData.facts
    network = untrained(guidance_input=not guided)
    noise, w = torch.randn(size, *facts.shape), torch.full((size,), 2.0)
    label = torch.arange(size) % facts.num_classes
    denoise = Guided(Frozen(Denoiser(network)), facts.num_classes) if guided else Frozen(Denoiser(network))
    schedule = CosineSchedule()
    angles = [OFFSET + (pi / 2 - 2 * OFFSET) * (1 - i / num_steps) for i in range(num_steps + 1)]
    evaluations = 2 * size if guided else size
    times = [torch.full((evaluations,), angle / (pi / 2)) for angle in angles[:-1]]
    labels = torch.cat([label, torch.full_like(label, facts.num_classes)]) if guided else label
    inputs = torch.cat([noise, noise]) if guided else noise
    scale = w.reshape(-1, 1, 1, 1)
    scheduler = cosine_ddim()

    def velocity(z: Images, time: Float[Tensor, "evaluations"]) -> Images:
        if not guided:
            return network(z, time, label, w)
        conditional, unconditional = network(torch.cat([z, z]), time, labels, None).chunk(2)
        return conditional + scale * (conditional - unconditional)

    def ours() -> Images:
        return sample(denoise, noise, schedule=schedule, times=uniform_times(num_steps), label=label, w=w)

    @torch.no_grad()
    def by_hand() -> Images:
        z = x = noise
        for time, (now, following) in zip(times, pairwise(angles), strict=True):
            v = velocity(z, time)
            x, eps = cos(now) * z - sin(now) * v, sin(now) * z + cos(now) * v
            z = cos(following) * x + sin(following) * eps
        return x

    @torch.no_grad()
    def diffusers_loop() -> Images:
        scheduler.set_timesteps(num_steps)
        latents = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            v = velocity(scheduler.scale_model_input(latents, t), ((t + 1) / 1000).expand(evaluations))
            latents = scheduler.step(v, t, latents, eta=0.0, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def network_only() -> Images:
        for time in times:
            network(inputs, time, labels, None if guided else w)
        return noise

    return {"sample()": ours, "by hand": by_hand, "diffusers": diffusers_loop, "network only": network_only}


def untrained(guidance_input: bool) -> ResidualMLP:
    """The digits network, with noise on its weights for the sake of an output that is not zero."""
    torch.manual_seed(0)
    settings = {key: value for key, value in OmegaConf.load(MODEL).network.items() if key != "_target_"}
    facts = DigitsData.facts
    network = ResidualMLP(
        shape=facts.shape, num_classes=facts.num_classes, guidance_input=guidance_input, **settings
    ).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False).add_(0.02 * torch.randn_like(parameter))
    return network


def cosine_ddim() -> Any:
    """diffusers' nearest to our schedule. Typed loosely: it declares integer steps, and its pipelines give tensors."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
    )


if __name__ == "__main__":
    typer.run(main)
