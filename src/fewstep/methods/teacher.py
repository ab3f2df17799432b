"""Stage zero: a classifier-free guided teacher, in continuous time."""

from jaxtyping import Float
from torch import Tensor

from fewstep.data.batches import Batch
from fewstep.diffusion.guidance import nulls
from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.diffusion.schedule import Schedule
from fewstep.methods.base import Regression, Stage, Training
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser


class TeacherStage(Stage):
    """Learn E[x | z, label] and, with a share of the labels dropped, E[x | z] (Ho & Salimans 2021, algorithm 1).

    Args:
        label_dropout: share of labels replaced by it, in [0, 1].
        The rest: see `Stage`.

    Raises:
        ValueError: a share outside [0, 1].
    """

    name = "teacher"
    has_dropout = True

    def __init__(
        self,
        *,
        student: Denoiser,
        schedule: Schedule,
        training: Training,
        stream: str,
        label_dropout: float,
    ) -> None:
        super().__init__(student=student, schedule=schedule, training=training, stream=stream)
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"stage.label_dropout must be in [0, 1], got {label_dropout}; the usual share is 0.1")
        self.label_dropout = label_dropout

    def regression(self, batch: Batch) -> Regression:
        x, label = batch
        draws = Draws.like(x)
        t, eps, kept = draws.uniform(), draws.normal(), draws.uniform() >= self.label_dropout
        self.part_ways()
        truth = diffuse(x=x, eps=eps, log_snr=self.schedule.log_snr(t))
        label = label.where(kept.reshape(-1, *[1] * (label.ndim - 1)), nulls(label, self.student.null))
        prediction = self.student(truth.z, truth.log_snr, label)
        return Regression(prediction, self.target(truth, t, label, None), t, None)

    def target(
        self, noised: Prediction, t: Float[Tensor, "batch"], label: Condition, w: Float[Tensor, "batch"] | None
    ) -> Prediction:
        return noised
