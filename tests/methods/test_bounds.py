"""The bounds of settings: values at them are taken and those beyond refused, from a command line and in Python."""

from dataclasses import dataclass
from math import nan
from typing import Any, get_args

import pytest

from fewstep.methods import SingleFold
from fewstep.methods.judge import Judge
from fewstep.system import validation
from fewstep.system.validation import Bounded, build, checked

EDGES = {  # the least and the most that are taken, and the nearest that are not
    "AtLeastOne": ([1, 10**6], [0, -1, 1.5]),
    "AtLeastTwo": ([2, 10**6], [1, 0]),
    "Positive": ([1e-12, 1.0, 7], [0.0, 0, -1.0]),
    "NotNegative": ([0.0, 0, 3.0], [-1e-12, -1]),
    "Share": ([0.0, 0, 0.5, 1.0, 1], [-1e-12, 1 + 1e-12]),
    "ShareBelowOne": ([0.0, 0.999], [-1e-12, 1.0, 1]),
    "ShareAboveZero": ([1e-12, 1.0, 1], [0.0, 0, 1 + 1e-12]),
}
WRONG = ["1", None, True, [1], nan]


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    bound = getattr(validation, name)
    kind, rule = get_args(bound)[0], get_args(bound)[1].description
    good, bad = EDGES[name]
    for value in good:
        assert checked(value, bound, "stage.it") == value
    for value in bad:
        noun = {int: "a whole number", float: "a number"}[kind]
        with pytest.raises(ValueError, match=f"^stage.it must be {noun} {rule}, got {value}$"):
            checked(value, bound, "stage.it")
    for value in WRONG:
        with pytest.raises(ValueError, match=r"^stage.it must be "):
            checked(value, bound, "stage.it")


@dataclass(frozen=True, kw_only=True)
class Settings(Bounded):
    settings_key = "own.settings"

    free: float = -1.0
    share: validation.Share = 0.5


@dataclass(frozen=True, kw_only=True)
class MoreSettings(Settings):
    count: validation.AtLeastOne = 1


def test_the_bounds_hold_for_those_who_construct_in_python() -> None:
    assert MoreSettings(free=-5.0, share=1.0, count=1).share == 1.0
    for bad, words in (
        ({"share": 1.5}, "own.settings.share must be a number from 0 to 1, got 1.5"),
        ({"count": 0}, "own.settings.count must be a whole number of at least 1, got 0"),
        ({"share": "half"}, "own.settings.share must be a number from 0 to 1, got 'half'"),
    ):
        with pytest.raises(ValueError, match=f"^{words}$"):
            MoreSettings(**bad)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (SingleFold, {"num_steps": 0}, "stage.num_steps must be a whole number of at least 1, got 0"),
        (SingleFold, {"fold": 0}, "stage.fold must be a whole number of at least 1, got 0"),
        (SingleFold, {"adapter_rank": 0, "adapter": "lora"}, "stage.adapter_rank"),
        (Judge, {"weight": 0.0}, "stage.judge.weight must be a number above 0, got 0.0"),
    ],
)
def test_methods_say_the_same_to_both(kind: type, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}") as in_python:
        kind(**settings)
    with pytest.raises(ValueError, match=f"^{words}") as from_settings:
        build(kind, settings, "stage.judge" if kind is Judge else "stage")
    assert str(in_python.value) == str(from_settings.value)
