"""A network divided over processes (FSDP2), each of which keeps a part of every weight, and whole again."""

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fewstep.networks.denoiser import Denoiser


def shard_module(module: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the weights of a module over a one-dimensional mesh.

    Its blocks, the members of its outermost lists, come together one after the other while it is called, and the rest
    for the whole call.
    """
    for block in transformer_blocks(module):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    # By torch's default what is outermost stays whole until a backward pass; a model that has none, like an average,
    # would not see its new weights.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in transformer_blocks(child)]


def gather_full_model(divided: Denoiser, shape: Denoiser, *, here: bool) -> Denoiser:
    """A divided denoiser as one on the CPU of the process where `here` is true, and without weights on the others.

    Called by all processes; `here` is true of the first alone.

    Args:
        shape: a copy of it without weights, on the device "meta"; it gets them.
    """
    weights = get_model_state_dict(divided, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if here:
        shape.load_state_dict(weights, assign=True)
    return shape


def full_scalar(value: Tensor) -> Tensor:
    """A number that is known in parts, as all of it; as it is where nothing is divided."""
    return value.full_tensor() if isinstance(value, DTensor) else value
