"""The fixed questions put to a student at every look: examples, noise, times and weights that never change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.data.batches import Batch
from fewstep.diffusion.guidance import nulls
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.methods import GuidanceRange

NUM_EXAMPLES = 256
NUM_SAMPLES = 64
T_BINS = 8
W_BINS = 4


@dataclass(frozen=True)
class Bin:
    """What an example was asked at: the times, or the weights, from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """Examples spread evenly over bins of t and of w, each in the same bins at every look.

    Attributes:
        t_bin, w_bin: the number of each example's bin in `t_bins` and `w_bins`.
        w: None where the student has none; every second example then asks for no condition, see `unconditional`.
    """

    x: Images
    eps: Images
    label: Condition
    t: Float[Tensor, "batch"]
    w: Float[Tensor, "batch"] | None
    t_bin: Int[Tensor, "batch"]
    w_bin: Int[Tensor, "batch"]
    unconditional: Bool[Tensor, "batch"]
    t_bins: tuple[Bin, ...]
    w_bins: tuple[Bin, ...]

    @classmethod
    def of(
        cls,
        examples: Batch,
        times: Float[Tensor, "times"] | None,
        guidance: GuidanceRange | None,
        null: int | Tensor,
        generator: torch.Generator,
    ) -> "Probe":
        """Lay examples out over a stage's times (None: all of [0, 1]) and weights."""
        x, label = examples
        count = torch.arange(len(x))
        place = torch.rand(2, len(x), generator=generator, dtype=torch.float64)
        t_bins, t_at = time_bins(times)
        w_bins, w_at = weight_bins(guidance)
        t_bin = count % len(t_bins)
        w_bin = count // len(t_bins) % max(1, len(w_bins))
        unconditional = (count // len(t_bins) % 2 == 1) & (guidance is None)
        return cls(
            x=x,
            eps=torch.randn(x.shape, generator=generator),
            label=label.where(~unconditional.reshape(-1, *[1] * (label.ndim - 1)), nulls(label, null)),
            t=t_at(t_bin, place[0]),
            w=None if guidance is None else w_at(w_bin, place[1]).float(),
            t_bin=t_bin,
            w_bin=w_bin,
            unconditional=unconditional,
            t_bins=t_bins,
            w_bins=w_bins,
        )

    def chunks(self, size: int) -> Iterator[slice]:
        """Rows that are asked at once."""
        return (slice(start, start + size) for start in range(0, len(self.x), size))


At = Callable[[Int[Tensor, "batch"], Float[Tensor, "batch"]], Float[Tensor, "batch"]]
"""(bins, places within them in [0, 1)) -> times or weights."""


def time_bins(times: Float[Tensor, "times"] | None) -> tuple[tuple[Bin, ...], At]:
    """At most T_BINS bins of [0, 1], or of the few times of a rung, from small t to large."""
    if times is None:
        edges = [number / T_BINS for number in range(T_BINS + 1)]
        bins = tuple(Bin(low, high) for low, high in pairwise(edges))
        return bins, lambda number, place: (number + place) / T_BINS
    groups = times.sort().values.tensor_split(min(T_BINS, len(times)))
    counts = torch.tensor([len(group) for group in groups])
    starts = counts.cumsum(0) - counts
    ordered = torch.cat(groups)
    bins = tuple(Bin(float(group[0]), float(group[-1])) for group in groups)
    return bins, lambda number, place: ordered[starts[number] + (place * counts[number]).long()]


def weight_bins(guidance: GuidanceRange | None) -> tuple[tuple[Bin, ...], At]:
    """The listed weights, or W_BINS bins that training draws from alike, from small w to large; none without w."""
    if guidance is None:
        return (), lambda number, place: place
    if guidance.w_values or guidance.w_min == guidance.w_max:
        values = torch.tensor(sorted(set(guidance.w_values or [guidance.w_min])), dtype=torch.float64)
        return tuple(Bin(w, w) for w in values.tolist()), lambda number, place: values[number]
    edges = guidance.at(torch.arange(W_BINS + 1, dtype=torch.float64) / W_BINS).tolist()
    bins = tuple(Bin(low, high) for low, high in pairwise(edges))
    return bins, lambda number, place: guidance.at((number + place) / W_BINS)


@dataclass(frozen=True)
class Starts:
    """Where samples begin: noise, and what is asked for; the bins of w and the conditions in turn.

    Attributes:
        cell: number of each one's (condition, bin of w); at least two share one.
    """

    noise: Images
    label: Condition
    w: Float[Tensor, "batch"] | None
    w_bin: Int[Tensor, "batch"]
    cell: Int[Tensor, "batch"]

    @classmethod
    def of(
        cls,
        conditions: Callable[[int], Condition],
        num_classes: int,
        guidance: GuidanceRange | None,
        noise: Callable[[int], Images],
    ) -> "Starts":
        """Up to NUM_SAMPLES starts; `conditions(n)` are the first n, or all `num_classes`, of which some are taken."""
        bins, at = weight_bins(guidance)
        num_bins = max(1, len(bins))
        asked = max(1, NUM_SAMPLES // (2 * num_bins))
        asked = min(asked, num_classes) if num_classes else asked
        known = conditions(num_classes or asked)
        some = known[torch.arange(asked) * len(known) // asked]
        cell = torch.arange(asked * num_bins).repeat(max(2, NUM_SAMPLES // (asked * num_bins)))
        w_bin = cell % num_bins
        middle = torch.full(cell.shape, 0.5, dtype=torch.float64)
        return cls(
            noise=noise(len(cell)),
            label=some[cell // num_bins],
            w=None if guidance is None else at(w_bin, middle).float(),
            w_bin=w_bin,
            cell=cell,
        )

    def at_data(self, examples: Batch) -> "Starts":
        """Where an encoder begins: at data instead of noise, each with its own condition."""
        x, label = examples
        count = min(len(self.noise), len(x))
        return Starts(
            noise=x[:count],
            label=label[:count],
            w=None if self.w is None else self.w[:count],
            w_bin=self.w_bin[:count],
            cell=self.cell[:count],
        )
