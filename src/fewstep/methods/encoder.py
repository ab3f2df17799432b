"""The reversed chain, one rung: two steps of the teacher from data towards noise into one step of the student."""

from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.schedule import Schedule, time_grid
from fewstep.methods.base import Training
from fewstep.methods.draws import Draws
from fewstep.methods.progressive import ProgressiveStage, Times
from fewstep.networks import Denoiser


class EncoderStage(ProgressiveStage):
    """An encoder of `num_steps` steps from one of twice as many (Meng et al. 2023, on encoding and style transfer).

    Times are i / N, i uniform in 0..N-1 for N = `num_steps`, and the step from t ends at t + 1/N; t = 0 is among them,
    where encoding begins. The target is that of `ProgressiveStage` with the steps taken towards noise: the same formula
    with negative angles. Deterministic, by its nature. How the paper sets it up beyond "the reverse-direction DDIM,
    distilled in the same way" we could not read; the rest is ours.

    Args: see `ProgressiveStage`; w_min, w_max are the encoder's own, inside the parent's range.

    Raises:
        ValueError: the network predicts x.
    """

    name = "encoder"

    def __init__(
        self,
        *,
        student: Denoiser,
        teacher: Denoise,
        schedule: Schedule,
        training: Training,
        stream: str,
        num_steps: int,
        w_min: float,
        w_max: float,
    ) -> None:
        if student.prediction == "x":
            raise ValueError(
                "an encoder begins at data without noise, where a predicted x says nothing of the noise to come, and "
                "this parent predicts x; use one that predicts v or eps"
            )
        super().__init__(
            student=student,
            teacher=teacher,
            schedule=schedule,
            training=training,
            stream=stream,
            num_steps=num_steps,
            w_min=w_min,
            w_max=w_max,
        )

    @property
    def times(self) -> Times:
        return time_grid(self.num_steps).flip(0)[:-1]

    def jump(self, t: Times) -> tuple[Times, Times]:
        return t + 0.5 / self.num_steps, t + 1 / self.num_steps

    def draw_times(self, draws: Draws) -> Times:
        return draws.integers(0, self.num_steps).double() / self.num_steps
