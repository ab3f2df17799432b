"""Stage one: the student regresses to the guided teacher, in closed form."""

from typing import Any

import pytest
import torch
from small_methods import NULL, SCHEDULE, Exact, Perfect, batch, loss, module, network, regression, small

from fewstep.diffusion.guidance import Guided, log_snr_interval
from fewstep.diffusion.prediction import Clipped
from fewstep.diffusion.sampler import ddim_step
from fewstep.methods import Guidance
from fewstep.methods.guidance import PROJECTION
from fewstep.networks import Denoiser, Frozen, with_guidance_input


def test_stage_one_regresses_to_the_closed_form(make_mixture: Any) -> None:
    mixture = make_mixture()
    made = module(small("guidance"), Exact(mixture.denoise), Guided(mixture.denoise, NULL))  # a student in float64
    seen = regression(made, batch(64, torch.float64))
    prediction, target, t, w = seen.prediction, seen.target, seen.t, seen.w
    assert w is not None
    label = batch(64).label
    conditional, unconditional = (
        mixture.denoise(prediction.z, target.log_snr, c).x for c in (label, torch.full_like(label, NULL))
    )
    expected = conditional + w[:, None] * (conditional - unconditional)
    torch.testing.assert_close(target.x, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target.log_snr, SCHEDULE.log_snr(t))
    assert 0 <= float(w.min()) < 0.5
    assert 3.5 < float(w.max()) <= 4
    assert float(t.max() - t.min()) > 0.9


def test_stage_one_starts_without_error_where_there_is_no_guidance() -> None:
    parent = network()
    student = with_guidance_input(parent)
    unguided = module(small("guidance", w_max=0.0), student, Guided(Frozen(parent), NULL))
    assert loss(unguided) < 1e-12
    guided = module(small("guidance", w_min=1.0), student, Guided(Frozen(parent), NULL))
    assert loss(guided) > 1e-3


def test_the_relative_weight_divides_by_the_square_of_one_plus_w(make_mixture: Any) -> None:
    losses = {}
    for weight in ("uniform", "relative"):
        method = small("guidance", {"guidance_weight": weight}, w_min=3.0, w_max=3.0)
        losses[weight] = loss(module(method, network(guidance_input=True), Guided(make_mixture().denoise, NULL)))
    assert losses["relative"] == pytest.approx(losses["uniform"] / 16)


def test_a_fixed_w_is_the_only_one_that_a_student_sees(make_mixture: Any) -> None:
    mixture = make_mixture()
    made = module(small("guidance", w_min=1.5, w_max=1.5), Denoiser(Perfect(4)), Guided(mixture.denoise, NULL))
    seen = regression(made, batch(256, torch.float64))
    label = batch(256).label
    one, other = (
        mixture.denoise(seen.prediction.z, seen.target.log_snr, wanted).x
        for wanted in (label, torch.full_like(label, NULL))
    )
    assert seen.w is not None
    assert seen.w.unique().tolist() == [1.5]
    torch.testing.assert_close(seen.target.x, 2.5 * one - 1.5 * other, rtol=1e-9, atol=1e-9)


def test_the_settings_of_the_draw_are_the_students_range() -> None:
    method = small("guidance", w_draw="list", w_values=[1.0, 3.0])
    made = module(method, network(guidance_input=True), Guided(Frozen(network()), NULL))
    assert made.nets.guidance is not None
    assert (made.nets.guidance.w_min, made.nets.guidance.w_max) == (1.0, 3.0)
    seen = regression(made, batch(256))
    assert seen.w is not None
    assert seen.w.unique().tolist() == [1.0, 3.0]


# The interval and clipped targets -------------------------------------------------------------------------------------


def test_the_interval_in_time_is_one_in_log_snr(make_mixture: Any) -> None:
    mixture, count = make_mixture(), 5
    interval = log_snr_interval(SCHEDULE, [0.25, 0.75])
    guided = Guided(mixture.denoise, NULL, interval)
    t = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    z, label, log_snr = torch.randn(count, 2, dtype=torch.float64), torch.arange(count) % 3, SCHEDULE.log_snr(t)
    w = torch.full((count,), 2.0, dtype=torch.float64)
    always, never = Guided(mixture.denoise, NULL), mixture.denoise(z, log_snr, label)
    there = torch.tensor([False, True, True, True, False])[:, None]
    expected = always(z, log_snr, label, w).x.where(there, never.x)
    torch.testing.assert_close(guided(z, log_snr, label, w).x, expected)
    assert log_snr_interval(SCHEDULE, None) is None
    assert small("guidance", guidance_interval=[0.25, 0.75]).interval == (0.25, 0.75)


@pytest.mark.parametrize("times", [[0.5], [0.7, 0.2], [-0.1, 0.5], [0.2, 1.2], [0.3, 0.3]])
def test_bad_intervals_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match=r"null or two times \[low, high\]"):
        log_snr_interval(SCHEDULE, times)
    with pytest.raises(ValueError, match=r"null or two times \[low, high\]"):
        small("guidance", guidance_interval=times)


def test_clipped_targets_lie_in_the_range_and_free_ones_need_not(make_mixture: Any) -> None:
    free, label = Guided(make_mixture().denoise, NULL), batch(256).label
    log_snr, w = SCHEDULE.log_snr(0.1 + 0.9 * torch.rand(256)), torch.full((256,), 4.0, dtype=torch.float64)
    z = batch(256, torch.float64).x * 2
    one, other = free(z, log_snr, label, w).x, Clipped(free, -0.5, 0.5)(z, log_snr, label, w).x
    inside = one.abs() <= 0.5
    assert not bool(inside.all())
    assert float(other.abs().max()) <= 0.5 + 1e-12
    torch.testing.assert_close(other[inside], one[inside])
    with_room = Clipped(free, -99.0, 99.0)(z, log_snr, label, w)
    torch.testing.assert_close(with_room.x, one)
    end = SCHEDULE.log_snr(torch.zeros(256))  # a clipped teacher's one jump to the data stays in the range
    assert float(ddim_step(Clipped(free, -0.5, 0.5)(z, log_snr, label, w), end).abs().max()) < 0.501


# What is refused ------------------------------------------------------------------------------------------------------


def test_feature_matching_without_a_learning_rate_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match=rf"stage.training.roles.{PROJECTION}.learning_rate must be given"):
        small("guidance with features", {"roles": {}})
    assert small("guidance", {"roles": {}}).roles == ("student",)
    with pytest.raises(ValueError, match=r"stage.feature_matching must be a number of at least 0, got -1"):
        small("guidance", feature_matching=-1.0)


def test_it_needs_a_teacher() -> None:
    method = small("guidance")
    assert isinstance(method, Guidance)
    with pytest.raises(ValueError, match="stage=guidance needs a teacher, and teacher=none says there is none"):
        method.without_teacher()
    (phase,) = method.phases()
    assert (phase.sampling.guidance, phase.sampling.times) == ("input", None)
