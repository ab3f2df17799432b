"""Consistency by a curriculum of levels (ECT, iCT): the levels, and the error of exact networks."""

from collections.abc import Iterator
from math import erf, log
from typing import Any

import pytest
import torch
from small_methods import NULL, NUM_CLASSES, SCHEDULE, gaussian, small
from test_flow_maps import ExactMap

from fewstep.data.batch import Batch
from fewstep.diffusion.guidance import Guided
from fewstep.methods import GuidanceRange, Networks
from fewstep.methods.draws import Draws
from fewstep.methods.ict import karras

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """All random numbers in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draws(count: int = 20_000, step: int = 0) -> Draws:
    return Draws.begin(torch.zeros(count, 2), "0/curricula", step)


def test_ects_levels_come_closer() -> None:
    method: Any = small("ect")
    gaps = []
    for done in (0.0, 0.4, 0.6, 0.99, 1.0):
        t, r = method.pair(draws(), done)
        assert bool((r >= 0).all())
        assert bool((r < t).all())
        assert float(t.log().mean()) == pytest.approx(-1.1, abs=0.05)
        assert float(t.log().std()) == pytest.approx(2.0, abs=0.05)
        gaps.append(float((1 - r / t).median()))
    assert gaps[0] == 1.0  # r = 0 at first: a diffusion loss
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] == gaps[4]
    stage, t = 7, torch.tensor([0.3])
    expected = 1 - (1 + 8 * torch.sigmoid(-t)) / 2 ** (stage + 1)
    whole, r = method.pair(draws(), 1.0)
    nearest = (whole - 0.3).abs().argmin()
    assert float(r[nearest] / whole[nearest]) == pytest.approx(float(expected), abs=1e-3)


def test_icts_grid_doubles_and_is_karras() -> None:
    method: Any = small("ict", first_levels=10, most_levels=1280)
    assert [method.num_levels(done) for done in (0.0, 0.1249, 0.126, 0.9, 1.0)] == [11, 11, 21, 1281, 1281]
    grid = karras(11)
    assert float(grid[0]) == pytest.approx(0.002)
    assert float(grid[-1]) == pytest.approx(80.0)
    middle = (0.5 * (0.002 ** (1 / 7) + 80 ** (1 / 7))) ** 7
    assert float(grid[5]) == pytest.approx(middle)


def test_icts_chances_are_the_mass_of_a_log_normal() -> None:
    method: Any = small("ict", first_levels=10, most_levels=1280)
    start, end = method.pair(draws(200_000), 0.0)
    grid = karras(11)
    mass = [erf((log(float(s)) + 1.1) / (2**0.5 * 2)) for s in grid]
    for i in range(10):
        chosen = (end - grid[i]).abs() < 1e-9
        assert torch.allclose(start[chosen], grid[i + 1])
        expected = (mass[i + 1] - mass[i]) / (mass[-1] - mass[0])
        assert float(chosen.double().mean()) == pytest.approx(expected, abs=4e-3)


def error(name: str, done: float, off: float, **changes: Any) -> float:
    """The mean error of an exact consistency model of the guided Gaussians."""
    method = small(name, {"images": 1000 * 32}, **changes)
    nets = Networks(ExactMap(off=off, end_input=False), Guided(gaussian, NULL), SCHEDULE, GuidanceRange(0.0, 2.0))
    given = Batch(0.4 * torch.randn(512, 2), torch.arange(512) % NUM_CLASSES)
    seeds = Draws.begin(given.x, "0/curricula", 0)
    found = method.losses(given, nets, seeds, step=round(done * 1000), phase=method.phases()[0])
    return float(found["student"].error.detach().mean())


@pytest.mark.parametrize(("name", "changes"), [("ect", {"stages": 12}), ("ict", {"most_levels": 4096})])
def test_an_exact_students_error_falls_as_levels_come_closer(name: str, changes: Any) -> None:
    """One DDIM step of the teacher errs by the square of its length, and the weight has its inverse: first order."""
    early, late, wrong = error(name, 0.5, 0.0, **changes), error(name, 0.99, 0.0, **changes), error(name, 0.99, 0.1)
    assert late < early / 10
    assert wrong > 10 * late


def test_levels_at_the_clean_end_have_a_step_between_them() -> None:
    """t is log-normal: of a million draws some are below the end of the schedule."""
    assert error("ect", 0.5, 0.1, log_mean=-12.0) < 1e3  # and not NaN


def test_the_data_take_the_place_of_the_teacher_and_have_no_guidance() -> None:
    method = small("ect along data")
    for each, guidance in ((method, ("two_evaluations", "none")), (small("ect"), ("input", "two_evaluations"))):
        parent = each.parent()
        assert parent is not None
        assert parent.guidance == guidance
    assert method.phases()[0].sampling.guidance == "none"
    assert method.guidance(GuidanceRange(0.0, 4.0)) is None
    with pytest.raises(ValueError, match="hop=data follows none"):
        small("ect", hop="data", w_min=0.0, w_max=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": 1.0}, "stage.q must be above 1, got 1"),
        ({"k": -1.0}, "stage.k must be a number of at least 0, got -1.0"),
        ({"log_std": 0.0}, "stage.log_std must be a number above 0, got 0.0"),
        ({"stages": 0}, "stage.stages must be a whole number of at least 1, got 0"),
        ({"huber": -1.0}, "stage.huber must be a number of at least 0, got -1.0"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        small("ect", **change)
