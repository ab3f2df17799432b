"""Several networks behind one: each example is evaluated by the network of its time, or of its class."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from math import inf
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.networks.denoiser import arguments_of
from fewstep.networks.inputs import Scalar, Scalars, plain_arguments
from fewstep.networks.own import OwnNetwork

SHARED = ("shape", "num_classes", "guidance_input", "extra_inputs")  # arguments of the whole and of each network


class Routed(nn.Module):
    """K networks of one kind; an evaluation of an example is one of one of them.

    Network k has the times in [edges[k - 1], edges[k]), so that an edge is of the noisier side, or the classes of
    groups[k]; what has no class is of the first.

    Args:
        network: one of NETWORKS. config: its arguments but those that follow.
        edges: the K - 1 times between the networks, rising in (0, 1), see `Denoiser.time_input`.
        groups: each network's classes, in the place of edges.
        shape, num_classes, guidance_input, extra_inputs: of each network.

    Raises:
        ValueError: edges that do not rise, groups that do not have each class once, or several networks in one of them.
    """

    def __init__(
        self,
        *,
        network: str,
        config: Mapping[str, Any],
        shape: Sequence[int],
        num_classes: int,
        edges: Sequence[float] = (),
        groups: Sequence[Sequence[int]] | None = None,
        guidance_input: bool = False,
        extra_inputs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        from fewstep.networks import network_class  # which has this class too

        if network == type(self).__name__:
            raise ValueError("one of several networks must be a single one; use a parent that is")
        if groups is None:
            check_edges(edges)
        else:
            check_groups(groups, num_classes)
        self.edges, self.groups = edges, groups
        shared = {name: self.arguments[name] for name in SHARED}
        count = len(edges) + 1 if groups is None else len(groups)
        self.members = nn.ModuleList(network_class(network)(**config, **shared) for _ in range(count))
        self.shift = 0.0

    @classmethod
    def of(
        cls, network: nn.Module, *, edges: Sequence[float] = (), groups: Sequence[Sequence[int]] | None = None
    ) -> "Routed":
        """Copies of one network with its weights, on those edges or groups.

        Raises:
            ValueError: it is a network of the user's own.
        """
        if isinstance(network, OwnNetwork):
            raise ValueError("several networks are made of the library's own, and this one is the user's")
        arguments = {**arguments_of(network)}
        shared = {name: arguments.pop(name) for name in SHARED if name in arguments}
        made = cls(network=type(network).__name__, config=arguments, edges=edges, groups=groups, **shared)
        made.members = nn.ModuleList(deepcopy(network) for _ in made.members)
        return made

    @property
    def empty_prompt(self) -> Tensor | None:
        """The embedding of the empty prompt, where the networks take prompts."""
        return getattr(self.members[0], "empty_prompt", None)

    @contextmanager
    def moved(self, shift: float) -> Iterator[None]:
        """Move the edges in time inside the block, for training; inf gives all examples to the first network."""
        self.shift = shift
        try:
            yield
        finally:
            self.shift = 0.0

    @torch.no_grad()
    def spread(self) -> None:
        """Give all networks the weights of the first."""
        for other in self.members[1:]:
            for own, first in zip(other.parameters(), self.members[0].parameters(), strict=True):
                own.copy_(first)

    def index_of(self, time: Scalar, label: Condition) -> Int[Tensor, "batch"]:
        """The number of each example's network."""
        none = torch.zeros_like(time, dtype=torch.long)
        if self.shift == inf:
            return none
        if self.groups is None:  # in one precision, so that a time that is an edge is one wherever it comes from
            return sum((time.float() >= edge + self.shift for edge in self.edges), none)
        owner = {each: number for number, group in enumerate(self.groups) for each in group}
        return torch.tensor([owner.get(each, 0) for each in range(len(owner) + 1)], device=label.device)[label]

    def forward(
        self, z: Images, time: Scalar, label: Condition, w: Scalar | None, extra: Scalars | None = None
    ) -> Images:
        index = self.index_of(time, label)
        order = index.argsort(stable=True)
        starts = torch.searchsorted(index[order], torch.arange(1, len(self.members), device=z.device))
        parts = order.tensor_split(starts.tolist())
        # In training, and where they are sharded, all processes call all networks: those without examples on one.
        all_called = torch.is_grad_enabled() or hasattr(next(self.parameters()), "full_tensor")
        called = [number for number, rows in enumerate(parts) if all_called or len(rows)]
        if len(called) == 1:
            return self.members[called[0]](z, time, label, w, extra)

        def answer(number: int) -> Images:
            rows = parts[number] if len(parts[number]) else order[:1]
            at = {name: value[rows] for name, value in extra.items()} if extra else extra
            output = self.members[number](z[rows], time[rows], label[rows], None if w is None else w[rows], at)
            return output[: len(parts[number])]

        return torch.cat([answer(number) for number in called])[order.argsort()]


def check_edges(edges: Sequence[float]) -> None:
    """Refuse times between networks of which one would have none.

    Raises:
        ValueError: they do not rise from above 0 to below 1.
    """
    if not all(a < b for a, b in pairwise((0.0, *edges, 1.0))):
        raise ValueError(
            "the times between several networks must rise from above 0 to below 1, so that none is without times, got "
            f"{[*edges]}"
        )


def check_groups(groups: Sequence[Sequence[int]], num_classes: int) -> None:
    """Refuse classes of networks of which one would have none, or a class no network.

    Raises:
        ValueError: an empty group, or a class that is in none or in several.
    """
    if not all(groups) or sorted(each for group in groups for each in group) != [*range(num_classes)]:
        raise ValueError(
            f"each of the classes 0, ..., {num_classes - 1} must be of one of several networks, and each network have "
            f"some, got {[[*group] for group in groups]}"
        )
