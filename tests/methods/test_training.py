"""How networks are optimised: budgets, learning rates, roles, and the values that are refused."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_methods import PLAN, SMALL, at_step, batch_for, module, small, training

from fewstep.methods.training import RoleTraining, Training, constant, cosine, linear
from fewstep.runs.build import evaluation_budget
from fewstep.training.module import DistillationModule


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
    decayed = training(roles={"fake": {"learning_rate": 1e-4, "gradient_clip": 10.0, "weight_decay": 0.1}})
    assert decayed.group("fake") == {"lr": 1e-4, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"batch_size": 0}, "stage.training.batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 641}, "1 <= batch_size <= images, got batch_size=641 and images=640"),
        ({"learning_rate": 0.0}, "stage.training.learning_rate must be a number above 0, got 0.0"),
        ({"learning_rate": float("inf")}, "stage.training.learning_rate must be finite, got inf"),
        ({"learning_rate": float("nan")}, "stage.training.learning_rate must be finite, got nan"),
        ({"gradient_clip": 0.0}, "stage.training.gradient_clip must be a number above 0, got 0.0"),
        ({"warmup_images": -1}, r"stage.training.warmup_images must be a whole number from 0 to 2\^63 - 1, got -1"),
        ({"ema_decay": 1.0}, "ema_decay must be a number of at least 0 and below 1, got 1.0"),
        ({"ema_decay": -0.1}, "ema_decay must be a number of at least 0 and below 1, got -0.1"),
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
        ({"images": "many"}, "stage.training.images must be a whole number of at least 1, got 'many'"),
        ({"images": 1.5}, "stage.training.images must be a whole number of at least 1, got 1.5"),
        ({"images": True}, "stage.training.images must be a whole number of at least 1, got True"),
        ({"learning_rate": "1e-3"}, "stage.training.learning_rate must be a number above 0, got '1e-3'"),
        ({"learning_rate": float("nan")}, "stage.training.learning_rate must be finite, got nan"),
        ({"ema_decay": None}, "stage.training.ema_decay must be a number of at least 0 and below 1, got None"),
        ({"roles": {"fake": {}}}, "stage.training.roles"),
        (
            {"roles": {"fake": {"learning_rate": 0.0}}},
            "stage.training.roles need a positive learning_rate",
        ),
        ({"roles": ["fake"]}, "stage.training.roles"),
    ],
)
def test_settings_of_another_type_are_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^stage") as caught:
        training(**change)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)


# Budgets in network evaluations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_what_an_image_costs_is_what_training_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over whole cycles of roles; and finding it out leaves the training as it is."""
    monkeypatch.setattr("fewstep.training.module.COUNTED", 15)
    monkeypatch.setattr("fewstep.training.module.STRETCHES", 1)
    method = small(name)
    made, other = module(method), module(method)
    data = batch_for(method)
    per_image = made.evaluations_per_image(data._make(each[:4] for each in data))
    assert made.evaluations == 0
    first = made.training_plan.num_steps // 2
    for step in range(first, first + 15):
        with at_step(step):
            found, expected = (each.training_step(data, step).detach() for each in (made, other))
        assert torch.equal(found, expected)
    draws_steps = name.startswith("dmd2") or "states" in name or "ddil" in name  # on the way to where it is trained
    assert made.evaluations == other.evaluations
    assert made.evaluations == pytest.approx(15 * 32 * per_image, rel=0.3 if draws_steps else 1e-12)


@pytest.mark.parametrize("num_steps", [3520, 5700])
def test_states_of_all_sources_are_counted_by_their_priors(num_steps: int) -> None:
    """Whatever the length of the training, of which the source of a step's states follows."""
    made = module(small("ddil", {"images": 32 * num_steps}))
    seen: list[str] = []
    source_at = type(made.method).source_at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(made.method), "source_at", lambda self, step: seen.append(found := source_at(self, step)) or found
        )
        made.evaluations_per_image(batch_for(made.method))
    source = made.method.state_source
    for name in ("data", "teacher", "student"):
        assert seen.count(name) / len(seen) == pytest.approx(getattr(source, name), abs=0.1)


def test_a_budget_in_evaluations_is_shared_by_the_phases() -> None:
    """32 images a batch at least; images where none is given."""
    trainer: Any = SimpleNamespace(capped=lambda images, batch_size: images)
    method = small("progressive", {"evaluations": 90_000})
    first, last = method.phases()
    assert (first.budget, last.budget) == (1.0, 2.0)
    assert evaluation_budget(method, first, 5.0, trainer).images == 6_000
    assert evaluation_budget(method, last, 5.0, trainer).images == 12_000
    assert evaluation_budget(method, first, 1e9, trainer).images == 32
    assert evaluation_budget(method, first, 5.0, cast(Any, SimpleNamespace(capped=lambda *_: 64))).images == 64


def test_a_curriculum_goes_over_the_budget_of_its_phase() -> None:
    method = small("ict", {"images": 32 * 1000})
    nets = module(method).nets
    short = replace(method.training, images=320)
    made = DistillationModule(method=method, phase=method.phases()[0], nets=nets, training=short, stream="0/ict")
    assert made.method.training.num_steps == 10
