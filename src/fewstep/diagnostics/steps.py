"""A student on its own path, from noise step by step, and how far each step is from its teacher's two."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diagnostics.gaps import mean_square
from fewstep.diagnostics.probe import Starts
from fewstep.diffusion.prediction import Condition, Denoise, Prediction
from fewstep.diffusion.sampler import SAMPLERS, Fresh, ddim_step, trajectory
from fewstep.diffusion.schedule import Images
from fewstep.methods import EncoderStage, ProgressiveStage, Stage

MOST_STEPS = 16  # of a path; longer ones are walked in larger steps of the same grid
COMPARED = 16  # examples whose every step is compared with the teacher's


class Path(NamedTuple):
    """Where a path ends (data, or an encoder's noise), and the error of a step at each of its times."""

    end: Images
    errors: list[tuple[float, float]]


def steps_of(num_steps: int) -> int:
    """The largest part of that many steps, up to MOST_STEPS, whose times are among theirs."""
    return max(part for part in range(1, MOST_STEPS + 1) if num_steps % part == 0)


@torch.no_grad()
def walk(
    student: Denoise,
    stage: Stage,
    starts: Starts,
    fresh: Callable[[int, int], Fresh],
    rows: int,
) -> Path:
    """Walk `student` as it is sampled, or encodes, in its own steps; outside a ladder in MOST_STEPS.

    Args:
        fresh: (start, count) -> noise that a stochastic sampler adds for these examples.
        rows: examples walked at once.
    """
    num_steps = steps_of(stage.num_steps) if isinstance(stage, ProgressiveStage) else MOST_STEPS
    ends: list[Images] = []
    passed: list[list[Prediction]] = [[] for _ in range(num_steps)]
    for start in range(0, len(starts.noise), rows):
        z, label, w = part_of(starts, slice(start, start + rows), stage.device)
        count = max(0, COMPARED - start)
        last = None
        for step, last in enumerate(path(student, stage, z, num_steps, label, w, fresh(start, len(z)))):
            passed[step].append(Prediction(last.z[:count], last.v[:count], last.log_snr[:count]))
        assert last is not None, "a path has a step"
        ends.append(landed(last, stage))
    errors = step_errors([joint(step) for step in passed], stage, starts, rows)
    return Path(torch.cat(ends), errors)


def joint(parts: list[Prediction]) -> Prediction:
    """The predictions of several batches as one."""
    return Prediction(*(torch.cat([getattr(part, name) for part in parts]) for name in ("z", "v", "log_snr")))


@torch.no_grad()
def taught_samples(stage: Stage, starts: Starts, fresh: Callable[[int, int], Fresh], rows: int) -> Images | None:
    """What the stage's teacher makes of the same starts, in twice the student's steps; None without a teacher."""
    teacher: Denoise | None = getattr(stage, "teacher", None)
    if teacher is None or isinstance(stage, EncoderStage):
        return None
    num_steps = 2 * steps_of(stage.num_steps) if isinstance(stage, ProgressiveStage) else MOST_STEPS
    ends = []
    for start in range(0, len(starts.noise), rows):
        z, label, w = part_of(starts, slice(start, start + rows), stage.device)
        *_, last = path(teacher, stage, z, num_steps, label, w, fresh(start, len(z)))
        ends.append(last.x)
    return torch.cat(ends)


def part_of(starts: Starts, rows: slice, device: torch.device) -> tuple[Images, Condition, Tensor | None]:
    """Noise, condition and w of these rows, on the device."""
    w = None if starts.w is None else starts.w[rows].to(device)
    return starts.noise[rows].to(device), starts.label[rows].to(device), w


def path_times(stage: Stage, num_steps: int) -> Float[Tensor, "times"]:
    """Where the steps of a path begin, in its order."""
    grid = torch.arange(num_steps, dtype=torch.float64) / num_steps
    return grid if isinstance(stage, EncoderStage) else 1 - grid


def path(
    denoise: Denoise, stage: Stage, z: Images, num_steps: int, label: Condition, w: Tensor | None, fresh: Fresh
) -> Iterator[Prediction]:
    """The prediction at each step of a path: of the stage's sampler, or of an encoder, whose z is data."""
    if not isinstance(stage, EncoderStage):
        sampler = SAMPLERS[getattr(stage, "sampling", "deterministic")]
        yield from trajectory(
            denoise,
            z,
            schedule=stage.schedule,
            num_steps=num_steps,
            label=label,
            w=w,
            sampler=sampler,
            fresh=fresh,
        )
        return
    for t in path_times(stage, num_steps).to(z.device):
        prediction = denoise(z, stage.schedule.log_snr(t).expand(len(z)), label, w)
        yield prediction
        z = ddim_step(prediction, stage.schedule.log_snr(t + 1 / num_steps).expand(len(z)))


def landed(last: Prediction, stage: Stage) -> Images:
    """Where a path ends after its last prediction."""
    if not isinstance(stage, EncoderStage):
        return last.x
    return ddim_step(last, stage.schedule.log_snr(torch.ones_like(last.log_snr)))


def step_errors(steps: list[Prediction], stage: Stage, starts: Starts, rows: int) -> list[tuple[float, float]]:
    """(t, error) of each step of a rung: rms distance of where the student's step and the teacher's two land.

    Args:
        steps: what the student said at each step of its path, of the first of `starts`.
        rows: examples that the teacher is asked at once; those of all steps together fill few batches.
    """
    if not isinstance(stage, ProgressiveStage):
        return []
    count, device = len(steps[0].z), stage.device
    times = path_times(stage, len(steps))
    t = times.repeat_interleave(count).to(device)
    _, label, w = part_of(starts, slice(0, count), device)
    label = label.repeat(len(steps), *[1] * (label.ndim - 1))
    w = None if w is None else w.repeat(len(steps))
    said, squares = joint(steps), []
    for start in range(0, len(t), rows):
        part = slice(start, start + rows)
        own = Prediction(said.z[part], said.v[part], said.log_snr[part])
        end = stage.schedule.log_snr(stage.jump(t[part])[1])
        taught = stage.target(own, t[part], label[part], None if w is None else w[part])
        squares.append(mean_square(ddim_step(own, end) - ddim_step(taught, end)))
    errors = torch.cat(squares).reshape(len(steps), count).mean(1).sqrt()
    return list(zip(times.tolist(), errors.tolist(), strict=True))
