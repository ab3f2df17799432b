"""The fixed inputs of all measurements of a phase: noised examples spread over t and w, and starts of samples."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.guidance import nulls_but
from fewstep.diffusion.prediction import Condition, Weights
from fewstep.diffusion.schedule import Images
from fewstep.methods import GuidanceRange

NUM_EXAMPLES = 256
NUM_SAMPLES = 64
T_BINS = 8
W_BINS = 4


@dataclass(frozen=True)
class Bin:
    """An interval of times or weights; a single value where low = high."""

    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """Examples spread evenly over bins of t and w, the same at every measurement.

    Attributes:
        t_bin, w_bin: index into `t_bins` and `w_bins` of each example's bin.
        w: None for a student without a w input; `w_bins` is then empty.
        unconditional: where the condition is replaced by the null condition.
    """

    x: Images
    eps: Images
    label: Condition
    t: Float[Tensor, "batch"]
    w: Weights | None
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
        null: int | Tensor | None,
        generator: torch.Generator,
    ) -> "Probe":
        """Spread examples over the times (None: [0, 1]) and weights that a student is trained at.

        Args:
            null: the null condition, given to every second example; None where all keep their condition.
        """
        x, label = examples
        count = torch.arange(len(x))
        place = torch.rand(2, len(x), generator=generator, dtype=torch.float64)
        t_bins, t_at = time_bins(times)
        w_bins, w_at = weight_bins(guidance)
        t_bin = count % len(t_bins)
        w_bin = count // len(t_bins) % max(1, len(w_bins))
        unconditional = (count // len(t_bins) % 2 == 1) & (null is not None)
        if null is not None:
            label = nulls_but(~unconditional, label, null)
        return cls(
            x=x,
            eps=torch.randn(x.shape, generator=generator),
            label=label,
            t=t_at(t_bin, place[0]),
            w=None if guidance is None else w_at(w_bin, place[1]).float(),
            t_bin=t_bin,
            w_bin=w_bin,
            unconditional=unconditional,
            t_bins=t_bins,
            w_bins=w_bins,
        )

    def part(
        self, rows: slice, device: torch.device
    ) -> tuple[Images, Images, Condition, Float[Tensor, "batch"], Float[Tensor, "batch"] | None]:
        """x, eps, label, t and w of these rows, on the device."""
        x, eps, label, t = (value[rows].to(device) for value in (self.x, self.eps, self.label, self.t))
        return x, eps, label, t, None if self.w is None else self.w[rows].to(device)


ValueIn = Callable[[Int[Tensor, "batch"], Float[Tensor, "batch"]], Float[Tensor, "batch"]]
"""(bins, positions within them in [0, 1)) -> times or weights."""


def time_bins(times: Float[Tensor, "times"] | None) -> tuple[tuple[Bin, ...], ValueIn]:
    """At most T_BINS bins of [0, 1], or of the given times, in rising order."""
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


def weight_bins(guidance: GuidanceRange | None) -> tuple[tuple[Bin, ...], ValueIn]:
    """The listed weights, or W_BINS bins that training draws from equally often, in rising order; none without w."""
    if guidance is None:
        return (), lambda number, place: place
    if guidance.w_values or guidance.w_min == guidance.w_max:
        values = torch.tensor(sorted(set(guidance.w_values or [guidance.w_min])), dtype=torch.float64)
        return tuple(Bin(w, w) for w in values.tolist()), lambda number, place: values[number]
    edges = guidance.quantile(torch.arange(W_BINS + 1, dtype=torch.float64) / W_BINS).tolist()
    bins = tuple(Bin(low, high) for low, high in pairwise(edges))
    return bins, lambda number, place: guidance.quantile((number + place) / W_BINS)


@dataclass(frozen=True)
class Starts:
    """What paths start from: z (noise, or data for an encoder), conditions and weights in all combinations.

    Attributes:
        w_bin: index of each start's bin of `weight_bins`.
        cell: number of each start's (condition, bin of w); at least two starts share one.
    """

    z: Images
    label: Condition
    w: Weights | None
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
        """Up to NUM_SAMPLES starts at noise, each weight in the middle of its bin.

        Args:
            conditions: n -> the first n conditions of the data set.
            num_classes: 0 where conditions are prompts.
            noise: n -> noise of n examples.
        """
        bins, w_at = weight_bins(guidance)
        num_bins = max(1, len(bins))
        num_conditions = max(1, NUM_SAMPLES // (2 * num_bins))
        num_conditions = min(num_conditions, num_classes) if num_classes else num_conditions
        known = conditions(num_classes or num_conditions)
        spread = known[torch.arange(num_conditions) * len(known) // num_conditions]
        num_cells = num_conditions * num_bins
        cell = torch.arange(num_cells).repeat(max(2, NUM_SAMPLES // num_cells))
        w_bin = cell % num_bins
        middle = torch.full(cell.shape, 0.5, dtype=torch.float64)
        return cls(
            z=noise(len(cell)),
            label=spread[cell // num_bins],
            w=None if guidance is None else w_at(w_bin, middle).float(),
            w_bin=w_bin,
            cell=cell,
        )

    def at_data(self, examples: Batch) -> "Starts":
        """The starts of an encoder: data instead of noise, each example with its own condition."""
        count = min(len(self.z), len(examples.x))
        w = None if self.w is None else self.w[:count]
        return Starts(examples.x[:count], examples.label[:count], w, self.w_bin[:count], self.cell[:count])

    def part(self, rows: slice | Int[Tensor, "rows"], device: torch.device) -> tuple[Images, Condition, Tensor | None]:
        """z, label and w of these rows, on the device."""
        w = None if self.w is None else self.w[rows].to(device)
        return self.z[rows].to(device), self.label[rows].to(device), w
