"""A sweep's overrides: which settings are fixed, which differ, and one job for each combination."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

from hydra.core.override_parser.types import Override

NOT_OF_THE_JOB = ("name", "outputs", "plan", "samples")  # settings of the sweep itself
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
    """A sweep's overrides, parsed: by key the fixed ones as they were written, and the values of the swept ones."""

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
            elif not (values := tuple(map(str, override.sweep_string_iterator()))):
                raise ValueError(f"{text} has no value to sweep over; give some, like {key}=1,2")
            else:
                swept[key] = values
        return cls(fixed, swept)

    def job(self, values: Mapping[str, str]) -> Job:
        """The job of these values, by key."""
        short = {name: short_value(values[key]) for key, name in shortened(list(values)).items()}
        return Job(name_of(short), (*self.fixed.values(), *(f"{key}={text}" for key, text in values.items())), short)

    def jobs(self) -> list[Job]:
        """One job for each combination of values, the last key changing fastest.

        Raises:
            ValueError: nothing is swept.
        """
        if not self.swept:
            raise ValueError("a sweep needs something to sweep over, like seed=0,1,2, and every setting has one value")
        jobs = [self.job(dict(zip(self.swept, each, strict=True))) for each in product(*self.swept.values())]
        count = Counter(job.name for job in jobs)
        return [
            job
            if count[job.name] == 1
            else replace(job, name=f"{job.name[:LONGEST_NAME]}-{digest(job.overrides[len(self.fixed) :])}")
            for job in jobs
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


def short_value(text: str) -> str:
    """A value in short: ${model.smaller.narrow}, of which Hydra escapes the braces, is narrow."""
    return re.sub(r"\$\\?\{(?:[^{}]*\.)?([^{}.\\]+)\\?\}", r"\1", text)


def shortened(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last words, as many as tell it from the others: stage.guidance.w_max is w_max."""
    words = {key: key.lstrip("+~").split(".") for key in keys}
    ends = Counter(tuple(own[-count:]) for own in words.values() for count in range(1, len(own) + 1))
    return {
        key: ".".join(next((own[n:] for n in reversed(range(len(own))) if ends[tuple(own[n:])] == 1), own))
        for key, own in words.items()
    }


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
