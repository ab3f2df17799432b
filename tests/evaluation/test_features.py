from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fewstep.data.digits import DigitsSplit
from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.extractors import build_feature_extractor
from fewstep.evaluation.features import (
    DIGITS_WEIGHTS,
    DigitsFeatures,
    InceptionFeatures,
    MixtureFeatures,
)

DIGITS = DataFacts("digits", (1, 8, 8), 10, -1.0, 1.0)
POINTS = DataFacts("mixture", (2,), 2, -3.0, 3.0)
COLOUR = DataFacts("cifar10", (3, 32, 32), 10, -1.0, 1.0)


def test_digits_classifier_reaches_its_stored_accuracy_on_the_test_split(
    net: DigitsFeatures, split: DigitsSplit
) -> None:
    with (
        resources.as_file(resources.files("fewstep.evaluation").joinpath(DIGITS_WEIGHTS)) as path,
        safe_open(path, "pt") as weights,
    ):
        stored = float(weights.metadata()["test_accuracy"])
    features, logits = net(split.test_images)
    assert features.shape == (364, net.num_features)
    assert (logits.argmax(1) == split.test_labels).float().mean().item() == pytest.approx(stored, abs=1e-6)
    assert stored > 0.98


def test_digits_net_is_the_same_every_time_and_never_trains(net: DigitsFeatures, split: DigitsSplit) -> None:
    before = torch.get_rng_state()
    again = DigitsFeatures().train()
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.digest == net.digest
    assert torch.equal(again(split.test_images)[0], net(split.test_images)[0])


def test_reduced_precision_around_it_changes_nothing(net: DigitsFeatures, split: DigitsSplit) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = net(split.test_images)
    assert torch.equal(features, net(split.test_images)[0])
    assert features.dtype == logits.dtype == torch.float32


def test_other_inputs_than_uint8_digits_are_refused(net: DigitsFeatures) -> None:
    for images in (torch.zeros(2, 64), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="to_uint8"):
            net(images)


def test_mixture_net_is_the_exact_classifier(mixture: GaussianMixture) -> None:
    net = MixtureFeatures(mixture)
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, 0.1]])
    features, logits = net(points)
    assert torch.equal(features, points)
    density = torch.distributions.Normal(mixture.means, mixture.stds).log_prob(points[:, None]).sum(-1).exp()
    assert torch.allclose(logits.softmax(1), density / density.sum(1, keepdim=True), atol=1e-6)
    with pytest.raises(ValueError, match=r"float points \(B, 2\)"):
        net(torch.zeros(3, 5))


def test_mixture_digest_names_the_mixture(mixture: GaussianMixture) -> None:
    other = GaussianMixture(mixture.means + 0.1, mixture.stds, mixture.weights, mixture.classes)
    assert MixtureFeatures(other).digest != MixtureFeatures(mixture).digest == MixtureFeatures(mixture).digest


def test_one_place_decides(mixture: GaussianMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_feature_extractor(DIGITS), DigitsFeatures)
    assert isinstance(build_feature_extractor(POINTS, mixture=mixture), MixtureFeatures)
    with pytest.raises(ValueError, match="pass mixture="):
        build_feature_extractor(POINTS)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"pt_inception-2015-12-05.*is not at {tmp_path}.*put it there"):
        build_feature_extractor(COLOUR)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of the right form with random numbers, made without torch-fidelity's download."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_with_the_files_weights(inception_file: Path) -> None:
    before = torch.get_rng_state()
    net = InceptionFeatures(inception_file)
    assert torch.equal(torch.get_rng_state(), before)
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    features, logits = net(grey)
    assert features.shape == (2, 2048) == (2, net.num_features)
    assert logits.shape == (2, 1008)
    theirs = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(inception_file))
    expected_features, expected_logits = theirs(grey.repeat(1, 3, 1, 1))
    assert torch.equal(features, expected_features)
    assert torch.equal(logits, expected_logits)
    assert net.num_classes is None
    with pytest.raises(ValueError, match="uint8"):
        net(torch.zeros(2, 192))


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("content", ["pickle", "text", "truncated", "other tensors"])
def test_inception_refuses_any_other_file(
    content: str, inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    match content:
        case "pickle":
            torch.save({"fc.weight": Bomb()}, path)
        case "text":
            path.write_text("not a model")
        case "truncated":
            path.write_bytes(inception_file.read_bytes()[:100_000])
        case _:
            torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="must hold the tensors of") as error:
        InceptionFeatures(path)
    assert "\n" not in str(error.value)
    assert not Path("exploded").exists()
    if content == "pickle":
        torch.load(path, weights_only=False)
        assert Path("exploded").exists(), "the file was harmless, so the test proved nothing"
