"""The path that a student takes when it samples or encodes, and the error of each of its steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diagnostics.gaps import mean_square
from fewstep.diagnostics.probe import Starts
from fewstep.diffusion.prediction import Denoise, Prediction
from fewstep.diffusion.sampler import SAMPLERS, Fresh, ddim_step, trajectory
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Images, append_zero
from fewstep.training.module import DistillationModule

MAX_PATH_STEPS = 16  # longer grids are thinned; the teacher's path may have twice as many steps
NUM_COMPARED = 16  # starts whose every step is compared with the target


class Path(NamedTuple):
    """Where a path ends (data, or an encoder's noise), and the prediction at each step for the first NUM_COMPARED."""

    end: Images
    steps: list[Prediction]


class Grid(NamedTuple):
    """The times of a path.

    Attributes:
        begin: of each step's evaluation, in their order.
        jump_ends: where one jump of the model from each of them lands.
        last: of the path's end.
    """

    begin: Float[Tensor, "steps"]
    jump_ends: Float[Tensor, "steps"]
    last: Float[Tensor, ""]


def path_grid(sampling: Sampling) -> Grid:
    """The model's own times, thinned to MAX_PATH_STEPS; uniform times where it has none of its own.

    A jump is one step of the unthinned grid, two with the sampler `stochastic`, and to t = 0 with `renoise`.
    """
    times = append_zero(sampling.grid(None if sampling.times else MAX_PATH_STEPS))
    times = times if sampling.direction == "decode" else times.flip(0)
    last = len(times) - 1
    index = torch.arange(0, last, last // largest_divisor(last, MAX_PATH_STEPS))
    jump = {"stochastic": 2, "renoise": last}.get(sampling.sampler, 1)
    return Grid(times[index], times[(index + jump).clamp(max=last)], times[-1])


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor up to `most`: the uniform grid of so many steps is part of that of `number` steps."""
    return max(part for part in range(1, most + 1) if number % part == 0)


@dataclass(frozen=True)
class Paths:
    """The paths of a phase's student and of its teacher from the same starts.

    Args:
        fresh: (start, count) -> the noise that a stochastic sampler adds to these examples.
        rows: examples evaluated at once.
    """

    module: DistillationModule
    starts: Starts
    fresh: Callable[[int, int], Fresh]
    rows: int

    def follow(self, denoise: Denoise, sampling: Sampling) -> Path:
        """Sample or encode along `path_grid(sampling)`."""
        begin, _, last = path_grid(sampling)
        return self._follow(denoise, sampling, torch.cat([begin, last[None]]))

    def teacher_samples(self) -> Images | None:
        """Samples of the teacher in its own number of steps, or MAX_PATH_STEPS; None without one, and for encoders."""
        teacher, phase = self.module.nets.teacher, self.module.phase
        if teacher is None or phase.sampling.direction == "encode":
            return None
        sampling = Sampling(sampler="stochastic" if phase.sampling.sampler == "stochastic" else "deterministic")
        most = 2 * MAX_PATH_STEPS
        num_steps = largest_divisor(phase.teacher_steps, most) if phase.teacher_steps else MAX_PATH_STEPS
        return self._follow(teacher, sampling, append_zero(sampling.grid(num_steps))).end

    @torch.no_grad()
    def step_errors(self, path: Path) -> list[tuple[float, float]]:
        """(t, error) of each step of the student's path: rms distance between where its jump and the target's land.

        Empty where the method has no target, or no teacher to make one at the student's own z.
        """
        module, grid, count = self.module, path_grid(self.module.phase.sampling), len(path.steps[0].z)
        if module.nets.teacher is None:
            return []
        all_steps, squares = concatenate(path.steps), []
        begin, end = (times.repeat_interleave(count).to(module.device) for times in (grid.begin, grid.jump_ends))
        _, label, w = self.starts.part(torch.arange(count).repeat(len(path.steps)), module.device)
        for start in range(0, len(begin), self.rows):
            part = slice(start, start + self.rows)
            own = Prediction(all_steps.z[part], all_steps.v[part], all_steps.log_snr[part])
            weights = None if w is None else w[part]
            target = module.method.target(
                own, t=begin[part], label=label[part], w=weights, nets=module.nets, phase=module.phase
            )
            if target is None:
                return []
            log_snr = module.nets.schedule.log_snr(end[part])
            squares.append(mean_square(ddim_step(own, log_snr) - ddim_step(target, log_snr)))
        errors = torch.cat(squares).reshape(len(path.steps), count).mean(1).sqrt()
        return list(zip(grid.begin.tolist(), errors.tolist(), strict=True))

    @torch.no_grad()
    def _follow(self, denoise: Denoise, sampling: Sampling, times: Float[Tensor, "steps_and_end"]) -> Path:
        """Evaluate at all `times` but the last, where the path ends."""
        ends: list[Images] = []
        steps: list[list[Prediction]] = [[] for _ in times[:-1]]
        for start in range(0, len(self.starts.z), self.rows):
            count, last = max(0, NUM_COMPARED - start), None
            for step, last in enumerate(self._predictions(denoise, sampling, times, start)):
                steps[step].append(Prediction(last.z[:count], last.v[:count], last.log_snr[:count]))
            assert last is not None, "a path has a step"
            ends.append(last.x if sampling.direction == "decode" else self._step(last, times[-1]))
        return Path(torch.cat(ends), [concatenate(step) for step in steps])

    def _predictions(
        self, denoise: Denoise, sampling: Sampling, times: Float[Tensor, "steps_and_end"], start: int
    ) -> Iterator[Prediction]:
        """The predictions of `rows` examples from `start` on."""
        z, label, w = self.starts.part(slice(start, start + self.rows), self.module.device)
        schedule, sampler, fresh = self.module.nets.schedule, SAMPLERS[sampling.sampler], self.fresh(start, len(z))
        if sampling.direction == "decode":
            yield from trajectory(
                denoise, z, schedule=schedule, times=times[:-1], label=label, w=w, sampler=sampler, fresh=fresh
            )
            return
        for t, following in pairwise(times):
            prediction = denoise(z, schedule.log_snr(t).to(z.device).expand(len(z)), label, w)
            yield prediction
            z = self._step(prediction, following)

    def _step(self, prediction: Prediction, t: Float[Tensor, ""]) -> Images:
        """A deterministic step to time t."""
        log_snr = self.module.nets.schedule.log_snr(t).to(prediction.z.device)
        return ddim_step(prediction, log_snr.expand(len(prediction.z)))


def concatenate(parts: list[Prediction]) -> Prediction:
    """The predictions of several batches as one."""
    return Prediction(*(torch.cat([getattr(part, name) for part in parts]) for name in ("z", "v", "log_snr")))
