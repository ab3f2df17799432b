"""The bounds of settings: values at them are taken and those beyond refused, from a command line and in Python."""

from dataclasses import dataclass
from math import nan
from typing import Any, get_args

import numpy as np
import pytest
from small_methods import PLAN, SMALL, small

from fewstep.methods import Consistency, EasyConsistency, SingleFold, Training
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
        (Judge, {"weight": 0.0}, "stage.judge.weight must be a number above 0; stage.judge=null is no judge, got 0.0"),
    ],
)
def test_methods_say_the_same_to_both(kind: type, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}") as in_python:
        kind(**settings)
    with pytest.raises(ValueError, match=f"^{words}") as from_settings:
        build(kind, settings, "stage.judge" if kind is Judge else "stage")
    assert str(in_python.value) == str(from_settings.value)


BEYOND: dict[str, Any] = {  # of a field, wherever it is found, the nearest value that is refused
    **dict.fromkeys(("num_levels", "first_levels", "most_levels"), 1),
    **dict.fromkeys(("num_steps", "fold", "teacher_steps", "num_pairs", "components", "stages", "samples"), 0),
    **dict.fromkeys(("num_networks", "experts", "num_blocks", "expert_updates", "fake_updates"), 0),
    **dict.fromkeys(("contrasts", "enqueued", "queue", "tangent_warmup_images"), 0),
    **dict.fromkeys(("log_std", "logit_std", "critic_weight", "first_weight", "few_steps_factor", "memory"), 0.0),
    **dict.fromkeys(("boundary", "huber", "k", "gan_weight", "distillation", "alpha", "correction", "power"), -1e-9),
    **dict.fromkeys(("features", "pixels", "spread", "feature_matching", "attention_matching"), -1e-9),
    **dict.fromkeys(("self_teacher_decay", "overlap", "common"), 1.0),
    **dict.fromkeys(("label_dropout", "equal_share"), 1.0 + 1e-9),
    **dict.fromkeys(("most_share", "teacher_share"), 0.0),
}


def test_no_field_is_listed_in_vain() -> None:
    fields = {field for kind, _ in SMALL.values() for field in kind.__dataclass_fields__}
    assert BEYOND.keys() <= fields


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("unchecked")
def test_every_bound_of_a_method_is_checked_in_python_and_from_settings(name: str) -> None:
    kind, settings = SMALL[name]
    method = small(name)
    bounded = [field for field in BEYOND if hasattr(method, field) and field in kind.__dataclass_fields__]
    for field in bounded:
        words = f"^stage.{field} must be a (whole )?number "
        given = {"name": method.name, "training": method.training, **settings, field: BEYOND[field]}
        with pytest.raises(ValueError, match=words):
            kind(**given)
        with pytest.raises(ValueError, match=words):
            build(kind, given, "stage")


@pytest.mark.parametrize("field", ["images", "batch_size", "warmup_images", "evaluations", "learning_rate"])
@pytest.mark.parametrize("value", [-1, nan, "1"])
@pytest.mark.usefixtures("unchecked")
def test_the_bounds_of_trainings_are_checked_and_of_what_may_be_none(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^stage.training.{field} must be "):
        Training(**PLAN | {field: value})
    assert Training(**PLAN | {"evaluations": None}).evaluations is None


def test_no_comparison_lets_nan_through() -> None:
    with pytest.raises(ValueError, match=r"^stage.q must be above 1, got nan$"):
        EasyConsistency(q=nan)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_numbers() -> None:
    assert SingleFold(num_steps=np.int64(4)).with_steps(np.int64(2)).num_steps == 2  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^stage.num_steps must be a whole number of at least 1, got "):
        SingleFold(num_steps=np.int64(0))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Mine(Consistency):
    num_levels: int = 20
    unknown: "Nowhere | None" = None  # pyright: ignore[reportUndefinedVariable]


def test_a_subclass_keeps_the_bounds_that_it_inherits() -> None:
    assert Mine(num_levels=20).num_levels == 20
    with pytest.raises(ValueError, match=r"^stage.num_levels must be a whole number of at least 2, got 1$"):
        Mine(num_levels=1)
