import torch
from sklearn.datasets import load_digits

from fewstep.data.digits import DigitsSplit, load_digits_split


def test_the_splits_together_are_all_digits(split: DigitsSplit) -> None:
    images = torch.cat([split.train_images, split.test_images])
    assert images.dtype == torch.uint8
    assert len(split.train_images) == len(split.train_labels) == 1433
    assert len(split.test_images) == len(split.test_labels) == 364
    original = (torch.from_numpy(load_digits().images) * 255 / 16).round()
    assert images.sum() == original.sum()
    assert torch.equal(images.flatten(1).unique(dim=0), original.to(torch.uint8).flatten(1).unique(dim=0))


def test_no_image_is_in_both_parts(split: DigitsSplit) -> None:
    """Seen through the images themselves, so that a duplicate in the source would show too."""
    train = {bytes(image.flatten().tolist()) for image in split.train_images}
    assert not train & {bytes(image.flatten().tolist()) for image in split.test_images}


def test_every_class_gives_a_fifth(split: DigitsSplit) -> None:
    held_out, kept = split.test_labels.bincount(), split.train_labels.bincount()
    assert torch.equal(held_out, (held_out + kept + 4) // 5)


def test_the_rule_has_no_chance(split: DigitsSplit) -> None:
    torch.manual_seed(1)
    for again, before in zip(load_digits_split(), split, strict=True):
        assert torch.equal(again, before)
