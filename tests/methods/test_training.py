"""How networks are optimised: budgets, learning rates, roles, and the values that are refused."""

from typing import Any

import pytest
from small_methods import PLAN, training

from fewstep.methods.training import RoleTraining, Training, constant, cosine, linear


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    plan = training(images=1000, batch_size=10, warmup_images=40)
    assert plan.num_steps == 100
    scales = [plan.learning_rate_scale(step) for step in range(101)]
    assert scales[:5] == pytest.approx([0.25, 0.5 * 0.99, 0.75 * 0.98, 0.97, 0.96])
    assert scales[4:] == pytest.approx([1 - step / 100 for step in range(4, 101)])
    assert scales[100] == 0
    assert training(warmup_images=0).learning_rate_scale(0) == 1


def test_decays_are_functions_of_the_share_done() -> None:
    shares = [0.0, 0.25, 0.5, 1.0]
    assert [linear(share) for share in shares] == [1, 0.75, 0.5, 0]
    assert [cosine(share) for share in shares] == pytest.approx([1, 0.853553, 0.5, 0], abs=1e-6)
    assert [constant(share) for share in shares] == [1, 1, 1, 1]
    plan = Training(**PLAN | {"images": 1000, "batch_size": 10, "warmup_images": 0, "decay": cosine})
    assert plan.learning_rate_scale(50) == pytest.approx(0.5)


def test_budgets_are_whole_batches_rounded_up() -> None:
    assert training(images=33, batch_size=32).num_steps == 2
    assert training(images=32, batch_size=32).num_steps == 1


def test_a_role_has_its_own_learning_rate_and_clipping_and_inherits_the_rest() -> None:
    plan = training(roles={"fake": {"learning_rate": 1e-4, "gradient_clip": 10.0, "betas": [0.0, 0.9]}})
    assert plan.group("student") == {"lr": 3e-3}
    assert plan.group("fake") == {"lr": 1e-4, "betas": (0.0, 0.9)}
    assert plan.of_role("student") == RoleTraining(3e-3, 1.0)
    assert plan.of_role("fake").gradient_clip == 10.0


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"batch_size": 0}, "1 <= batch_size <= images, got batch_size=0 and images=640"),
        ({"batch_size": 641}, "1 <= batch_size <= images, got batch_size=641 and images=640"),
        ({"learning_rate": 0.0}, "positive learning_rate .* got 0.0"),
        ({"learning_rate": float("inf")}, "positive learning_rate .* got inf"),
        ({"learning_rate": float("nan")}, "positive learning_rate .* got nan"),
        ({"gradient_clip": 0.0}, "positive .* gradient_clip .* 0.0 and 64"),
        ({"warmup_images": -1}, "warmup_images >= 0, got .* -1"),
        ({"ema_decay": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"ema_decay": -0.1}, "at least 0 and below 1, got -0.1"),
        ({"weight": "min_snr"}, "one of snr, truncated_snr, snr_plus_one, uniform_x, got 'min_snr'"),
        ({"guidance_weight": "w"}, "one of uniform, relative, got 'w'"),
    ],
)
def test_bad_training_is_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Training(**PLAN | change)


@pytest.mark.parametrize(("rate", "clip"), [(0.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1e-3, 0.0)])
def test_bad_roles_are_refused(rate: float, clip: float) -> None:
    with pytest.raises(ValueError, match=r"stage.training.roles need a positive learning_rate and gradient_clip, got"):
        RoleTraining(rate, clip)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rat": 1e-3}, "stage.training.learning_rat is no setting; stage.training has images, batch_size,"),
        ({"images": "many"}, "stage.training.images must be a whole number, got 'many'"),
        ({"images": 1.5}, "stage.training.images must be a whole number, got 1.5"),
        ({"images": True}, "stage.training.images must be a whole number, got True"),
        ({"learning_rate": "1e-3"}, "stage.training.learning_rate must be a number, got '1e-3'"),
        ({"learning_rate": float("nan")}, "stage.training.learning_rate must be finite, got nan"),
        ({"ema_decay": None}, "stage.training.ema_decay must be a number, got None"),
        ({"roles": {"fake": {}}}, "stage.training.roles"),
        ({"roles": {"fake": {"learning_rate": 0.0}}}, "stage.training.roles need a positive learning_rate"),
        ({"roles": ["fake"]}, "stage.training.roles"),
    ],
)
def test_settings_of_another_type_are_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^stage") as caught:
        training(**change)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)
