"""FSDP2: shard a network over the ranks, and gather it again."""

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fewstep.distributed.collectives import rank
from fewstep.networks.denoiser import Denoiser


def shard_module(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the weights of a module over a one-dimensional mesh.

    Its blocks, the members of its outermost module lists, are gathered one at a time during a call; the remaining
    weights are gathered for the whole call.
    """
    for block in transformer_blocks(module):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    # By default torch keeps the outermost module gathered until a backward pass; a model without one, like an EMA,
    # would not see its updated weights.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if isinstance(module, Denoiser) and module.gives_policy:  # its network is run outside of `forward`
        register_fsdp_forward_method(module, "run")


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in transformer_blocks(child)]


def gather_full_model(sharded: Denoiser, template: Denoiser) -> Denoiser:
    """`template` with the gathered weights of `sharded`, on the CPU of rank 0; without weights on the other ranks.

    Called by all ranks.

    Args:
        template: a copy of the network on the device "meta".
    """
    weights = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank() == 0:
        template.load_state_dict(weights, assign=True)
    return template


def full_scalar(value: Tensor) -> Tensor:
    """A sharded scalar, gathered; other tensors unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value
