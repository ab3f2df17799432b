"""The two-hop identity: z_t to z_u by a first prediction, z_u to z_s by a second model, read as one prediction at z_t.

Most distillation targets are this one identity; they differ in who predicts and in the three times t > u >= s:

    method                first, at z_t             second, at z_u     u                     s
    PD                    teacher                   teacher            half a step below t   one student step below t
    TRACT                 teacher                   self-teacher       a teacher step below  the end of t's group
    CD, LCM               teacher (guided)          self-teacher       a grid level below    0, the end of the schedule
    CT                    the truth, `diffuse`      self-teacher       a grid level below    0, the end of the schedule
    SFDDM-style (a fold)  fold of the steps before  teacher            where that fold ends  a teacher step below u

(Salimans & Ho 2022, algorithm 2; Berthelot et al. 2023; Song et al. 2023, algorithms 2 and 3; Luo et al. 2023.) The
self-teacher is an average of the student or the student itself, without gradient. A fold starts with the teacher's
prediction at z_t and is repeated until c teacher steps are one.
"""

import torch

from fewstep.diffusion.prediction import Condition, Denoise, Prediction, Weights
from fewstep.diffusion.sampler import ddim_step, invert_ddim
from fewstep.diffusion.schedule import Batch, Images, Schedule, angle, expand


@torch.no_grad()
def two_hop(
    *,
    first: Prediction,
    second: Denoise,
    log_snr_mid: Batch,
    log_snr_end: Batch,
    label: Condition,
    w: Weights | None,
) -> Prediction:
    """The prediction at z_t whose one DDIM step to s lands where two hops do: t -> u by `first`, u -> s by `second`.

    With angle steps d1 = phi_t - phi_u, d2 = phi_u - phi_s, d = d1 + d2, v1 of `first` at z and v2 of `second` at z_u:

        v = (sin(d1) cos(d2) v1 + sin(d2) v2 - sin(d1) sin(d2) z) / sin(d)

    which equals x = (sin(phi_t) z_s - sin(phi_s) z) / sin(d) without its cancellation: for d1 = d2 = d/2 it is
    (v1 + v2 / cos(d/2) - tan(d/2) z) / 2, and no term grows as d shrinks. (Our derivation; tested against
    `invert_ddim` in float64.)

    Args:
        first: the teacher's prediction at z_t, or the truth (`diffuse`) for a hop along the data.
        second: called once, on the whole batch, at z_u. Where u = s its answer has weight 0 and v is v1, exactly.
        log_snr_mid, log_snr_end: log-SNR at u and at s, with t > u >= s.
        label, w: passed to `second` as they are.
    """
    z = first.z
    then = second(ddim_step(first, log_snr_mid), log_snr_mid, label, w)
    d1, d2 = angle(first.log_snr) - angle(log_snr_mid), angle(log_snr_mid) - angle(log_snr_end)
    whole = torch.sin(d1 + d2)
    v = (
        expand(torch.sin(d1) * torch.cos(d2) / whole, z) * first.v
        + expand(torch.sin(d2) / whole, z) * then.v
        - expand(torch.sin(d1) * torch.sin(d2) / whole, z) * z
    )
    return Prediction(z=z, v=v, log_snr=first.log_snr)


@torch.no_grad()
def folded(
    teacher: Denoise,
    z: Images,
    *,
    t: Batch,
    t_end: Batch,
    num_steps: int,
    schedule: Schedule,
    label: Condition,
    w: Weights | None,
) -> Prediction:
    """The prediction at z whose one DDIM step lands where `num_steps` of the teacher do, equally long in t.

    Args:
        t, t_end: the time of z and the end of the steps, of each example.
        label, w: passed to the teacher as they are.
    """
    start = log_snr = schedule.log_snr(t)
    moved = z
    for step in range(1, num_steps + 1):
        following = schedule.log_snr(t + (t_end - t) * (step / num_steps))
        moved, log_snr = ddim_step(teacher(moved, log_snr, label, w), following), following
    return invert_ddim(z=z, z_next=moved, log_snr=start, log_snr_next=log_snr)
