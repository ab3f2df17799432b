"""What is judged: a model with its sampler and its numbers of steps, and a base in front of it or not."""

from dataclasses import dataclass

from fewstep.diffusion.guidance import Weight
from fewstep.diffusion.hybrid import FirstSteps
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Candidate:
    """A model in the grid.

    Args:
        model: its label. evaluations: of the network per step.
        steps: numbers of steps, each a cell, at the evaluation times that `sampling` has for it.
        solver: one of SOLVERS or SAMPLERS instead of the model's own sampler, for a baseline.
        weights: the guidance weights of its cells; None for all of the plan.
        digest: of all that its samples depend on besides the cell, for a model whose samples may be kept; else None.
        first: of a hybrid, the part of its base.
    """

    model: str
    denoise: Denoise
    evaluations: int
    schedule: Schedule
    steps: tuple[int, ...]
    sampling: Sampling
    solver: str | None = None
    weights: tuple[Weight, ...] | None = None
    digest: str | None = None
    first: FirstSteps | None = None

    @property
    def sampler(self) -> str:
        """Key of SAMPLERS or SOLVERS."""
        return self.solver or self.sampling.sampler

    @property
    def name(self) -> str:
        """The label of the model, with its base or the solver of a baseline."""
        if self.first is not None:
            return f"{self.model} + base"
        return self.model if self.solver is None else f"{self.model}-{self.solver}"

    @property
    def sampler_name(self) -> str:
        """The sampler's name in rows and pictures, where the deterministic one is DDIM."""
        name = "ddim" if self.sampler == "deterministic" else self.sampler
        return name if self.first is None else f"base + {name}"

    @property
    def fewest_steps(self) -> int:
        """That it can take."""
        return 1 if self.first is None else 1 + self.first.level

    def evaluations_of(self, steps: int) -> list[tuple[Denoise, int]]:
        """The denoisers of a sample of so many steps, each with its network evaluations."""
        if self.first is None:
            return [(self.denoise, steps * self.evaluations)]
        rest = len(self.first.remaining(self.sampling.grid(steps)))
        return [(self.first.denoise, self.first.evaluations), (self.denoise, rest * self.evaluations)]

    def nfe(self, steps: int) -> int:
        """Network evaluations per image."""
        return sum(evaluations for _, evaluations in self.evaluations_of(steps))
