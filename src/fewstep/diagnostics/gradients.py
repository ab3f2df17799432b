"""The norm of the gradient by part of the network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

MOST_PARTS = 48  # with more, the lists of blocks stay whole


def parts(network: nn.Module) -> dict[str, nn.Module]:
    """The network's own parts by name; lists of blocks are taken apart, and a network that only wraps one is opened."""
    children = dict(network.named_children())
    if len(children) == 1 and not any(True for _ in network.parameters(recurse=False)):
        ((_, inner),) = children.items()
        if not isinstance(inner, nn.ModuleList) and dict(inner.named_children()):
            return parts(inner)
    apart = dict(_apart(children))
    return apart if len(apart) <= MOST_PARTS else children


def _apart(children: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for name, child in children.items():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{number}", block) for number, block in enumerate(child))
        else:
            yield name, child


@torch.no_grad()
def gradient_norms(network: nn.Module, scale: float = 1.0) -> dict[str, float]:
    """The norm of each part's gradient times `scale`, which undoes a clipping; parts without one are left out.

    Waits for the device once. Of sharded gradients every process must ask.
    """
    norms: dict[str, Tensor] = {}
    for name, part in parts(network).items():
        gradients = [weight.grad for weight in part.parameters() if weight.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            whole = getattr(norm, "full_tensor", None)
            norms[name] = norm if whole is None else whole()
    return dict(zip(norms, (torch.stack([*norms.values()]) * scale).tolist(), strict=True)) if norms else {}
