"""The small net of colour patches: its accuracy, which data use it, and that it is never taken for Inception."""

from importlib import resources

import pytest
import torch
from figures import final_figures
from safetensors import safe_open

from fewstep.data.facts import DataFacts
from fewstep.data.patches import load_patches
from fewstep.evaluation.extractors import build_feature_extractor
from fewstep.evaluation.features import PATCHES_WEIGHTS, PatchesFeatures
from fewstep.evaluation.images import Reference
from fewstep.evaluation.protocol import Protocol

PATCHES = DataFacts("patches", (3, 32, 32), 2, -1.0, 1.0)
COLOUR = DataFacts("cifar10", (3, 32, 32), 10, -1.0, 1.0)


@pytest.fixture(scope="module")
def net() -> PatchesFeatures:
    return PatchesFeatures()


def test_it_reaches_its_stored_accuracy_on_held_out_crops(net: PatchesFeatures) -> None:
    file = resources.files("fewstep.evaluation").joinpath(PATCHES_WEIGHTS)
    with resources.as_file(file) as path, safe_open(path, "pt") as weights:
        assert path.stat().st_size < 1_000_000
        stored = float(weights.metadata()["test_accuracy"])
        assert float(weights.metadata()["place_accuracy"]) > 0.3  # of 72: it knows more than the photograph
    images, labels = load_patches(32)[1]
    features, logits = net(images[torch.arange(len(labels))])
    assert features.shape == (1400, net.num_features)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(stored, abs=2e-3)
    assert stored > 0.95


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 32, 32), (3, 64, 64), (3, 48, 80), (1, 28, 28)])
def test_images_of_any_size_from_16_are_accepted(net: PatchesFeatures, shape: tuple[int, ...]) -> None:
    features, logits = net(torch.zeros(2, *shape, dtype=torch.uint8))
    assert features.shape == (2, 64)
    assert logits.shape == (2, 2)


def test_other_images_are_refused(net: PatchesFeatures) -> None:
    with pytest.raises(ValueError, match="16 pixels or more"):
        net(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_it_tells_damaged_images_from_good_ones(net: PatchesFeatures) -> None:
    """Noise and darkness show in the distance; a blur of 3 pixels hardly does."""
    images, labels = load_patches(32)[1]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randperm(len(labels), generator=generator)[:600].chunk(2)
    good = images[first].float()
    noisy = (good + 20 * torch.randn(good.shape, generator=generator)).clamp(0, 255)
    reference = Reference("held out", images[second], labels[second])
    fid = [
        final_figures(net, images=x.to(torch.uint8), labels=labels[first], reference=reference).fid
        for x in (good, noisy, 0.85 * good)
    ]
    assert min(fid[1:]) > 1.5 * fid[0]


def test_it_is_used_for_patches_and_replaces_inception_by_choice_only() -> None:
    own = build_feature_extractor(PATCHES)
    assert isinstance(own, PatchesFeatures)
    assert (own.name, own.num_classes) == ("patches classifier", 2)
    with pytest.warns(UserWarning, match=r"figures of cifar10 .* not from Inception.* no published figure"):
        other = build_feature_extractor(COLOUR, choice="patches")
    assert isinstance(other, PatchesFeatures)
    assert other.num_classes is None
    assert other(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[1].shape == (1, 72)
    with pytest.raises(ValueError, match=r"must be auto, own, patches or a file .* got 'vgg'"):
        build_feature_extractor(COLOUR, choice="vgg")


def test_its_figures_have_a_protocol_of_their_own() -> None:
    """Never one table with Inception's, nor with those of the same net on patches."""
    images, labels = load_patches(32)[1]
    reference = Reference("held out", images[torch.arange(8)], labels[:8])
    with pytest.warns(UserWarning, match="small patches classifier"):
        nets = [build_feature_extractor(PATCHES), build_feature_extractor(COLOUR, choice="patches")]
    protocols = [Protocol.of(COLOUR, net, reference, num_images=8, seed=0) for net in nets]
    assert protocols[0].id != protocols[1].id
    assert protocols[1].feature_net == "patches classifier in place of inception"
