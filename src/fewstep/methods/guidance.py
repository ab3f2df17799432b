"""Stage one: the two evaluations of guidance into one w-conditioned student."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from fewstep.data.batches import Batch
from fewstep.diffusion.prediction import Condition, Denoise, Prediction, diffuse
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.target import guided_target
from fewstep.methods.base import Draw, GuidanceRange, Regression, Stage, Training
from fewstep.methods.draws import Draws
from fewstep.methods.feature_matching import FeatureMatching
from fewstep.networks import Denoiser


class GuidanceStage(Stage):
    """Regress to the guided teacher over t ~ U[0, 1] and w of the guidance range (Meng et al. 2023, section 3.1).

    Args:
        student: has a w input.
        teacher: `Guided`, around a frozen network or the exact mixture.
        feature_matching: weight of `FeatureMatching`'s error; 0 is none.
        The rest: see `Stage` and `GuidanceRange`.

    Raises:
        ValueError: a negative weight, or features wanted of a teacher that is no network, or is clipped.
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
        feature_matching: float = 0.0,
    ) -> None:
        if feature_matching < 0:
            raise ValueError(f"stage.feature_matching must be at least 0, got {feature_matching}; 0 is none")
        super().__init__(student=student, schedule=schedule, training=training, stream=stream)
        self.teacher = teacher
        self.guidance = GuidanceRange(w_min, w_max, w_draw, w_values)
        self.feature_matching = feature_matching
        self.features = FeatureMatching.between(student, teacher, stream) if feature_matching else None
        if self.features is not None:
            self._beside = [*self.features.parameters()]

    def regression(self, batch: Batch) -> Regression:
        x, label = batch
        draws = Draws.like(x)
        t, eps, w = draws.uniform(), draws.normal(), self.guidance.draw(draws)
        noised = diffuse(x=x, eps=eps, log_snr=self.schedule.log_snr(t))
        target = self.target(noised, t, label, w)
        return Regression(self.student(noised.z, noised.log_snr, label, w), target, t, w)

    def target(
        self, noised: Prediction, t: Float[Tensor, "batch"], label: Condition, w: Float[Tensor, "batch"] | None
    ) -> Prediction:
        assert w is not None, "a guided student is taught at some w"
        return guided_target(teacher=self.teacher, z=noised.z, log_snr=noised.log_snr, label=label, w=w)

    def hint(self) -> Float[Tensor, "batch"] | None:
        return None if self.features is None else self.feature_matching * self.features()
