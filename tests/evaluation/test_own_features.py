"""Feature extractors trained on images of one's own: which data have one, what it learns, that it is kept and named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.commands.latents import keep_extractor
from fewstep.data.cifar10 import Cifar10Data
from fewstep.data.facts import DataFacts
from fewstep.data.generate import generate_cifar10, pictures
from fewstep.data.labels import Labels, Relabelled
from fewstep.data.latents import FEATURES, OwnLatentsData
from fewstep.data.make_latents import make_latents
from fewstep.data.split import Examples, SplitImages
from fewstep.evaluation import extractors, own_features
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.extractors import build_feature_extractor
from fewstep.evaluation.features import InceptionFeatures
from fewstep.evaluation.own_features import KEY, OwnFeatures, examples, file_for, train, untrained
from fewstep.evaluation.protocol import Protocol
from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder

CLASSES = 3


def own_data(*, num_classes: int = CLASSES, size: int = 12, channels: int = 3, count: int = 240) -> SplitImages:
    """Waves whose colour and direction are those of the class."""
    labels = torch.arange(count) % num_classes
    images = torch.from_numpy(pictures(labels.numpy(), size, seed=num_classes))[:, :channels]
    return SplitImages(
        facts=DataFacts("birds", (channels, size, size), num_classes, -1.0, 1.0),
        train=Examples(images[60:], labels[60:]),
        held_out=Examples(images[:60], labels[:60]),
        batch_size=4,
        stream="test",
    )


@pytest.fixture(autouse=True)
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a second, and a hub without Inception."""
    monkeypatch.setattr(own_features, "num_steps", lambda data: 25)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


def test_it_learns_the_classes_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    data, before = own_data(), torch.get_rng_state()
    first = Evaluator.of(data, cache=tmp_path).net
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(first, OwnFeatures)
    assert (first.name, first.num_classes) == ("classifier of the 3 classes of birds", CLASSES)
    assert first.card.accuracy > 0.9
    (file,) = tmp_path.glob("*.safetensors")
    assert "trained in" in (said := capsys.readouterr().out)
    assert str(file) in said
    again = train(data, 25)[1]  # the same machine, the same bytes
    assert all(torch.equal(again[name], tensor) for name, tensor in load_file(file).items())
    monkeypatch.setattr(own_features, "train", None)
    kept = Evaluator.of(own_data(), cache=tmp_path).net
    assert kept.digest == first.digest
    images = data.held_out.images[torch.arange(9)]
    features, logits = kept(images)
    assert features.shape == (9, kept.num_features)
    assert torch.equal(logits.argmax(1), torch.arange(9) % CLASSES)
    by_hand = build_feature_extractor(data.facts, choice=str(file))
    assert by_hand.digest == first.digest


def test_other_images_other_labels_and_other_recipes_are_trained_anew(tmp_path: Path, monkeypatch) -> None:
    data, other = own_data(), own_data(count=300)
    assert file_for(data, tmp_path) == file_for(own_data(), tmp_path)
    files = {file_for(each, tmp_path) for each in (data, other, own_data(num_classes=2))}
    monkeypatch.setattr(own_features, "RECIPE", 2)
    assert len(files | {file_for(data, tmp_path)}) == 4


def test_the_protocol_names_it(tmp_path: Path) -> None:
    evaluator = Evaluator.of(own_data(), cache=tmp_path)
    protocol = Protocol.of(evaluator.facts, evaluator.net, evaluator.reference, num_images=8, seed=0)
    assert protocol.feature_net == "classifier of the 3 classes of birds"
    assert protocol.feature_net_sha256 == evaluator.net.digest


def test_one_class_is_learnt_by_its_turns(tmp_path: Path) -> None:
    net = Evaluator.of(own_data(num_classes=1), cache=tmp_path).net
    assert isinstance(net, OwnFeatures)
    assert (net.name, net.num_classes) == ("classifier of the quarter turns of the images of birds", None)
    assert net(torch.zeros(2, 3, 12, 12, dtype=torch.uint8))[1].shape == (2, 4)


def test_turns_are_those_of_the_images() -> None:
    card, _ = untrained(own_data(num_classes=1))
    x = torch.arange(2 * 4 * 6.0).reshape(2, 1, 4, 6).expand(-1, 3, -1, -1)
    turned, turns = examples(card, x, torch.zeros(2, dtype=torch.long))
    assert turned.shape == (2, 3, 4, 4)
    for image, whole, number in zip(turned, x, turns.tolist(), strict=True):
        assert torch.equal(image, whole[:, :4, :4].rot90(number, (1, 2)))


def test_labels_of_clusters_leave_it_as_it_is(tmp_path: Path) -> None:
    """It learns the data's own classes; samples of other labels have no accuracy in them."""
    data = own_data()
    own = Evaluator.of(data, cache=tmp_path).net
    other = Evaluator.of(Relabelled(data, Labels.none(len(data.labels))), cache=tmp_path).net
    assert other.digest == own.digest
    assert other.num_classes is None


def test_published_data_need_inception_and_the_error_names_the_ways_out(tmp_path: Path) -> None:
    generate_cifar10(tmp_path / "files", per_batch=20)
    data = Cifar10Data(root=str(tmp_path / "files"), batch_size=1, stream="test")
    for words in ("weights-inception", str(tmp_path / "hub"), r"trainer\.features=own", r"trainer\.features=FILE"):
        with pytest.raises(ValueError, match=words):
            Evaluator.of(data)
    assert isinstance(Evaluator.of(data, "own", tmp_path / "cache").net, OwnFeatures)


def test_inception_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    file = extractors.inception_file()
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="Inception's weight file must hold"):
        Evaluator.of(own_data())
    with pytest.raises(ValueError, match="Inception's weight file must hold"):
        build_feature_extractor(own_data().facts, choice=str(file))
    monkeypatch.setattr(InceptionFeatures, "__init__", lambda *_: pytest.fail("own was chosen"))
    assert isinstance(Evaluator.of(own_data(), "own").net, OwnFeatures)


def test_data_without_pixels_have_none() -> None:
    latent = DataFacts("latents", (4, 8, 8), 3, -1.0, 1.0)
    with pytest.raises(ValueError, match="needs images of pixels to train on, and the latents data here have none"):
        build_feature_extractor(latent, choice="own")


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """Latents of the birds, with an extractor."""
    write_tiny_autoencoder(tmp_path / "vae")
    folder = tmp_path / "latents"
    assert list(make_latents(own_data(), Autoencoder.open(tmp_path / "vae"), folder))[-1] == 180
    keep_extractor(own_data(), folder / FEATURES)
    return folder


def net_of(latents: Path, choice: str = "auto"):
    return Evaluator.of(OwnLatentsData(root=str(latents), batch_size=4, stream="test"), choice).net


def test_latents_are_judged_by_the_extractor_that_was_kept_with_them(latents: Path, capsys) -> None:
    trained = OwnFeatures.of(own_data(), own_data().facts, None)
    assert net_of(latents).digest == trained.digest
    capsys.readouterr()
    keep_extractor(own_data(), latents / FEATURES)  # the command again
    assert capsys.readouterr().out == ""
    (latents / FEATURES).unlink()
    with pytest.raises(ValueError, match="`fewstep latents` given again keeps one with latents"):
        net_of(latents)
    with pytest.raises(ValueError, match=r"leave trainer\.features=auto, for which `fewstep latents` keeps"):
        net_of(latents, "own")


def test_a_kept_extractor_that_cannot_be_used_is_refused_and_made_anew(latents: Path, capsys) -> None:
    keep_extractor(own_data(num_classes=2), latents / FEATURES)
    assert "trained on other images: it is made anew" in capsys.readouterr().err
    with pytest.raises(ValueError, match="of the images of these latents, and is of others; give the same"):
        net_of(latents)
    (latents / FEATURES).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"damaged .*; give the same `fewstep latents` command again"):
        net_of(latents)
    keep_extractor(own_data(), latents / FEATURES)
    assert net_of(latents).digest == OwnFeatures.of(own_data(), own_data().facts, None).digest


@pytest.mark.parametrize("fault", ["missing", "text", "no card", "other recipe", "other weights", "grey", "deep"])
def test_a_file_of_something_else_is_one_error(fault: str, tmp_path: Path) -> None:
    file, facts = tmp_path / "features.safetensors", own_data().facts
    card, weights = untrained(own_data(channels=1 if fault == "grey" else 3))
    described = card.__dict__ | ({"recipe": 99} if fault == "other recipe" else {})
    if fault == "other weights":
        weights.pop("head.bias")
    text = "[" * 100_000 if fault == "deep" else json.dumps(described)
    if fault == "text":
        file.write_text("no extractor")
    elif fault != "missing":
        save_file(weights, file, {} if fault == "no card" else {KEY: text})
    with pytest.raises(ValueError, match=r"train") as error:
        build_feature_extractor(facts, choice=str(file))
    assert "\n" not in str(error.value)
