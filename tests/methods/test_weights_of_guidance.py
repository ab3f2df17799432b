"""The teacher is guided by the student's own weight, example by example: a target of another one fits no student."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_methods import SMALL, at_step, batch_for, module, small
from torch import Tensor

from fewstep.diffusion.prediction import Denoise, Prediction
from fewstep.methods.draws import Draws

PAIRS = ("knowledge_distillation", "reflow", "ladd", "knowledge_distillation with judge")  # made before the training


class Witness:
    """A teacher that remembers the weights it is given."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.seen: list[Tensor] = []

    def __call__(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None = None, **named: Any) -> Prediction:
        if w is not None:
            self.seen.append(w.detach().clone())
        return self.denoise(z, log_snr, label, w, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoise, name)


def seen_and_trained(name: str, step: int) -> tuple[list[Tensor], Tensor | None]:
    """The weights that the teacher of a step is given, and those that its student's loss is of."""
    made = module(small(name))
    if made.nets.teacher is None:
        pytest.skip("it has no teacher")
    witness = Witness(made.nets.teacher)
    made.nets = replace(made.nets, teacher=witness)
    data = batch_for(made.method)
    with at_step(step):
        losses = made.method.losses(data, made.nets, Draws.begin(data.x, "s", step), step=step, phase=made.phase)
    return witness.seen, next(iter(losses.values())).w


def given(w: Tensor, trained: Tensor) -> bool:
    """Whether w is the student's, once for each example or several times."""
    if w.shape == trained.shape:
        return torch.equal(w, trained)
    rows = (w.reshape(-1, len(trained)), w.reshape(len(trained), -1).T) if w.numel() % len(trained) == 0 else ()
    return any(bool((each == trained).all()) for each in rows)


@pytest.mark.parametrize("name", SMALL)
def test_a_teacher_is_given_its_students_weight(name: str) -> None:
    count = 0
    for step in range(5):
        seen, trained = seen_and_trained(name, step)
        if trained is None:
            continue
        assert len(trained.unique()) > 1
        for w in seen:
            # Apart from guidance, the distribution that is matched is that of no guidance.
            unguided = name == "dmd2, decoupled" and not w.any()
            assert unguided or given(w, trained), (step, w[:4], trained[:4])
        count += len(seen)
    assert count or trained is None or name in PAIRS, "the teacher was not looked at"
