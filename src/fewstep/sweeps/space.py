"""What a search walks: ranges and choices, as Hydra's sweep syntax says them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from fewstep.sweeps.jobs import SweepOverrides


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: interval(1e-4, 1e-2), tag(log, interval(...)), int(interval(1, 8)), range(1, 9)."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def text(self, value: float) -> str:
        """A value as an override has it: four digits say enough."""
        return str(round(value)) if self.is_whole else f"{value:.4g}"

    @property
    def ends(self) -> tuple[str, str]:
        return self.text(self.low), self.text(self.high)


@dataclass(frozen=True)
class Choices:
    """One of these, as they were written."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, str]:
        return self.values[0], self.values[-1]


Dimension = Range | Choices


def space_of(overrides: Iterable[Override]) -> tuple[SweepOverrides, dict[str, Dimension]]:
    """The fixed part of a sweep's line, and by key what is searched.

    Raises:
        ValueError: a range that has no values, or nothing to search.
    """
    fixed, space = [], {}
    for override in overrides:
        key = override.get_key_element()
        space.pop(key, None)
        fixed = [other for other in fixed if other.get_key_element() != key]
        if override.is_sweep_override():
            space[key] = dimension(override)
        else:
            fixed.append(override)
    return SweepOverrides.of(fixed), space


def dimension(override: Override) -> Dimension:
    """What one override lets the search choose from."""
    value, text = override.value(), override.input_line
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not low < high:
            raise ValueError(f"{text} must go from a lower number to a higher one, like interval(1e-4, 1e-2)")
        if "log" in value.tags and low <= 0:
            raise ValueError(f"{text} is logarithmic, and must begin above 0")
        return Range(low, high, "log" in value.tags)
    if isinstance(value, RangeSweep) and not value.shuffle and value.start is not None and value.stop is not None:
        values = tuple(override.sweep_string_iterator())
        if len(values) > 1:
            whole = isinstance(value.start, int) and isinstance(value.step, int)
            number = int if whole else float
            return Range(number(values[0]), number(values[-1]), step=value.step)
    values = tuple(str(each) for each in override.sweep_string_iterator())
    if not values:
        raise ValueError(f"{text} has no value to search in; give some, like choice(a, b)")
    return Choices(values)


def texts(space: Mapping[str, Dimension], end: int) -> dict[str, str]:
    """The first or the last value of each key."""
    return {key: own.ends[end] for key, own in space.items()}
