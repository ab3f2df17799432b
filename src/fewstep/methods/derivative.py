"""The derivative of what a network gives along the flow, which continuous-time targets need."""

import re
from collections.abc import Callable
from typing import Literal

import torch
from torch.autograd import forward_ad

from fewstep.diffusion.schedule import Batch, Images

Derivative = Literal["jvp", "finite_difference"]
# Of the angle, in finite differences: more than the shortest wavelength of a network's sinusoids of time, 2 pi / 1000
# of t, whose derivative is noise to what the network learnt. With the exact derivative small networks diverge at the
# learning rates that they need (docs/methods.md).
STEP = 2e-2


@torch.no_grad()
def along_the_flow(
    of: Callable[[Images, Batch], Images], z: Images, phi: Batch, velocity: Images, how: Derivative
) -> tuple[Images, Images]:
    """`of(z, phi)` and d of/dphi along dz/dphi = velocity, as constants.

    Args:
        phi: angles, float64. how: forward-mode differentiation in the same call, or a second call at phi - STEP (and
            half of phi at most), whose error is of first order.

    Raises:
        ValueError: a part of the network has no forward-mode derivative.
    """
    if how == "finite_difference":
        here, step = of(z, phi), (phi / 2).clamp(max=STEP)
        back = step.to(z).reshape(-1, *[1] * (z.ndim - 1))
        return here, (here - of(z - back * velocity, phi - step)) / back
    try:
        with forward_ad.dual_level():
            found = of(forward_ad.make_dual(z, velocity), forward_ad.make_dual(phi, torch.ones_like(phi)))
            here, change = forward_ad.unpack_dual(found)
            return here, torch.zeros_like(here) if change is None else change
    except RuntimeError as error:  # torch's own for a part without one, and for much else
        if not re.search("forward[- ](mode )?AD", str(error)):
            raise
        raise ValueError(
            "stage.derivative=jvp needs a network whose every part has a forward-mode derivative, and this one has a "
            f"part without ({str(error).splitlines()[0]:.80}); use stage.derivative=finite_difference"
        ) from error
