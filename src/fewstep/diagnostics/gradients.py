"""The gradient's norm by part of the network."""

import torch
from torch import Tensor, nn

from fewstep.distributed.sharding import full_scalar

MAX_PARTS = 48  # with more, each list of blocks is one part


def parts(network: nn.Module) -> dict[str, nn.Module]:
    """The network's children by name, lists of blocks split into blocks; a pure wrapper's parts are those inside it."""
    children = dict(network.named_children())
    if len(children) == 1 and not any(True for _ in network.parameters(recurse=False)):
        ((_, inner),) = children.items()
        if not isinstance(inner, nn.ModuleList) and dict(inner.named_children()):
            return parts(inner)
    blocks: dict[str, nn.Module] = {}
    for name, child in children.items():
        is_list = isinstance(child, nn.ModuleList)
        blocks |= {f"{name}.{number}": block for number, block in enumerate(child)} if is_list else {name: child}
    return blocks if len(blocks) <= MAX_PARTS else children


@torch.no_grad()
def gradient_norm_by_part(network: nn.Module, scale: float = 1.0) -> dict[str, float]:
    """The norm of each part's gradient times `scale`, which undoes clipping; parts without a gradient are left out.

    Waits for the device once. Sharded gradients are reduced, so every process must call it.
    """
    norms: dict[str, Tensor] = {}
    for name, part in parts(network).items():
        gradients = [weight.grad for weight in part.parameters() if weight.grad is not None]
        if gradients:
            norms[name] = full_scalar(torch.nn.utils.get_total_norm(gradients))
    return dict(zip(norms, (torch.stack([*norms.values()]) * scale).tolist(), strict=True)) if norms else {}
