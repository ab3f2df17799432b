"""Two conditions and guidance by both: in closed form on Gaussians, and as scores of the mixture."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.data.mixture import styled_mixture
from fewstep.diffusion.guidance import Guided, GuidedTwice, guide, guide_twice, shared_weight
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule, sigma
from fewstep.diffusion.styles import Styles

STYLES = Styles(num_classes=4, num_styles=3)
MIXTURE = styled_mixture(STYLES, dim=2, std=0.3)
COUNT = 24


def state(t: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """z, log-SNR and labels of a class and a style, float64."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    return z, CosineSchedule().log_snr(torch.full((COUNT,), t, dtype=torch.float64)), torch.arange(COUNT) % 12


def weights(*, low: float = 0.0, high: float = 3.0) -> Tensor:
    return low + (high - low) * torch.rand(COUNT, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


# Labels ---------------------------------------------------------------------------------------------------------------


def test_labels_are_classes_and_styles() -> None:
    label = torch.arange(STYLES.num_labels + 1)
    pairs = [(c, s) for s in range(4) for c in range(4)]  # style 3 is any
    assert [*zip(STYLES.class_of(label[:-1]).tolist(), STYLES.style_of(label[:-1]).tolist(), strict=True)] == pairs
    opened = STYLES.of_any_style(label)
    assert opened[:-1].tolist() == [12, 13, 14, 15] * 4
    assert opened[-1] == STYLES.num_labels == 16  # "no class" stays


@pytest.mark.parametrize(("classes", "styles"), [(0, 2), (3, 1)])
def test_too_few_conditions_are_refused(classes: int, styles: int) -> None:
    with pytest.raises(ValueError, match=f"got {classes} classes and {styles} styles"):
        Styles(classes, styles)


# The formula ----------------------------------------------------------------------------------------------------------


def gaussian_denoisers(z: Tensor, a: float, s: float, r: Tensor, style: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[x | z, r, style], E[x | z, r] and E[x | z] of x = r + style + n, z = a x + s eps, all independent Gaussians.

    By conditioning the joint Gaussian of (x, z, r, style), not by the formula of guidance.
    """
    c_r, c_a, c_n = 0.9, 0.5, 0.3
    source = torch.tensor([[1, 1, 1, 0], [a, a, a, s], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)
    covariance = source @ torch.diag(torch.tensor([c_r**2, c_a**2, c_n**2, 1.0], dtype=torch.float64)) @ source.T
    found = []
    for known, values in (([1, 2, 3], [z, r, style]), ([1, 2], [z, r]), ([1], [z])):
        slope = torch.linalg.solve(covariance[known][:, known], covariance[known, 0])
        found.append(torch.stack(values, 1) @ slope)
    return found[0], found[1], found[2]


def test_on_independent_gaussians_three_corners_determine_the_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    z, r, style = torch.randn(3, COUNT, generator=generator, dtype=torch.float64)
    paired, conditional, unconditional = (x[:, None] for x in gaussian_denoisers(z, 0.8, 0.6, r, style))
    assert float((paired - conditional).abs().min()) > 1e-5  # no corner is another

    def at(scale_r: float, scale_a: float) -> Tensor:
        w = torch.tensor([scale_r - 1, scale_a - 1], dtype=torch.float64).expand(COUNT, 2)
        return guide_twice(paired=paired, conditional=conditional, unconditional=unconditional, w=w)

    torch.testing.assert_close(at(1, 1), paired)
    torch.testing.assert_close(at(1, 0), conditional)
    torch.testing.assert_close(at(0, 0), unconditional)
    expected = at(0, 0) + 2.5 * (at(1, 0) - at(0, 0)) + 1.7 * (at(1, 1) - at(1, 0))
    torch.testing.assert_close(at(2.5, 1.7), expected)


def test_equal_weights_are_the_guidance_of_one() -> None:
    z, log_snr, label = state()
    w = weights()[:, 0]
    both, one = GuidedTwice(MIXTURE.denoise, STYLES), Guided(MIXTURE.denoise, STYLES.num_labels)
    expected = one(z, log_snr, label, w).v
    torch.testing.assert_close(both(z, log_snr, label, torch.stack([w, w], 1)).v, expected)
    torch.testing.assert_close(both(z, log_snr, label, w).v, expected)  # one weight stands for both
    conditional, unconditional = (MIXTURE.denoise(z, log_snr, each).v for each in (label, torch.full_like(label, 16)))
    torch.testing.assert_close(expected, guide(conditional=conditional, unconditional=unconditional, w=w))


def test_a_label_without_a_style_is_not_moved_by_its_weight() -> None:
    z, log_snr, label = state()
    guided, open_label, w = GuidedTwice(MIXTURE.denoise, STYLES), STYLES.of_any_style(label), weights()
    other = torch.stack([w[:, 0], w[:, 1] + 1], 1)
    torch.testing.assert_close(guided(z, log_snr, open_label, w).v, guided(z, log_snr, open_label, other).v)
    assert float((guided(z, log_snr, label, w).v - guided(z, log_snr, label, other).v).abs().max()) > 0.1


def test_three_evaluations_are_the_score_of_a_product_of_densities() -> None:
    z, log_snr, label = state()
    w, z = weights(), z.requires_grad_()
    w1, w2 = w.unbind(1)
    density = (
        (1 + w2) * MIXTURE.log_density(z, log_snr, label)
        + (w1 - w2) * MIXTURE.log_density(z, log_snr, STYLES.of_any_style(label))
        - w1 * MIXTURE.log_density(z, log_snr, torch.full_like(label, STYLES.num_labels))
    )
    (score,) = torch.autograd.grad(density.sum(), z)
    found = GuidedTwice(MIXTURE.denoise, STYLES)(z, log_snr, label, w).eps
    torch.testing.assert_close(found, -sigma(log_snr)[:, None] * score)


def test_guidance_ends_outside_its_interval() -> None:
    z, log_snr, label = state()
    inside = GuidedTwice(MIXTURE.denoise, STYLES, (float(log_snr[0]) - 1, float(log_snr[0]) + 1))
    outside = GuidedTwice(MIXTURE.denoise, STYLES, (float(log_snr[0]) + 1, float(log_snr[0]) + 2))
    torch.testing.assert_close(outside(z, log_snr, label, weights()).v, MIXTURE.denoise(z, log_snr, label).v)
    assert float((inside(z, log_snr, label, weights()).v - MIXTURE.denoise(z, log_snr, label).v).abs().max()) > 0.1


# The mixture ----------------------------------------------------------------------------------------------------------


def test_a_class_of_any_style_is_the_mixture_of_its_styles() -> None:
    z, log_snr, label = state()
    each = torch.stack([MIXTURE.log_density(z, log_snr, label % 4 + 4 * style) for style in range(3)])
    whole = MIXTURE.log_density(z, log_snr, STYLES.of_any_style(label))
    torch.testing.assert_close(whole, each.logsumexp(0) - torch.tensor(3.0, dtype=torch.float64).log())


def test_points_are_of_the_class_and_the_style_that_they_were_drawn_for() -> None:
    label = torch.arange(1200) % 12
    sharp = styled_mixture(STYLES, dim=3, std=0.02)
    x = sharp.draw(label, torch.Generator().manual_seed(0))
    assert torch.equal(sharp.class_log_probability(x).argmax(1), label % 4)
    assert torch.equal(sharp.style_log_probability(x, label).argmax(1), label // 4)
    of_any = sharp.draw(torch.full((600,), 12), torch.Generator().manual_seed(1))  # class 0
    found = sharp.style_log_probability(of_any, torch.zeros(600, dtype=torch.long)).argmax(1).bincount(minlength=3)
    assert found.min() > 150


def test_the_card_of_a_teacher_says_that_it_has_three_evaluations() -> None:
    sampling = Sampling(guidance="three_evaluations")
    assert (sampling.evaluations, sampling.is_combined) == (3, True)
    assert isinstance(sampling.guided(MIXTURE.denoise, 16, styles=STYLES), GuidedTwice)
    with pytest.raises(ValueError, match="have no styles"):
        sampling.guided(MIXTURE.denoise, 16)


@pytest.mark.parametrize(("w", "shape"), [(1.5, (3,)), ((1.0, 2.0), (3, 2))])
def test_a_shared_weight_is_of_each_example(w: Any, shape: tuple[int, ...]) -> None:
    assert shared_weight(w, 3).shape == shape
    assert (shared_weight(w, 3) == torch.tensor(w)).all()
