"""FreeFlow: a data-free flow map from noise, predicted along its own path and corrected by a fake flow."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fewstep.data.batch import Batch
from fewstep.diffusion.flow_map import log_snr_of, mean_velocity
from fewstep.diffusion.prediction import diffuse
from fewstep.diffusion.sampler import ddim_step
from fewstep.diffusion.schedule import Images, angle, expand
from fewstep.methods.base import Networks, Phase, Times
from fewstep.methods.derivative import Derivative, along_the_flow
from fewstep.methods.draws import Draws
from fewstep.methods.flow_map import predict_to
from fewstep.methods.from_noise import FromNoise
from fewstep.methods.losses import Loss, regress
from fewstep.methods.training import STUDENT
from fewstep.system.validation import NotNegative

FAKE = "fake"


@dataclass(frozen=True, kw_only=True)
class FreeFlow(FromNoise):
    """Flow-map distillation without data (Tong et al. 2025), in the angle.

    *Prediction*: the mean velocity u from noise at phi_1 down to psi obeys u = v(f, psi) + (phi_1 - psi) du/dpsi, f the
    student's own state: regress to that of the teacher's v, each squared error divided by (itself + 0.01)^power.
    *Correction*: the student's samples, noised, are moved along v_fake - v_teacher, where the fake flow learns from
    these samples (`matching_direction` in velocities), by `correction` times the size of the prediction's error.

    Args:
        correction: size of the correction, 0 for none, and then no fake flow.
        power: of the division. derivative: of u along psi, jvp or finite_difference.
        The rest: see `FromNoise`; `training.roles` needs fake where there is a correction.

    Raises:
        ValueError: a negative size or power.
    """

    paper: ClassVar[str] = "Tong et al. 2025 (2511.19428)"
    optional_roles: ClassVar[tuple[str, ...]] = (FAKE,)
    certainty: ClassVar[str] = (
        "both terms are from a detailed note of the paper; the circular path, both terms on all examples and uniform "
        "times are ours"
    )

    name: str = "freeflow"
    correction: NotNegative = 1.0
    power: NotNegative = 1.0
    derivative: Derivative = "jvp"

    def __post_init__(self) -> None:
        super().__post_init__()
        for role in self.roles:
            self.training.of_role(role)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, FAKE) if self.correction else (STUDENT,)

    def networks(self, nets: Networks, stream: str) -> Networks:
        fake = {FAKE: deepcopy(nets.student)} if self.correction else {}
        return replace(super().networks(nets, stream), trained=fake)

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        label = batch.label
        teacher, w = nets.teacher_and_weights(draws)
        eps, s = draws.normal(), draws.uniform().double()
        start, psi = nets.schedule.log_snr(torch.ones_like(s)), angle(nets.schedule.log_snr(s))

        def student(z: Images, psi: Times) -> Images:
            end = log_snr_of(psi)
            return mean_velocity(predict_to(nets.student, z, log_snr=start, log_snr_end=end, label=label, w=w), end)

        before, change = along_the_flow(student, eps, psi, torch.zeros_like(eps), self.derivative)
        length = expand(angle(start) - psi, eps)
        velocity = teacher(eps - length * before, log_snr_of(psi), label, w).v
        error = (student(eps, psi) - velocity - length * change).square().flatten(1).mean(1)
        loss = Loss(error / (error.detach() + 0.01) ** self.power, s, w)
        if not self.correction:
            return {STUDENT: loss}
        end = nets.schedule.log_snr(torch.zeros_like(s))
        x = ddim_step(predict_to(nets.student, eps, log_snr=start, log_snr_end=end, label=label, w=w), end)
        t = draws.uniform().double()
        noised = diffuse(x=x.detach(), eps=draws.normal(), log_snr=nets.schedule.log_snr(t))
        fake = predict_to(
            nets.trained[FAKE], noised.z, log_snr=noised.log_snr, log_snr_end=noised.log_snr, label=label, w=w
        )
        with torch.no_grad():
            direction = teacher(noised.z, noised.log_snr, label, w).v - fake.v
            size = self.correction * loss.error.sqrt() / (direction.square().flatten(1).mean(1).sqrt() + 1e-3)
        goal = (x - expand(size, x) * direction).detach()
        moved = 0.5 * (x - goal).square().flatten(1).mean(1)
        return {
            STUDENT: replace(loss, error=loss.error + moved),
            FAKE: regress(fake, noised, self.training, t=t, w=w),
        }
