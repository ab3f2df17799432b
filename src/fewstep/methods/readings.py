"""Where a network cannot be read as x or as eps: at data, and where nothing but noise is left.

The latter is no matter for networks with a native schedule, which are evaluated no noisier than they know
(`lowest_log_snr`).
"""

from math import exp

from fewstep.diffusion.prediction import PredictionKind
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.methods.base import Method, Networks, Phase
from fewstep.methods.student_settings import StudentSettings

LEAST_ALPHA = 1e-3  # of the noisiest level at which x is read from eps


def require_identity_at_data(method: Method, nets: Networks) -> None:
    """Check that the student's x is z itself at t = 0, without which consistency has the solution x = 0.

    Raises:
        ValueError: it predicts x.
    """
    if nets.student.prediction == "x":
        raise ValueError(
            f"stage={method.name} needs a student that predicts v or eps, whose x is the identity at t = 0, and this "
            "one predicts x; use stage.prediction=v"
        )


def check_student_at_noise(method: Method, phase: Phase, kind: PredictionKind, schedule: CosineSchedule) -> None:
    """Check that a few-step student, whose first evaluation is at t = 1, can be read there.

    x = (z - sigma eps) / alpha multiplies the error of eps by 1 / alpha, 22,000 where the cosine schedule ends.

    Raises:
        ValueError: it predicts eps, and no signal is left.
    """
    sampling = phase.sampling
    starts_at_noise = sampling.times is not None and sampling.times[0] == 1 and sampling.direction == "decode"
    if kind == "eps" and starts_at_noise and ends_without_signal(schedule):
        raise ValueError(
            f"a student of stage={method.name} is evaluated at t = 1, where no signal is left and x cannot be read "
            "from eps, which it predicts; use stage.prediction=v"
        )


def check_teacher_at_noise(method: Method, phase: Phase, kind: PredictionKind, schedule: CosineSchedule) -> None:
    """Check that a teacher can be read at the levels of a grid that begins at t = 1; see `check_student_at_noise`.

    Raises:
        ValueError: it predicts eps, unclipped, and no signal is left.
    """
    on_grid = method.times(phase) is not None and phase.sampling.direction == "decode"
    clips = isinstance(method, StudentSettings) and method.clip_target
    if kind == "eps" and on_grid and not clips and ends_without_signal(schedule):
        raise ValueError(
            f"the teacher of stage={method.name} is evaluated at t = 1, where no signal is left and x cannot be read "
            "from eps, which it predicts; use one that predicts v (stage=guidance stage.prediction=v makes one), or "
            "stage.clip_target=true"
        )


def ends_without_signal(schedule: CosineSchedule) -> bool:
    """Whether alpha(1) is zero for all purposes."""
    return exp(schedule.log_snr_min / 2) < LEAST_ALPHA
