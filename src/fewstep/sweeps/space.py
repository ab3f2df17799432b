"""What a search walks: ranges and choices, as Hydra's sweep syntax says them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Union

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from fewstep.runs.overrides import is_installed
from fewstep.sweeps.jobs import SweepOverrides, last_of_each_key

if TYPE_CHECKING:
    from optuna.distributions import FloatDistribution, IntDistribution

Dimension = Union["FloatDistribution", "IntDistribution", tuple[str, ...]]
"""A range of numbers, or choices as they were written."""


def space_of(overrides: Iterable[Override]) -> tuple[SweepOverrides, dict[str, Dimension]]:
    """The fixed part of a sweep's line, and by key what is searched.

    Raises:
        ValueError: a range that has no values, or nothing to search.
    """
    last = last_of_each_key(overrides)
    swept = {key: dimension(override) for key, override in last.items() if override.is_sweep_override()}
    return SweepOverrides.of(override for key, override in last.items() if key not in swept), swept


def dimension(override: Override) -> Dimension:
    """What one override lets the search choose from.

    Ranges are interval(1e-4, 1e-2), tag(log, interval(...)), int(interval(1, 8)) and range(1, 9).

    Raises:
        ValueError: a range that has no values.
    """
    value, text = override.value(), override.input_line
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not low < high:
            raise ValueError(f"{text} must go from a lower number to a higher one, like interval(1e-4, 1e-2)")
        if "log" in value.tags and low <= 0:
            raise ValueError(f"{text} is logarithmic, and must begin above 0")
        return number_range(low, high, log="log" in value.tags)
    values = tuple(str(each) for each in override.sweep_string_iterator())
    if not values:
        raise ValueError(f"{text} has no value to search in; give some, like choice(a, b)")
    if isinstance(value, RangeSweep) and not value.shuffle and len(values) > 1:
        number = int if isinstance(value.start, int) and isinstance(value.step, int) else float
        return number_range(number(values[0]), number(values[-1]), step=value.step)
    return values


def number_range(low: float, high: float, *, log: bool = False, step: float | None = None) -> Dimension:
    """Whole numbers if both ends are."""
    require_optuna()
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def require_optuna() -> None:
    """Refuse to search without Optuna."""
    if not is_installed("optuna"):
        raise ValueError("sweeper=optuna needs a package that is not installed; pip install 'fewstep[search]' has it")


def text_of(value: object) -> str:
    """A value as an override has it: of a fraction, four digits say enough."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def texts(space: Mapping[str, Dimension], end: int) -> dict[str, str]:
    """The first (0) or the last (-1) value of each key."""
    return {
        key: text_of(own[end] if isinstance(own, tuple) else (own.low, own.high)[end]) for key, own in space.items()
    }
