"""A network of the user's own, called as the library's networks are."""

import copy
from collections.abc import Sequence
from inspect import Parameter, signature

import torch
from torch import nn

from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.networks.inputs import Scalar, Scalars, plain_arguments

EXTRA = "extra"


class OwnNetwork(nn.Module):
    """A module whose forward(z, log_snr, label, w) gives x, eps or v of z's shape.

    It is told the log-SNR itself, (batch,), and w only as a student that has it for an input: None else. A method that
    tells its student more, like the end of a step, gives it as `extra`, a mapping of names to (batch,), which the
    forward must then take.

    Args:
        network: the module, which this one holds and trains.
        shape, num_classes, guidance_input, extra_inputs: as of the library's networks.
        name: of the module's class, for messages.

    Raises:
        ValueError: extra inputs for a forward that takes none.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        shape: Sequence[int],
        num_classes: int,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
        name: str = "",
    ) -> None:
        super().__init__()
        name = type(network).__name__
        self.arguments = plain_arguments({key: value for key, value in locals().items() if key != "network"})
        if extra_inputs and not takes_extra(network):
            raise ValueError(
                f"this method tells its student {', '.join(extra_inputs)} too, and {name}.forward has no argument for "
                f"it: forward(z, log_snr, label, w, {EXTRA}), a mapping of names to numbers; or use another method"
            )
        self.network = network

    def forward(
        self, z: Images, log_snr: Scalar, label: Condition, w: Scalar | None, extra: Scalars | None = None
    ) -> Images:
        return self.network(z, log_snr, label, w) if extra is None else self.network(z, log_snr, label, w, extra)

    def remade(self, *, guidance_input: bool, extra_inputs: Sequence[str]) -> "OwnNetwork":
        """A copy with other inputs; the module's own weights are what they were."""
        own = {key: self.arguments[key] for key in ("shape", "num_classes")}
        return OwnNetwork(copy.deepcopy(self.network), guidance_input=guidance_input, extra_inputs=extra_inputs, **own)

    def depends_on_w(self) -> bool:
        """Whether its output is computed from w, also where a weight that w meets is zero yet."""
        weight = next(self.parameters())
        z = torch.zeros(2, *self.arguments["shape"], device=weight.device)
        w = torch.ones(2, device=weight.device, requires_grad=True)
        output = self(z, z.new_zeros(2), torch.zeros(2, dtype=torch.long, device=weight.device), w)
        return output.requires_grad and torch.autograd.grad(output.sum(), w, allow_unused=True)[0] is not None


def takes_extra(network: nn.Module) -> bool:
    """Whether a module's forward has a fifth argument, or any number of them."""
    parameters = [*signature(network.forward).parameters.values()]
    positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 4 or any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
