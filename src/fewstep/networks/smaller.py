"""A student of another size than its teacher: fewer or narrower layers, for a step that is cheaper too."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fewstep.networks.denoiser import Denoiser, arguments_of
from fewstep.networks.own import OwnNetwork


def smaller_student(teacher: Denoiser, changes: Mapping[str, Any]) -> Denoiser:
    """A network made of the teacher's arguments with `changes`, mappings inside them merged, and of its scalar inputs.

    It keeps those of the teacher's weights that have the same name and shape; the others are new, drawn from torch's
    global generator. So unlike a student of its teacher's size it does not begin as its teacher.

    Raises:
        ValueError: an argument that the network does not have, or sizes that do not fit each other.
    """
    if isinstance(teacher.network, OwnNetwork):
        raise ValueError(
            f"stage.student makes a smaller network of the library's own, and {type(teacher.network.network).__name__} "
            "is the user's; leave it out"
        )
    arguments = arguments_of(teacher.network)
    kind = type(teacher.network)
    allowed = sorted(set(arguments) - {"shape", "num_classes", "guidance_input", "extra_inputs", "components"})
    if unknown := sorted(set(changes) - set(allowed)):
        raise ValueError(
            f"stage.student must change arguments of {kind.__name__} ({', '.join(allowed)}), got {unknown[0]!r}"
        )
    try:
        network = kind(**merged_arguments(arguments, changes))
    except TypeError as error:
        raise ValueError(f"stage.student={dict(changes)} makes no {kind.__name__}: {error}; see conf/model") from error
    own = network.state_dict()
    kept = {name: w for name, w in teacher.network.state_dict().items() if name in own and own[name].shape == w.shape}
    network.load_state_dict(kept, strict=False)
    return Denoiser(network, teacher.prediction, teacher.native_schedule)


def merged_arguments(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with `changes`, mapping by mapping."""
    return {
        **arguments,
        **{
            key: merged_arguments(arguments[key], value) if isinstance(arguments.get(key), Mapping) else value
            for key, value in changes.items()
        },
    }


def middle(network: nn.Module) -> nn.Module:
    """The module whose output serves as a network's features.

    That of a U-Net's lowest level, or of the block after the middle of a stack (in an MLP, of its normalisation).
    """
    match type(network).__name__:
        case "ResidualMLP" | "TextMLP":
            norms = network.get_submodule("norms")
            return norms.get_submodule(str(len(list(norms.children())) // 2))
        case "DiT":
            blocks = network.get_submodule("transformer.transformer_blocks")
            return blocks.get_submodule(str(len(list(blocks.children())) // 2))
        case _:
            return network.get_submodule("unet.mid_block")


def blocks(network: nn.Module) -> list[nn.Module]:
    """The modules whose outputs are a network's features from its first block to its last.

    The blocks of a U-Net or of a stack; in an MLP the normalisations after its blocks.
    """
    match type(network).__name__:
        case "ResidualMLP" | "TextMLP":
            norms = [*network.get_submodule("norms").children()]
            return [*norms[1:], network.get_submodule("outward.0")]
        case "DiT":
            return [*network.get_submodule("transformer.transformer_blocks").children()]
        case _:
            down, up = (network.get_submodule(f"unet.{side}_blocks").children() for side in ("down", "up"))
            return [*down, network.get_submodule("unet.mid_block"), *up]
