import pytest
import torch

from fewstep.diffusion.schedule import (
    CosineSchedule,
    Schedule,
    alpha,
    angle,
    append_zero,
    check_times,
    expand,
    log_snr_of_share,
    network_time,
    sigma,
    uniform_times,
)

LIMITS = [(-20.0, 20.0), (-20.0, 40.0), (-5.0, 12.0), (1.0, 3.0)]
TIMES = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("limits", LIMITS)
def test_time_inverts_log_snr(limits: tuple[float, float]) -> None:
    schedule = CosineSchedule(*limits)
    torch.testing.assert_close(schedule.time(schedule.log_snr(TIMES)), TIMES, rtol=0, atol=1e-12)


@pytest.mark.parametrize("limits", LIMITS)
def test_log_snr_falls_from_one_limit_to_the_other(limits: tuple[float, float]) -> None:
    log_snr = CosineSchedule(*limits).log_snr(TIMES)
    assert (log_snr.diff() < 0).all()
    assert log_snr[0].item() == pytest.approx(limits[1], abs=1e-8)
    assert log_snr[-1].item() == pytest.approx(limits[0], abs=1e-8)


def test_the_process_preserves_variance() -> None:
    log_snr = CosineSchedule().log_snr(TIMES)
    a, s, phi = alpha(log_snr), sigma(log_snr), angle(log_snr)
    one = torch.ones_like(a)
    torch.testing.assert_close(a.square() + s.square(), one, rtol=0, atol=1e-15)
    torch.testing.assert_close(a, phi.cos(), rtol=1e-10, atol=0)
    torch.testing.assert_close(s, phi.sin(), rtol=1e-10, atol=0)
    torch.testing.assert_close((a / s).square().log(), log_snr, rtol=1e-12, atol=1e-12)


def test_the_default_cut_is_zero_for_all_purposes() -> None:
    ends = CosineSchedule().log_snr(torch.tensor([0.0, 1.0]))
    assert sigma(ends)[0].item() == pytest.approx(4.54e-5, rel=1e-3)
    assert alpha(ends)[1].item() == pytest.approx(4.54e-5, rel=1e-3)


def test_the_angle_is_linear_in_time_and_is_what_networks_are_told() -> None:
    log_snr = CosineSchedule().log_snr(TIMES)
    steps = angle(log_snr).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-9, atol=0)
    told = network_time(log_snr)
    torch.testing.assert_close(told, TIMES, rtol=0, atol=1e-4)
    assert ((told > 0) & (told < 1)).all()


def test_coefficients_are_float64_until_they_meet_an_image() -> None:
    log_snr = CosineSchedule().log_snr(torch.rand(5))
    assert log_snr.dtype == alpha(log_snr).dtype == sigma(log_snr).dtype == torch.float64
    met = expand(alpha(log_snr), torch.ones(5, 1, 2, 2))
    assert met.dtype == torch.float32
    assert met.shape == (5, 1, 1, 1)


def test_the_cosine_schedule_is_a_schedule() -> None:
    assert isinstance(CosineSchedule(), Schedule)


@pytest.mark.parametrize(
    "limits", [(20.0, -20.0), (3.0, 3.0), (float("nan"), 20.0), (-20.0, float("inf")), (-1e308, 1.0)]
)
def test_bad_limits_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(
        ValueError, match=r"log_snr_min < log_snr_max, neither beyond 1000, got .*; the paper uses -20 and 20"
    ):
        CosineSchedule(*limits)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 1024])
def test_uniform_times_run_from_noise_to_data(num_steps: int) -> None:
    times = uniform_times(num_steps)
    assert times.dtype == append_zero(times).dtype == torch.float64
    assert times.tolist() == [i / num_steps for i in range(num_steps, 0, -1)]
    assert append_zero(times).tolist() == [*times.tolist(), 0]
    check_times(times)
    assert torch.equal(torch.tensor(tuple(times.tolist()), dtype=torch.float64), times)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_sampler_without_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 step, got {num_steps}"):
        uniform_times(num_steps)


@pytest.mark.parametrize(
    ("times", "got"),
    [
        ([], r"at least one of them, got shape \(0,\)"),
        ([1.0, 0.0], "got 0 at index 1"),
        ([1.5, 0.5], "got 1.5 at index 0"),
        ([0.5, -0.1], "got -0.1 at index 1"),
        ([0.5, 0.5], "got 0.5 after 0.5 at index 1"),
        ([0.25, 0.5], "got 0.5 after 0.25 at index 1"),
        ([1.0, float("nan")], "got nan at index 1"),
        ([float("inf"), 0.5], "got inf at index 0"),
    ],
)
def test_other_times_are_refused(times: list[float], got: str) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \(0, 1\] and strictly decrease, {got}; use .*") as refused:
        check_times(torch.tensor(times, dtype=torch.float64))
    assert "\n" not in str(refused.value)


def test_the_log_snr_of_a_flows_share_has_that_share_of_signal() -> None:
    """x + eps in the shares of a rectified flow are ours but for scale: alpha / (alpha + sigma) is the share."""
    share = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    log_snr = log_snr_of_share(share)
    torch.testing.assert_close(alpha(log_snr) / (alpha(log_snr) + sigma(log_snr)), share)
