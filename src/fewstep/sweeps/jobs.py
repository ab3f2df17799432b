"""A sweep's overrides: which settings are fixed, which differ, and one job for each combination."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from hydra.core.override_parser.types import Override, Quote, QuotedString

NOT_OF_THE_JOB = ("name", "outputs", "plan")  # settings of the sweep itself
NOT_OF_THE_FOLDER = ("sweeps", "launcher", "sweeper", "logger", "resume")  # a sweep goes on when these change
LONGEST_NAME = 120


@dataclass(frozen=True)
class Job:
    """One run of the sweep, or the training of stages that several runs share.

    Attributes:
        name: what differs, as "w_max=4,seed=1".
        overrides: of the command line, what differs and what is fixed.
        values: what differs, by short key, as it was written.
        stages: what a shared training trains, in order; empty for a run of the sweep.
        parent: name of the shared training whose model it starts from; empty for none.
    """

    name: str
    overrides: tuple[str, ...]
    values: Mapping[str, str]
    stages: tuple[str, ...] = ()
    parent: str = ""

    def with_override(self, key: str, text: str) -> Self:
        """The same job with this override of a key in the place of all others."""
        others = (override for override in self.overrides if not override.startswith(f"{key}="))
        return replace(self, overrides=(*others, f"{key}={text}"))


@dataclass(frozen=True)
class SweepOverrides:
    """A sweep's overrides, parsed: the fixed ones, and for each swept key one for each value, in the order given."""

    fixed: Mapping[str, str]
    swept: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, overrides: Iterable[Override]) -> "SweepOverrides":
        """Sort overrides into what is fixed and what differs; of one key the last counts.

        Raises:
            ValueError: a key has no value to take, or a range that only a search can walk.
        """
        fixed: dict[str, str] = {}
        swept: dict[str, tuple[str, ...]] = {}
        for key, override in last_of_each_key(overrides).items():
            text = override.input_line or ""
            if key.lstrip("+~").partition("@")[0] in NOT_OF_THE_JOB:
                continue
            if not override.is_sweep_override():
                fixed[key] = text
            elif not override.is_discrete_sweep():
                raise ValueError(f"{text} is a range to search in, and a grid has none; add sweeper=optuna")
            elif not (values := tuple(f"{key}={value}" for value in override.sweep_string_iterator())):
                raise ValueError(f"{text} has no value to sweep over; give some, like {key}=1,2")
            else:
                swept[key] = values
        return cls(fixed, swept)

    def jobs(self) -> list[Job]:
        """One job for each combination of values, the last key changing fastest.

        Raises:
            ValueError: nothing is swept.
        """
        if not self.swept:
            raise ValueError("a sweep needs something to sweep over, like seed=0,1,2, and every setting has one value")
        short = shortened(list(self.swept))
        combinations = list(itertools.product(*self.swept.values()))
        values = [dict(zip(short.values(), map(value_of, each), strict=True)) for each in combinations]
        names = [name_of(each) for each in values]
        return [
            Job(
                name if names.count(name) == 1 else f"{name[:LONGEST_NAME]}-{digest(each)}",
                (*self.fixed.values(), *each),
                own,
            )
            for name, each, own in zip(names, combinations, values, strict=True)
        ]

    @property
    def digest(self) -> str:
        """Of what is fixed and is part of the experiment; empty where nothing is."""
        counted = [text for key, text in self.fixed.items() if key not in NOT_OF_THE_FOLDER]
        return digest(sorted(counted)) if counted else ""


def last_of_each_key(overrides: Iterable[Override]) -> dict[str, Override]:
    """The override that counts of each key, in their order."""
    last: dict[str, Override] = {}
    for override in overrides:
        last.pop(override.get_key_element(), None)
        last[override.get_key_element()] = override
    return last


def value_of(override: str) -> str:
    """What comes after the key, in short: ${model.smaller.narrow}, of which Hydra escapes the braces, is narrow."""
    return re.sub(r"\$\\?\{(?:[^{}]*\.)?([^{}.\\]+)\\?\}", r"\1", override.partition("=")[2])


def shortened(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last words, as many as tell it from the others: stage.guidance.w_max is w_max."""
    plain = {key: key.lstrip("+~").split(".") for key in keys}
    short = {}
    for key, words in plain.items():
        others = [other for name, other in plain.items() if name != key]
        ends = (words[-count:] for count in range(1, len(words) + 1))
        short[key] = ".".join(next((end for end in ends if all(o[-len(end) :] != end for o in others)), words))
    return short


def name_of(values: Mapping[str, str]) -> str:
    """A folder's name: "w_max=4,ladder=16-8-4"."""
    parts = (f"{key}={plain_value(value)}" for key, value in values.items())
    name = re.sub(r"[^\w.,=+-]", "", ",".join(parts))
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{digest([name])}"


def plain_value(value: str) -> str:
    """A value without what a folder's name cannot have: [16,8,4] is 16-8-4, {width: 64} is width-64."""
    return re.sub(r"[,:/]+", "-", re.sub(r"[\s\[\]{}'\"]", "", value))


def digest(texts: Iterable[str]) -> str:
    """Eight hex digits of these texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def quoted(value: object) -> str:
    """A text as an override's value, whatever it holds."""
    return QuotedString(str(value), Quote.single).with_quotes()
