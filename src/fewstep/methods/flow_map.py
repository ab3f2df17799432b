"""Flow maps between any two times: what their methods share, and AYF, which holds such a map still along the flow."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from fewstep.data.batch import Batch
from fewstep.diffusion.flow_map import log_snr_of, start_derivative
from fewstep.diffusion.prediction import Condition, Denoise, Prediction, diffuse
from fewstep.diffusion.sampler import END, ddim_step
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Images, angle, network_time
from fewstep.methods.base import Method, Networks, Phase, Times, Weights
from fewstep.methods.derivative import Derivative, along_the_flow
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss, pull
from fewstep.methods.scm import normalised
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.methods.training import STUDENT
from fewstep.system.validation import AtLeastOne, ShareAboveZero


@dataclass(frozen=True, kw_only=True)
class FlowMapStudent(GuidedStudentSettings, Method):
    """A method whose student is told where its step ends (the input s).

    Args:
        The rest: see `Method` and `GuidedStudentSettings`.
    """

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """The most steps that it is sampled with, uniformly; every divisor is another number."""

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling.uniform(self.most_steps, sampler="flow_map", guidance="input")),)


@dataclass(frozen=True, kw_only=True)
class AnyStepStudent(FlowMapStudent):
    """A student of steps between any two times: one for all step counts.

    Args:
        num_steps: the most that it is sampled with, uniformly; every divisor is another.
        derivative: of the network along the flow, jvp or finite_difference.
        The rest: see `FlowMapStudent`.

    Raises:
        ValueError: fewer than one step.
    """

    num_steps: AtLeastOne = 8
    derivative: Derivative = "jvp"

    def with_steps(self, num_steps: int) -> "AnyStepStudent":
        return replace(self, num_steps=num_steps)

    @property
    def most_steps(self) -> int:
        return self.num_steps


def predict_to(
    denoise: Denoise, z: Images, *, log_snr: Times, log_snr_end: Times, label: Condition, w: Weights | None
) -> Prediction:
    """What a flow map predicts at z for its step from one log-SNR to another; `ddim_step` takes it."""
    return denoise(z, log_snr, label, w, extra={END: network_time(log_snr_end)})  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True, kw_only=True)
class FlowMap(AnyStepStudent):
    """AYF's Eulerian map distillation (Sabour et al. 2025), in the angle: f(z, t, s) shall not change along the flow.

    The derivative g = df/dphi along the teacher's flow, the second term of which counts
    most_share * min(1, images / tangent_warmup_images), pulls f by -g / (|g| + 0.1). t is uniform in [0, 1], s in
    [0, t]. Where g is 0, f(z, t, s) is where the flow takes z; at s = 0 it is continuous-time consistency.

    Args:
        tangent_warmup_images, most_share: see above; the share stays below 1, as in the paper.
        The rest: see `AnyStepStudent`.

    Raises:
        ValueError: a share outside (0, 1] or no warm-up.
    """

    paper: ClassVar[str] = "Sabour et al. 2025 (2506.14603), AYF-EMD"
    certainty: ClassVar[str] = (
        "the loss and the share are sure; draws of t and s, the circular path and guidance by w in the place of "
        "autoguidance are ours, and its adversarial stage is left out"
    )

    name: str = "flow_map"
    tangent_warmup_images: AtLeastOne = 100_000
    most_share: ShareAboveZero = 0.99

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        teacher, w = nets.teacher_and_weights(draws)
        t = draws.uniform().double()
        log_snr, end = nets.schedule.log_snr(t), nets.schedule.log_snr(t * draws.uniform())
        noised = diffuse(x=x, eps=draws.normal(), log_snr=log_snr)
        velocity = teacher(noised.z, log_snr, label, w).v

        def student(z: Images, phi: Times) -> Images:
            return predict_to(nets.student, z, log_snr=log_snr_of(phi), log_snr_end=end, label=label, w=w).v

        before, change = along_the_flow(student, noised.z, angle(log_snr), velocity, self.derivative)
        share = self.most_share * min(1.0, step * self.training.batch_size / self.tangent_warmup_images)
        known = Prediction(z=noised.z, v=before, log_snr=log_snr)
        tangent = start_derivative(known, end, velocity=velocity, change=change, share=share)
        landed = ddim_step(predict_to(nets.student, noised.z, log_snr=log_snr, log_snr_end=end, label=label, w=w), end)
        return {STUDENT: pull(landed, normalised(tangent), t=t, w=w)}
