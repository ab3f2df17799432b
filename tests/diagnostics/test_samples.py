import pytest
import torch
from torch import nn

from fewstep.data.facts import DataFacts, LatentFacts
from fewstep.diagnostics.gradients import gradient_norm_by_part, parts
from fewstep.diagnostics.samples import SampleStatistics, limits_of, within_class_deviation
from fewstep.networks import ResidualMLP

IMAGES = DataFacts(name="images", shape=(1, 4, 4), num_classes=2, low=-1.0, high=1.0)


def images(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform in [-0.5, 0.5], two classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 4, 4, generator=generator) - 0.5, torch.arange(count) % 2


def test_contrast_saturation_and_excess_of_known_images() -> None:
    x = torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]).reshape(2, 1, 1, 2)
    found = SampleStatistics.of(x, torch.arange(2), (-1.0, 1.0))
    assert found.contrast == pytest.approx(1.5)
    assert found.saturation == 1
    assert found.excess == pytest.approx(0.5)  # two of four values, 1 beyond each
    assert found.diversity is None
    plain = SampleStatistics.of(images()[0], images()[1], (-1.0, 1.0))
    assert plain.saturation == plain.excess == 0
    assert plain.contrast == pytest.approx((1 / 12) ** 0.5, rel=0.1)
    louder = SampleStatistics.of(3 * images()[0], images()[1], (-1.0, 1.0))
    assert louder.contrast == pytest.approx(3 * plain.contrast)
    assert louder.saturation == pytest.approx(1 / 3, abs=0.06)


def test_diversity_is_the_deviation_within_a_class_whatever_the_classes_are() -> None:
    x, label = images(400)
    apart = x.double() + 10 * label[:, None, None, None]
    assert within_class_deviation(apart, label) == pytest.approx((1 / 12) ** 0.5, rel=0.02)
    collapsed = label[:, None, None, None].double().expand(400, 1, 4, 4)
    assert within_class_deviation(collapsed, label) == pytest.approx(0, abs=1e-12)
    assert within_class_deviation(apart[:9], torch.arange(9)) is None  # nobody shares a class


def test_limits_of_latents_are_those_of_the_examples() -> None:
    latent = LatentFacts((3, 8, 8), 1.0, 0.0, "", "")
    facts = DataFacts(name="latents", shape=(1, 4, 4), num_classes=2, low=-30.0, high=30.0, latent=latent)
    x, _ = images()
    assert limits_of(facts, x) == (float(x.min()), float(x.max()))
    assert limits_of(IMAGES, x) == (-1.0, 1.0)
    assert limits_of(facts, None) == (-30.0, 30.0)


def test_gradient_norms_by_part_add_up_to_the_whole_and_undo_the_clipping() -> None:
    network = ResidualMLP(shape=(2,), num_classes=3, width=16, num_blocks=3, embedding_dim=8)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    whole = float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0))
    norms = gradient_norm_by_part(network, whole)
    assert {"time", "label", "first.0", "first.2", "outward"} <= set(norms)
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(whole, rel=1e-4)
    network.outward.zero_grad()
    assert "outward" not in gradient_norm_by_part(network)
    assert gradient_norm_by_part(nn.Linear(2, 2)) == {}


def test_a_network_that_wraps_another_is_opened_and_long_lists_stay_whole() -> None:
    inner = nn.ModuleDict({"inward": nn.Linear(2, 2), "outward": nn.Linear(2, 2)})
    assert set(parts(nn.ModuleDict({"unet": inner}))) == {"inward", "outward"}
    blocks = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(60)), "out": nn.Linear(2, 2)})
    assert set(parts(blocks)) == {"blocks", "out"}
