"""Clipping leaves short gradients alone instead of multiplying them with 1, and is torch's to the bit, role by role."""

from collections import deque
from math import inf, nan
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fewstep.training.module import DistillationModule


def weights(scale: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.zeros(shape, requires_grad=True) for shape in ((5, 3), (7,), (2,))]
    for weight in made[:2]:  # the third has no gradient
        weight.grad = torch.randn(weight.shape, generator=generator)
    unit = torch.nn.utils.get_total_norm([weight.grad for weight in made[:2] if weight.grad is not None])
    for weight in made[:2]:
        assert weight.grad is not None
        weight.grad *= scale / unit
    return made


def clipped(by_role: dict[str, list[Tensor]], clips: dict[str, float], moving: tuple[str, ...]) -> SimpleNamespace:
    """What `configure_gradient_clipping` leaves behind."""
    module = SimpleNamespace(
        global_step=0,
        scaler=None,
        method=SimpleNamespace(moving=lambda step: moving),
        weights=by_role,
        gradient_norms={},
        training_plan=SimpleNamespace(of_role=lambda role: SimpleNamespace(gradient_clip=clips[role])),
        _recent=deque([SimpleNamespace(gradient_norms={})]),
    )
    DistillationModule.configure_gradient_clipping(cast(Any, module))
    return module


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad.nan_to_num(), b.grad.nan_to_num())
        assert torch.equal(a.grad.isnan(), b.grad.isnan())


@pytest.mark.parametrize("clip", [1.0, 0.1])
@pytest.mark.parametrize("share", [0.3, 1 - 1e-5, 1 - 5e-7, 1.0, 1 + 1e-6, 4.0, inf, nan])
def test_it_is_torchs(clip: float, share: float) -> None:
    ours, theirs = weights(clip * share), weights(clip * share)
    module = clipped({"student": ours}, {"student": clip}, ("student",))
    norm = clip_grad_norm_(theirs, clip)
    found = module.gradient_norms["student"]
    assert torch.equal(found, norm) or (norm.isnan() and found.isnan())
    assert module._recent[-1].gradient_norms["student"] is found
    assert_same(ours, theirs)


def test_each_role_is_clipped_by_its_own_norm_and_one_that_rests_is_left_alone() -> None:
    ours = {role: weights(scale) for role, scale in (("student", 4.0), ("fake", 4.0), ("critic", 4.0))}
    module = clipped(ours, {"student": 1.0, "fake": 10.0, "critic": 1.0}, ("student", "fake"))
    student = weights(4.0)
    clip_grad_norm_(student, 1.0)
    assert_same(ours["student"], student)
    assert_same(ours["fake"], weights(4.0))  # short enough
    assert_same(ours["critic"], weights(4.0))
    assert module.gradient_norms.keys() == {"student", "fake"}
    assert float(module.gradient_norms["fake"]) == pytest.approx(4.0)
