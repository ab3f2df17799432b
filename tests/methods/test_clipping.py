"""Clipping leaves short gradients alone instead of multiplying them with 1, and is torch's to the bit."""

from collections import deque
from math import inf, nan
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fewstep.methods import Stage


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


@pytest.mark.parametrize("clip", [1.0, 0.1])
@pytest.mark.parametrize("share", [0.3, 1 - 1e-5, 1 - 5e-7, 1.0, 1 + 1e-6, 4.0, inf, nan])
def test_it_is_torchs(clip: float, share: float) -> None:
    ours, theirs = weights(clip * share), weights(clip * share)
    stage = SimpleNamespace(
        _weights=ours[:1],
        _beside=ours[1:],
        training_plan=SimpleNamespace(gradient_clip=clip),
        _recent=deque([SimpleNamespace(gradient_norm=None)]),
    )
    Stage.configure_gradient_clipping(cast(Any, stage))
    norm = clip_grad_norm_(theirs, clip)
    assert torch.equal(stage.gradient_norm, norm) or (norm.isnan() and stage.gradient_norm.isnan())
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad.nan_to_num(), b.grad.nan_to_num())
        assert torch.equal(a.grad.isnan(), b.grad.isnan())
