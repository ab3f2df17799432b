"""Data sets with other labels than their own, and the files of these."""

import json
from pathlib import Path

import pytest
import torch

from fewstep.data.batches import source_digest
from fewstep.data.digits import DigitsData
from fewstep.data.labels import (
    HELD_OUT,
    KEY,
    TRAINING,
    LabelCard,
    Labels,
    Relabelled,
    read_labels,
    relabelled,
    save_labels,
)
from fewstep.data.mixture import MixtureData
from fewstep.data.patches import PatchesData
from fewstep.evaluation.evaluator import Evaluator


def digits(batch_size: int = 64) -> DigitsData:
    return DigitsData(batch_size=batch_size, stream="0/teacher")


def write(path: Path) -> dict[str, torch.Tensor]:
    """A file of labels of the digits: whether a digit is even."""
    data = digits()
    labels = {TRAINING: data.labels % 2, HELD_OUT: data.reference().label % 2}
    settings = {"model": "0" * 64, "knew": "none", "by": "prototypes", "clusters": 2, "share": 0.85, "images": 1000}
    save_labels(path, LabelCard(data="digits", source=source_digest(data), seed=0, **settings), labels)  # pyright: ignore[reportArgumentType]
    return labels


def test_the_images_stay_and_each_has_its_other_label(tmp_path: Path) -> None:
    write(tmp_path / "even.safetensors")
    own, other = digits(), relabelled(digits(), str(tmp_path / "even.safetensors"))
    for step in (0, 30):
        assert torch.equal(other.batch(step).x, own.batch(step).x)
        assert torch.equal(other.batch(step).label, own.batch(step).label % 2)
    assert torch.equal(other.reference().label, own.reference().label % 2)
    assert other.facts.num_classes == 2
    assert other.facts not in (own.facts, relabelled(digits(), "none").facts)  # so their models are kept apart
    assert relabelled(own, "own") is own
    fewer, more = sorted((own.labels % 2).bincount().tolist())
    assert any(f"2 of 2 classes, {fewer} to {more} of each" in line for line in other.check())


def test_without_labels_there_is_one_class() -> None:
    data = relabelled(digits(), "none")
    assert (data.facts.num_classes, data.facts.labels) == (1, "none")
    assert not data.batch(0).label.any()
    assert data.reference().label.shape == (364,)
    assert not data.conditions(10).any()


def test_labels_in_turn_are_as_many_as_in_training_and_spread_evenly() -> None:
    labels = Labels(torch.tensor([0] * 60 + [2] * 30 + [3] * 10), None, 4, "digest")
    for count in (1, 7, 50, 100, 333):
        found = labels.in_turn(count).bincount(minlength=4)
        exact = torch.tensor([0.6, 0.0, 0.3, 0.1]) * count
        assert found.sum() == count
        assert (found - exact).abs().max() <= 1
    for part in labels.in_turn(100).split(20):
        assert part.bincount(minlength=4).tolist() == pytest.approx([12, 0, 6, 2], abs=1)
    equal = Labels(torch.arange(30) % 3, None, 3, "digest")
    assert torch.equal(equal.in_turn(9), torch.arange(9) % 3)


def test_the_protocol_says_which_labels_samples_have(tmp_path: Path) -> None:
    write(tmp_path / "even.safetensors")
    own, other = digits(), relabelled(digits(), str(tmp_path / "even.safetensors"))
    assert Evaluator.of(own).labels(10) == "classes in turn"
    assert Evaluator.of(other).labels(10).startswith(f"labels {str(other.facts.labels)[:12]}")


def test_a_file_that_is_missing_damaged_or_of_other_images_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "even.safetensors"
    with pytest.raises(ValueError, match=r"there is none at .* `fewstep data label digits MODEL"):
        relabelled(digits(), str(file))
    write(file)
    with pytest.raises(ValueError, match="labels of other images: of digits, not of these of patches"):
        relabelled(PatchesData(size=32, batch_size=1, stream=""), str(file))
    whole = file.read_bytes()
    card = json.dumps({"__metadata__": {KEY: "[" * 50_000}}).encode()
    deep = len(card).to_bytes(8, "little") + card
    flipped = bytearray(whole)
    flipped[-9] ^= 1  # a label
    for damaged in (flipped, whole.replace(b"0.85", b"0.95"), whole[:-8], b"", b"\x80\x04pickle", deep):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no file of labels, or is damaged"):
            relabelled(digits(), str(file))


def test_a_reference_of_another_length_is_one_line(tmp_path: Path) -> None:
    labels = write(tmp_path / "even.safetensors")
    found = Labels(labels[TRAINING], labels[HELD_OUT][:100], 2, "digest")
    with pytest.raises(ValueError, match="100 held-out images, and there are 364"):
        Relabelled(digits(), found).reference()


def test_points_keep_their_own() -> None:
    points = MixtureData(num_classes=3, dim=2, std=0.1, num_reference=10, batch_size=4, stream="")
    with pytest.raises(ValueError, match=r"dataset\.labels=none needs images of pixels"):
        relabelled(points, "none")


def test_a_card_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "even.safetensors")
    labels, card = read_labels(tmp_path / "even.safetensors", digits())
    assert (card.by, card.clusters, card.knew) == ("prototypes", 2, "none")
    assert len(labels.training) == 1433
