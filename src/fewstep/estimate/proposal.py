"""What to type instead where a plan does not fit: network and budgets of data of one's own, or smaller budgets."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from fewstep.estimate.table import Estimate
from fewstep.runs.config import EVALUATE, PIPELINE, Settings
from fewstep.runs.overrides import OWN_DATA
from fewstep.system.durations import duration

LONGEST = {
    "cpu": 1.5 * 3600.0,
    "gpu": 1.5 * 86400.0,
}  # seconds: half more than the budgets of data of one's own are for
SMALLEST_PART = 0.02  # of a budget: what is left of it would teach nothing
REPLACED = ("model", "recipe", "~recipe", "plan")


@dataclass(frozen=True)
class Proposal:
    """Arguments of train.py, and the seconds that they take."""

    arguments: tuple[str, ...]
    seconds: float

    @property
    def line(self) -> str:
        """As a plan ends with it."""
        return f"this would fit: python train.py {shlex.join(self.arguments)}  # {duration(self.seconds)}"


def fits(estimate: Estimate, accelerator: str) -> bool:
    """Whether a run takes at most LONGEST, and the memory and disk that there are."""
    return estimate.seconds <= LONGEST[accelerator] and not estimate.warnings


def lighter(arguments: Sequence[str]) -> list[str]:
    """The same command with the network and the budgets that follow from the data and the machine."""
    kept = [each for each in arguments if each.partition("=")[0].split(".")[0] not in REPLACED]
    return [*kept, "model=auto", f"recipe={OWN_DATA}_${{stage}}"]


def scaled(arguments: Sequence[str], settings: Settings, estimate: Estimate) -> Proposal | None:
    """The same command with budgets that take LONGEST at most; None where hardly anything would be left of them.

    Args:
        settings: of the command, without `auto`. estimate: of it.
    """
    part = LONGEST[settings.values["trainer"]["accelerator"]] / estimate.seconds
    if estimate.warnings or not SMALLEST_PART <= part < 1:
        return None
    smaller = dict(scaled_budgets(settings, part))
    kept = [each for each in arguments if each.partition("=")[0] not in (*smaller, "plan")]
    return Proposal((*kept, *(f"{key}={number}" for key, number in smaller.items())), part * estimate.seconds)


def scaled_budgets(settings: Settings, part: float) -> Iterator[tuple[str, int]]:
    """Each setting of a budget, and its part in two digits."""
    stages: dict[str, Any] = {"stage": settings.stage}
    if settings.name == PIPELINE:
        stages = {f"stage.{name}": settings.stage[name] for name in settings.stages}
    for key, stage in stages.items():
        if stage["name"] == EVALUATE:
            yield f"{key}.num_images", two_digits(part * stage["num_images"])
        elif stage["training"]["evaluations"] is not None:
            yield "budget", two_digits(part * stage["training"]["evaluations"])
        else:
            yield f"{key}.training.images", two_digits(part * stage["training"]["images"])


def two_digits(number: float) -> int:
    """Rounded down to two digits that are not zero."""
    unit = 10 ** max(0, floor(log10(max(1.0, number))) - 1)
    return max(1, int(number // unit * unit))
