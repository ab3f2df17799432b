"""Stage one: the two evaluations of guidance into one w-conditioned student."""

from collections.abc import Sequence

from fewstep.data.batches import Batch
from fewstep.diffusion.prediction import Denoise, diffuse
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.target import guided_target
from fewstep.networks import Denoiser
from fewstep.stages.base import Draw, GuidanceRange, Regression, Stage, Training
from fewstep.stages.draws import Draws


class GuidanceStage(Stage):
    """Regress to the guided teacher over t ~ U[0, 1] and w of the guidance range (Meng et al. 2023, section 3.1).

    Args:
        student: has a w input.
        teacher: `Guided`, around a frozen network or the exact mixture.
        The rest: see `Stage` and `GuidanceRange`.
    """

    name = "guidance"

    def __init__(
        self,
        *,
        student: Denoiser,
        teacher: Denoise,
        schedule: Schedule,
        training: Training,
        stream: str,
        w_min: float,
        w_max: float,
        w_draw: Draw = "uniform",
        w_values: Sequence[float] | None = None,
    ) -> None:
        super().__init__(student=student, schedule=schedule, training=training, stream=stream)
        self.teacher = teacher
        self.guidance = GuidanceRange(w_min, w_max, w_draw, w_values)

    def regression(self, batch: Batch) -> Regression:
        x, label = batch
        draws = Draws.like(x)
        t, eps, w = draws.uniform(), draws.normal(), self.guidance.draw(draws)
        log_snr = self.schedule.log_snr(t)
        z = diffuse(x=x, eps=eps, log_snr=log_snr).z
        target = guided_target(teacher=self.teacher, z=z, log_snr=log_snr, label=label, w=w)
        return Regression(self.student(z, log_snr, label, w), target, t, w)
