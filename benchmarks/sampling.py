"""Is `sample()` as fast as a loop written by hand, and as diffusers' own?

Three loops and the bare network take turns on the same untrained digits network, noise, labels, w and number of steps:
`sample()`; DDIM written out in float32 with coefficients computed beforehand; diffusers' DDIMScheduler, called as its
pipelines call it. A teacher is guided, both branches in one batched call; a student has w as an input.
"""

from collections.abc import Callable
from math import atan, cos, exp, pi, sin
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from measure import Spread, report
from omegaconf import OmegaConf
from torch import Tensor, nn

from fewstep.data.digits import DigitsData
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, Frozen, ResidualMLP

MODEL = Path(__file__).parents[1] / "conf" / "model" / "digits.yaml"
NULL_LABEL = DigitsData.facts.num_classes
OFFSET = atan(exp(-10.0))  # of the angle at t = 0: the schedule's log-SNR runs from -20 to 20
TOLERANCE = 1e-4  # largest difference between an image of sample() and of the hand-written loop

Images = Float[Tensor, "batch 1 8 8"]
Sampler = Callable[[], Images]


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Turns of every loop.")] = 15,
    slice_seconds: Annotated[float, typer.Option(help="Length of one loop's turn.")] = 0.25,
    student_steps: Annotated[int, typer.Option(min=1)] = 4,
    teacher_steps: Annotated[int, typer.Option(min=1)] = 16,
    batch: Annotated[list[int] | None, typer.Option(help="Images at once; may be repeated.  [default: 1 64 500]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare sample() with a hand-written DDIM loop, diffusers' loop and the bare network, in turns."""
    torch.set_num_threads(threads or torch.get_num_threads())
    rows = []
    for model, num_steps in (("student", student_steps), ("guided teacher", teacher_steps)):
        for size in batch or (1, 64, 500):
            samplers = student_samplers(size, num_steps) if model == "student" else teacher_samplers(size, num_steps)
            difference = float((samplers["sample()"]() - samplers["by hand"]()).abs().max())
            assert difference < TOLERANCE, f"the loops must make the same images, and differ by {difference}"
            seconds = in_turns(samplers, rounds, slice_seconds)
            row = {"model": model, "steps": num_steps, "batch": size}
            row["images/s"] = round(size / Spread.of(seconds["sample()"]).median)
            for other in ("by hand", "diffusers", "network only"):
                ratios = [theirs / ours for theirs, ours in zip(seconds[other], seconds["sample()"], strict=True)]
                row[f"speed / {other}"] = str(Spread.of(ratios))
            row["milliseconds"] = {name: round(1e3 * Spread.of(s).median, 4) for name, s in seconds.items()}
            row["largest_difference"] = difference
            rows.append(row)
    columns = [column for column in rows[0] if column not in ("milliseconds", "largest_difference")]
    report("sampling: images/s of sample() over another loop's, median (quartiles)", rows, columns, out)


def in_turns(samplers: dict[str, Sampler], rounds: int, slice_seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each sampler in each round; another one begins each round."""
    names = list(samplers)
    calls = {name: max(1, round(slice_seconds / time_of(samplers[name], 2))) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(time_of(samplers[name], calls[name]))
    return seconds


def time_of(sampler: Sampler, calls: int) -> float:
    """Mean seconds per call."""
    start = perf_counter()
    for _ in range(calls):
        sampler()
    return (perf_counter() - start) / calls


def problem(size: int, guidance_input: bool) -> tuple[nn.Module, Images, Int[Tensor, "batch"], Float[Tensor, "batch"]]:
    """An untrained network whose output is not zero, noise, labels and w."""
    torch.manual_seed(0)
    facts = DigitsData.facts
    settings = {key: value for key, value in OmegaConf.load(MODEL).network.items() if key != "_target_"}
    network = ResidualMLP(
        shape=facts.shape, num_classes=facts.num_classes, guidance_input=guidance_input, **settings
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    network.eval().requires_grad_(False)
    return network, torch.randn(size, *facts.shape), torch.arange(size) % facts.num_classes, torch.full((size,), 2.0)


class Step:
    """One DDIM step's coefficients, as numbers: what the network is told, and alpha, sigma now and next."""

    def __init__(self, index: int, num_steps: int) -> None:
        now, following = (OFFSET + (pi / 2 - 2 * OFFSET) * (1 - i / num_steps) for i in (index, index + 1))
        self.time = now / (pi / 2)
        self.alpha, self.sigma = cos(now), sin(now)
        self.alpha_next, self.sigma_next = cos(following), sin(following)
        self.last = index + 1 == num_steps


def student_samplers(size: int, num_steps: int) -> dict[str, Sampler]:
    """One evaluation per step, w an input."""
    network, noise, label, w = problem(size, guidance_input=True)
    denoise = Frozen(Denoiser(network))
    steps = [Step(i, num_steps) for i in range(num_steps)]
    times = [torch.full((size,), step.time) for step in steps]
    scheduler = cosine_ddim()

    def ours() -> Images:
        return sample(denoise, noise, schedule=CosineSchedule(), num_steps=num_steps, label=label, w=w)

    @torch.no_grad()
    def by_hand() -> Images:
        z = noise
        for step, time in zip(steps, times, strict=True):
            v = network(z, time, label, w)
            x = step.alpha * z - step.sigma * v
            if step.last:
                return x
            z = step.alpha_next * x + step.sigma_next * (step.sigma * z + step.alpha * v)
        raise AssertionError("the last step returns")

    @torch.no_grad()
    def diffusers_loop() -> Images:
        scheduler.set_timesteps(num_steps)
        latents = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            output = network(scaled, ((t + 1) / 1000).expand(size), label, w)
            latents = scheduler.step(output, t, latents, eta=0.0, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def network_only() -> Images:
        for time in times:
            network(noise, time, label, w)
        return noise

    return {"sample()": ours, "by hand": by_hand, "diffusers": diffusers_loop, "network only": network_only}


def teacher_samplers(size: int, num_steps: int) -> dict[str, Sampler]:
    """Guided: conditional and unconditional branch in one call on a doubled batch."""
    network, noise, label, w = problem(size, guidance_input=False)
    denoise = Guided(Frozen(Denoiser(network)), NULL_LABEL)
    steps = [Step(i, num_steps) for i in range(num_steps)]
    times = [torch.full((2 * size,), step.time) for step in steps]
    labels = torch.cat([label, torch.full_like(label, NULL_LABEL)])
    scale = w.reshape(-1, 1, 1, 1)
    scheduler = cosine_ddim()

    def ours() -> Images:
        return sample(denoise, noise, schedule=CosineSchedule(), num_steps=num_steps, label=label, w=w)

    @torch.no_grad()
    def by_hand() -> Images:
        z = noise
        for step, time in zip(steps, times, strict=True):
            conditional, unconditional = network(torch.cat([z, z]), time, labels, None).chunk(2)
            v = conditional + scale * (conditional - unconditional)
            x = step.alpha * z - step.sigma * v
            if step.last:
                return x
            z = step.alpha_next * x + step.sigma_next * (step.sigma * z + step.alpha * v)
        raise AssertionError("the last step returns")

    @torch.no_grad()
    def diffusers_loop() -> Images:
        scheduler.set_timesteps(num_steps)
        latents = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(torch.cat([latents, latents]), t)
            conditional, unconditional = network(scaled, ((t + 1) / 1000).expand(2 * size), labels, None).chunk(2)
            output = unconditional + (1 + scale) * (conditional - unconditional)
            latents = scheduler.step(output, t, latents, eta=0.0, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def network_only() -> Images:
        doubled = torch.cat([noise, noise])
        for time in times:
            network(doubled, time, labels, None)
        return noise

    return {"sample()": ours, "by hand": by_hand, "diffusers": diffusers_loop, "network only": network_only}


def cosine_ddim() -> DDIMScheduler:
    """diffusers' nearest to our schedule."""
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
