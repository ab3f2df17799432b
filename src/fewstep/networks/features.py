"""The features of a network in its middle, of its attention there or before its output, watched while it is called."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.diffusion.prediction import Clipped, Denoise
from fewstep.networks.denoiser import Denoiser, arguments_of
from fewstep.networks.memory import denoisers_in
from fewstep.networks.own import OwnNetwork
from fewstep.networks.routed import Routed
from fewstep.networks.smaller import blocks, middle


class MiddleFeatures:
    """The output of the middle of a denoiser's network (`middle`) at its latest call.

    Being no Module it is no part of a model. It adds a forward hook and calls the network once, on one empty example,
    to learn how many channels there are.

    Raises:
        ValueError: the model has several networks.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        require_one_network(denoiser)
        self._latest: Tensor | None = None
        self._watch(denoiser)
        call_once(denoiser)
        *places, self.channels = self.take().shape[1:]
        self.places = tuple(places)

    def _watch(self, denoiser: Denoiser) -> None:
        middle(denoiser.network).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._latest = output[0] if isinstance(output, tuple) else output

    def take(self) -> Float[Tensor, "batch *places channels"]:
        """The features of the latest call, once; maps (batch, channels, height, width) get their channels last."""
        features, self._latest = self._latest, None
        assert features is not None, "the network has not been called since its features were taken"
        return features.movedim(1, -1) if features.ndim == 4 else features

    def pooled(self) -> Float[Tensor, "batch channels"]:
        """The features of the latest call, their mean over places."""
        features = self.take()
        return features.flatten(1, -2).mean(1) if features.ndim > 2 else features


class BlockFeatures(MiddleFeatures):
    """The output of one block of a denoiser's network, see `blocks`, at its latest call."""

    def __init__(self, denoiser: Denoiser, block: nn.Module) -> None:
        self._block = block
        super().__init__(denoiser)

    def _watch(self, denoiser: Denoiser) -> None:
        self._block.register_forward_hook(self._keep)


class MiddleAttention(MiddleFeatures):
    """What the self-attention nearest to the middle of a denoiser's network adds to its input.

    It is the first one in the middle; of a U-Net without one there the last one on the way down.

    Raises:
        ValueError: the network does not attend.
    """

    def _watch(self, denoiser: Denoiser) -> None:
        network = denoiser.network
        down = network.get_submodule("unet.down_blocks") if hasattr(network, "unet") else nn.ModuleList()
        layers = [*attention_in(middle(network)), *reversed(attention_in(down))]
        if not layers:
            raise ValueError(
                f"attention_matching needs a network with attention, and this {type(network).__name__} has none; use "
                "attention_matching=0, or another model="
            )
        layers[0].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: Any, output: Any) -> None:
        added = arguments[0] if module.residual_connection else 0
        self._latest = output * module.rescale_output_factor - added


class LastFeatures(MiddleFeatures):
    """What goes into the output layer of a denoiser's network: the last linear map or convolution that is called."""

    def _watch(self, denoiser: Denoiser) -> None:
        called: list[nn.Module] = []
        layers = [each for each in denoiser.network.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        watches = [each.register_forward_hook(lambda module, *_: called.append(module)) for each in layers]
        call_once(denoiser)
        for watch in watches:
            watch.remove()
        called[-1].register_forward_pre_hook(lambda module, arguments: self._keep(module, (), arguments[0]))


def block_features(denoiser: Denoiser) -> list[BlockFeatures]:
    """Those of each block of the network, from its first to its last.

    Raises:
        ValueError: the model has several networks.
    """
    require_one_network(denoiser)
    return [BlockFeatures(denoiser, block) for block in blocks(denoiser.network)]


def require_one_network(denoiser: Denoiser) -> None:
    """Refuse a model of several networks or of the user's own, which has no features of each example in one place."""
    if isinstance(denoiser.network, OwnNetwork):
        raise ValueError(
            "features are of the library's networks, in which it knows the blocks, and this one is the user's own; "
            "use a method or a setting without them"
        )
    if isinstance(denoiser.network, Routed):
        raise ValueError(
            "features must be of one network, and this model has several; leave them out, or use another parent"
        )


def attention_in(module: nn.Module) -> list[nn.Module]:
    """diffusers' layers of attention inside a module, in their order."""
    return [each for each in module.modules() if hasattr(each, "to_q")]


@torch.no_grad()
def call_once(denoiser: Denoiser) -> None:
    """Call a denoiser on one empty example without a condition."""
    weight = next(denoiser.parameters())
    null = denoiser.null
    label = null[None].to(weight.device) if isinstance(null, Tensor) else torch.tensor([null], device=weight.device)
    nothing = torch.zeros(1, device=weight.device)
    z = nothing.new_zeros(1, *arguments_of(denoiser.network)["shape"])
    denoiser(z, nothing, label, nothing, extra=dict.fromkeys(denoiser.extra_inputs, nothing))


def network_of(teacher: Denoise | None, setting: str, none: str = "0") -> Denoiser:
    """The network of a teacher whose features are wanted by `setting`, which is switched off by `none`.

    Raises:
        ValueError: the teacher is no network, or is clipped.
    """
    networks = list(denoisers_in(teacher))
    if isinstance(teacher, Clipped) or len(networks) != 1:
        raise ValueError(
            f"{setting} needs the features of a trained teacher, and this one is exact or clipped; use "
            f"{setting}={none}, or a trained teacher with stage.clip_target=false"
        )
    return networks[0]
