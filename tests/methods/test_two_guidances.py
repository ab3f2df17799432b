"""Two guidances at once: the student regresses to three evaluations, and mixed supervision to the data as well."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_methods import (
    NULL,
    SMALL,
    STYLES,
    Exact,
    at_step,
    batch,
    batch_for,
    loss,
    module,
    network,
    regression,
    small,
)
from torch import Tensor

from fewstep.diffusion.guidance import GuidedTwice
from fewstep.diffusion.prediction import diffuse
from fewstep.diffusion.sampler import END
from fewstep.methods import GuidanceRange, Method
from fewstep.methods.from_pairs import FromPairs
from fewstep.networks import Denoiser, Frozen, with_guidance_input
from fewstep.networks.denoiser import with_components, with_inputs
from fewstep.networks.inputs import W2

TWO_WEIGHTS = GuidanceRange(0.0, 4.0, second=GuidanceRange(0.0, 2.0))


def test_the_target_is_three_evaluations_in_closed_form(make_mixture: Any) -> None:
    mixture = make_mixture()
    made = module(small("two_guidances"), Exact(mixture.denoise), GuidedTwice(mixture.denoise, STYLES))
    seen = regression(made, batch(256, torch.float64))
    label, z, log_snr = batch(256).label, seen.prediction.z, seen.target.log_snr
    assert seen.w is not None
    w = seen.w.double()
    paired, conditional, unconditional = (
        mixture.denoise(z, log_snr, c).x for c in (label, torch.full_like(label, 2), torch.full_like(label, NULL))
    )
    scale_c, scale_s = 1 + w[:, :1], 1 + w[:, 1:]
    expected = unconditional + scale_c * (conditional - unconditional) + scale_s * (paired - conditional)
    torch.testing.assert_close(seen.target.x, expected, rtol=1e-9, atol=1e-9)
    assert 3.5 < float(w[:, 0].max()) <= 4
    assert 1.7 < float(w[:, 1].max()) <= 2
    assert abs(float(w.T.corrcoef()[0, 1])) < 0.2  # drawn independently


def test_the_student_begins_as_its_teacher_without_guidance() -> None:
    made = module(small("two_guidances", w_max=0.0, w2_max=0.0))
    assert loss(made) < 1e-12
    assert loss(module(small("two_guidances", w_max=0.0, w2_min=1.0))) > 1e-5
    assert loss(module(small("two_guidances", w_min=1.0, w2_max=0.0))) > 1e-5


def test_a_student_is_told_both_weights() -> None:
    student = with_inputs(with_guidance_input(network()), (W2,))
    projection = student.network.get_submodule("guidance_projection")
    for weight in projection.parameters():
        torch.nn.init.normal_(weight)
    z, log_snr, label = batch().x, torch.zeros(32), batch().label

    def at(*w: float) -> Tensor:
        return student(z, log_snr, label, torch.tensor(w).expand(32, len(w))).v

    assert not torch.allclose(at(1.0, 2.0), at(1.0, 1.0))
    assert not torch.allclose(at(1.0, 2.0), at(2.0, 2.0))
    torch.testing.assert_close(student(z, log_snr, label, torch.ones(32)).v, at(1.0, 1.0))  # one stands for both
    assert student.extra_inputs == ()


# Mixed supervision ----------------------------------------------------------------------------------------------------


def test_mixed_supervision_has_the_gradient_of_both_squares(make_mixture: Any) -> None:
    mixture, share = make_mixture(), 0.7
    made = module(small("two_guidances", teacher_share=share), network(), GuidedTwice(mixture.denoise, STYLES))
    given = batch(16, torch.float64)
    noised = diffuse(x=given.x, eps=torch.randn(16, 2, dtype=torch.float64), log_snr=torch.zeros(16).double())
    w = torch.rand(16, 2, dtype=torch.float64)
    named = {"t": torch.full((16,), 0.5), "label": given.label, "w": w, "nets": made.nets, "phase": made.phase}
    target = made.method.target(noised, **named)
    assert target is not None
    guided = GuidedTwice(mixture.denoise, STYLES)(noised.z, noised.log_snr, given.label, w)
    own = torch.zeros_like(given.x, requires_grad=True)
    both = share * (own - guided.x).square() + (1 - share) * (own - given.x).square()
    torch.testing.assert_close(
        torch.autograd.grad((own - target.x).square().sum(), own), torch.autograd.grad(both.sum(), own)
    )


def test_mixed_supervision_is_weaker_guidance_where_the_teacher_is_exact(make_mixture: Any) -> None:
    """E[x0 | z] is D_cs, so the optimum lambda D*(w) + (1 - lambda) D_cs is D*(lambda w)."""
    mixture, share = make_mixture(), 0.4
    z, label, w = batch(64, torch.float64).x, batch(64).label, 3 * torch.rand(64, 2, dtype=torch.float64)
    guided, log_snr = GuidedTwice(mixture.denoise, STYLES), torch.zeros(64).double()
    optimum = share * guided(z, log_snr, label, w).x + (1 - share) * mixture.denoise(z, log_snr, label).x
    torch.testing.assert_close(optimum, guided(z, log_snr, label, share * w).x)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"stage.teacher_share .* got {share}"):
        small("two_guidances", teacher_share=share)


# What follows ---------------------------------------------------------------------------------------------------------


def student_of_two_weights() -> Denoiser:
    return with_inputs(network(guidance_input=True), (W2,))


def follows(name: str) -> bool:
    """Whether the method distils a guided student, and not through pairs; of policies there are no styles."""
    kind, _ = SMALL[name]
    parent = small(name).parent()
    return name != "vdd" and parent is not None and "input" in parent.guidance and not issubclass(kind, FromPairs)


def made_for(name: str) -> Any:
    """A phase of the method, whose parent is a student of two weights."""
    method: Method = small(name)
    phase, student = method.phases()[0], student_of_two_weights()
    if phase.sampling.sampler == "flow_map":
        student = with_inputs(student, (END,))
    if phase.components:
        student = with_components(student, phase.components)
    return module(method, student, Frozen(student_of_two_weights()), parent=TWO_WEIGHTS)


@pytest.mark.parametrize("name", [name for name in SMALL if follows(name)])
def test_every_method_goes_on_from_a_student_of_two_weights(name: str) -> None:
    made = made_for(name)
    if made.phase.sampling.guidance != "input":
        pytest.skip("its student has no w")
    with torch.no_grad():
        for weight in [*made.student.parameters(), *made.trained.parameters()]:
            weight.add_(0.1)
    steps = range(6)
    step = next(step for step in steps if "student" in made.method.moving(step))
    with at_step(step):
        made.training_step(batch_for(made.method), step).backward()
    gradients = {key: weight.grad for key, weight in made.student.named_parameters() if key.endswith("extra.w2")}
    assert gradients
    assert any(bool(each.any()) for each in gradients.values() if each is not None)


def test_a_range_is_narrowed_and_keeps_the_second() -> None:
    assert TWO_WEIGHTS.narrowed(1.0, 2.0) == replace(TWO_WEIGHTS, w_min=1.0, w_max=2.0)


def test_the_loss_counts_relative_to_both_weights(make_mixture: Any) -> None:
    losses = {}
    for weight in ("uniform", "relative"):
        method = small("two_guidances", {"guidance_weight": weight}, w_min=2.0, w_max=2.0, w2_min=1.0, w2_max=1.0)
        student = student_of_two_weights()
        losses[weight] = loss(module(method, student, GuidedTwice(make_mixture().denoise, STYLES)))
    assert losses["relative"] == pytest.approx(losses["uniform"] / 16)
