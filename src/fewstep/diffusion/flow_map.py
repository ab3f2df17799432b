"""Flow maps: where the probability flow takes z from one angle to another, and what holds of an exact one.

In the angle (alpha = cos phi, sigma = sin phi) the flow is dz/dphi = v. A network that is told the end psi of its step
is read as a step of DDIM with d = phi - psi (`ddim_step`):

    f(z, phi, psi) = cos(d) z - sin(d) F(z, phi, psi)

F is v itself at d = 0. The mean velocity of the step, what MeanFlow's networks give, is u = (z - f) / d.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Batch, Images, angle, expand


def mean_velocity(prediction: Prediction, log_snr_end: Batch) -> Images:
    """u = (z - f) / d = ((1 - cos d) z + sin(d) F) / d, without cancellation: F at d = 0."""
    z, d = prediction.z, angle(prediction.log_snr) - angle(log_snr_end)
    of_z = torch.sin(d / 2) * torch.sinc(d / (2 * torch.pi))
    return expand(of_z, z) * z + expand(torch.sinc(d / torch.pi), z) * prediction.v


def start_derivative(
    prediction: Prediction, log_snr_end: Batch, *, velocity: Images, change: Images, share: float = 1.0
) -> Images:
    """df/dphi of a flow map along dz/dphi = velocity, which is 0 for an exact one:

        df/dphi = cos(d) (velocity - F) - share sin(d) (z + dF/dphi)

    At psi = 0 and times cos(phi) it is the tangent of continuous-time consistency (Lu & Song 2025, algorithm 1).

    Args:
        prediction: F at (z, phi). velocity: of the flow at z, the teacher's v. change: dF/dphi along the flow.
        share: of the second term, which is raised from 0 to 1 while training begins.
    """
    z, d = prediction.z, angle(prediction.log_snr) - angle(log_snr_end)
    first, second = torch.cos(d), share * torch.sin(d)
    return expand(first, z) * (velocity - prediction.v) - expand(second, z) * (z + change)


def log_snr_of(phi: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The log-SNR at an angle, the inverse of `angle`."""
    return -2 * torch.log(torch.tan(phi))
