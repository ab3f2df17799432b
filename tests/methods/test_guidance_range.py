"""The draws of w, and the ranges that a student may take from its parent."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.methods import GuidanceRange
from fewstep.methods.guidance_range import chosen_weights


def drawn(guidance: GuidanceRange, count: int = 20_000) -> Tensor:
    torch.manual_seed(0)
    return guidance.quantile(torch.rand(count))


def test_w_is_drawn_as_the_settings_say() -> None:
    quarters = torch.tensor([0.25, 0.5, 0.75])
    uniform = drawn(GuidanceRange(1.0, 5.0))
    torch.testing.assert_close(uniform.quantile(quarters), torch.tensor([2.0, 3.0, 4.0]), rtol=0, atol=0.1)
    logarithmic = drawn(GuidanceRange(0.0, 15.0, "log_uniform"))  # 1 + w from 1 to 16
    torch.testing.assert_close(logarithmic.quantile(quarters), torch.tensor([1.0, 3.0, 7.0]), rtol=0, atol=0.2)
    listed = drawn(GuidanceRange(0.0, 9.0, "list", [4.0, 0.0, 1.0]))
    values, counts = listed.unique(return_counts=True)
    assert values.tolist() == [0, 1, 4]
    assert float(counts.min()) / len(listed) > 0.3
    assert drawn(GuidanceRange(2.0, 2.0)).unique().tolist() == [2]  # one fixed w


@pytest.mark.parametrize("guidance", [GuidanceRange(1.0, 5.0), GuidanceRange(0.0, 15.0, "log_uniform")])
def test_quantiles_are_exact_and_rise(guidance: GuidanceRange) -> None:
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    w = guidance.quantile(share)
    assert (float(w[0]), float(w[-1])) == pytest.approx((guidance.w_min, guidance.w_max))
    assert bool((w.diff() > 0).all())


def test_a_list_states_its_own_range() -> None:
    listed = GuidanceRange(0.0, 99.0, "list", [4.0, 1.0])
    assert (listed.w_min, listed.w_max, listed.w_values) == (1.0, 4.0, (4.0, 1.0))


@pytest.mark.parametrize(("draw", "values"), [("normal", None), ("list", None), ("list", []), ("uniform", [1.0])])
def test_draws_that_do_not_go_together_are_refused(draw: Any, values: list[float] | None, unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"stage.w_draw must be one of uniform, log_uniform, list, and list alone"):
        GuidanceRange(0.0, 4.0, draw, values)


@pytest.mark.parametrize(("w_min", "w_max"), [(-0.5, 4.0), (3.0, 2.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_bad_guidance_ranges_are_refused(w_min: float, w_max: float) -> None:
    with pytest.raises(ValueError, match=rf"0 <= w_min <= w_max, got w_min={w_min:g}, w_max={w_max:g}; w = 0 is"):
        GuidanceRange(w_min, w_max)


def test_a_part_of_the_parents_range_keeps_its_draw_and_none_is_all_of_it() -> None:
    parent = GuidanceRange(0.0, 4.0, "log_uniform")
    assert chosen_weights(parent, None, None) is parent
    assert chosen_weights(parent, 1.0, None) == GuidanceRange(1.0, 4.0, "log_uniform")
    assert chosen_weights(parent, None, 0.0) == GuidanceRange(0.0, 0.0, "log_uniform")
    listed = GuidanceRange(0.0, 4.0, "list", [0.0, 1.0, 4.0])
    assert chosen_weights(listed, None, None) is listed
    assert chosen_weights(listed, 0.5, None) == GuidanceRange(0.5, 4.0)


@pytest.mark.parametrize(("w_min", "w_max"), [(0.0, 5.0), (4.5, 5.0)])
def test_weights_outside_the_parents_range_are_refused(w_min: float, w_max: float) -> None:
    with pytest.raises(ValueError, match=rf"must lie in the parent's range \[0, 4\], got {w_min:g} and {w_max:g}"):
        chosen_weights(GuidanceRange(0.0, 4.0), w_min, w_max)


@pytest.mark.parametrize(("w_min", "w_max"), [(None, None), (0.0, None), (None, 4.0)])
def test_of_a_teachers_student_both_ends_must_be_given(w_min: float | None, w_max: float | None) -> None:
    with pytest.raises(ValueError, match=r"stage.w_min and stage.w_max must be given .* got .*; 0 and 4 are usual"):
        chosen_weights(None, w_min, w_max)
    assert chosen_weights(None, 0.0, 4.0) == GuidanceRange(0.0, 4.0)
