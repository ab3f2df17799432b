"""A base model in front of a student: `student.sample(labels, steps=4, base=Base(teacher))`."""

from dataclasses import dataclass

from fewstep.diffusion.hybrid import FirstSteps
from fewstep.inference.model import Model, require_request


@dataclass(frozen=True)
class Base:
    """The model that takes the first steps of another one, so that samples are as diverse as its own.

    Args:
        model: of any number of steps, like a teacher or a guided student.
        steps: of the base, from the noise on. w: its own guidance weight; 0, the most diverse, costs a teacher one
            evaluation a step instead of two.
        level: the student's level that they go down to: so many of the student's steps are left out.
    """

    model: Model
    steps: int = 1
    w: float = 0.0
    level: int = 1

    @property
    def first_steps(self) -> FirstSteps:
        """These steps, as tensors see them."""
        return FirstSteps(self.model.denoise, self.steps, self.w, self.level)

    def before(self, student: Model) -> FirstSteps:
        """`first_steps`, after all checks of whether they suit a student.

        Raises:
            ValueError: a base that is a few-step student or an encoder, or of other data; or a value that is refused.
        """
        card = self.model.card
        if card.encodes or card.sampling.times is not None or card.sampling.sampler != "deterministic":
            what = "an encoder" if card.encodes else f"{card.label}, made for {self.model.default_steps} steps"
            raise ValueError(
                f"a base takes any number of steps, as a teacher or a guided student does, and this one is {what}"
            )
        if card.data != student.card.data:
            raise ValueError(
                f"a base must be of the student's own data, {student.card.data.name} of shape "
                f"{student.card.data.shape}, and this one makes {card.data.name} of shape {card.data.shape}"
            )
        require_request(self.steps, self.w, "steps of the base")
        self.model.warn_of_request("base", self.steps, self.w)
        self.model.to(next(student.denoiser.parameters()).device)
        return self.first_steps
