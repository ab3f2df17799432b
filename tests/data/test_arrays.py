"""NumPy arrays of other dtypes and layouts: what is read is what was stored, and what cannot be read is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.data.array_files import role_of
from fewstep.data.arrays import ArraysData
from fewstep.data.generate import pictures

pytestmark = pytest.mark.usefixtures("unchecked")
LABELS = np.arange(40) % 4
COLOUR = pictures(LABELS, 12, 0)  # uint8 (40, 3, 12, 12)
GREY = COLOUR[:, 0]
COLOUR[0, :, 0, :2] = GREY[0, 0, :2] = 0, 255  # black and white are there


def opened(root: Path, **settings: Any) -> ArraysData:
    return ArraysData(root=str(root), **({"batch_size": 8, "stream": "0", "hold_out_every": 5} | settings))


def saved(path: Path, images: np.ndarray, labels: np.ndarray = LABELS) -> Path:
    np.savez(path, images=images, labels=labels)
    return path


def everything(data: ArraysData) -> np.ndarray:
    """Training images and those held out, in the order of the file."""
    train, held_out = (
        each[torch.arange(count)].numpy()
        for each, count in ((data.images, len(data.labels)), (data.held_out.images, len(data.held_out.labels)))
    )
    found = np.empty((len(train) + len(held_out), *train.shape[1:]), np.uint8)
    is_held_out = np.arange(len(found)) // 4 % 5 == 4  # every fifth of each of the four classes
    found[~is_held_out], found[is_held_out] = train, held_out
    return found


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
        (np.asfortranarray(COLOUR.transpose(0, 2, 3, 1)), COLOUR),
        (GREY, GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (GREY.reshape(40, -1), GREY[:, None]),
        (GREY.astype(np.int64), GREY[:, None]),
        (GREY.astype(">u2"), GREY[:, None]),
        (GREY.astype(np.float32), GREY[:, None]),
        (GREY / 255.0, GREY[:, None]),
        ((GREY / 255.0).astype(np.float16), GREY[:, None]),
        (GREY / 127.5 - 1, GREY[:, None]),
        (GREY.astype(np.uint16) * 257, GREY[:, None]),
        (GREY > 100, (GREY > 100)[:, None] * np.uint8(255)),
        ((GREY > 100).astype(np.uint8), (GREY > 100)[:, None] * np.uint8(255)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else None,
)
def test_dtypes_and_layouts(tmp_path: Path, stored: np.ndarray, expected: np.ndarray) -> None:
    data = opened(saved(tmp_path / "a.npz", stored))
    assert data.facts.shape == expected.shape[1:]
    difference = everything(data).astype(int) - expected
    assert np.abs(difference).max() <= (1 if stored.dtype == np.float16 else 0)
    assert data.labels.bincount().tolist() == [8] * 4


@pytest.mark.parametrize("background", ["white", "black"])
def test_alpha_is_put_on_the_background(tmp_path: Path, background: str) -> None:
    alpha = np.full((40, 1, 12, 12), 255, np.uint8)
    alpha[:, :, :6] = 0
    for images, channels in ((COLOUR, 3), (GREY[:, None], 1)):
        stored = np.concatenate([images, alpha], 1).transpose(0, 2, 3, 1)
        data = opened(saved(tmp_path / f"{background}{channels}.npz", stored), background=background)
        found = everything(data)
        assert data.facts.shape == (channels, 12, 12)
        assert (found[:, :, :6] == (255 if background == "white" else 0)).all()
        assert np.array_equal(found[:, :, 6:], images[:, :, 6:])
        assert f"40 transparent on {background}" in data.cache.changes


def test_a_range_that_is_given_counts(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.npz", GREY.astype(np.uint16) * 16)  # 12 bits in 16
    with pytest.raises(ValueError, match=r"from 0 to 4080, .*dataset.value_range=\[BLACK,WHITE\]"):
        opened(file)
    data = opened(file, value_range=(0.0, 4080.0))
    assert np.array_equal(everything(data)[:, 0], GREY)
    assert "training: images uint16 (40, 12, 12) read as N H W, 0 is black and 4080 white" in data.check()[0]


def test_a_size_crops_and_resizes(tmp_path: Path) -> None:
    wide = np.full((40, 16, 24), 77, np.uint8)
    assert opened(saved(tmp_path / "a.npz", wide)).facts.shape == (1, 16, 16)
    data = opened(tmp_path / "a.npz", size=8)
    assert data.facts.shape == (1, 8, 8)
    assert np.unique(everything(data)).tolist() == [77]
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.npz.cache", "a.npz.8.cache"}


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype(np.uint8),
        LABELS[:, None],
        LABELS.astype(np.float32),
        np.eye(4)[LABELS],
        np.eye(4, dtype=bool)[LABELS],
        np.array(["ant", "bee", "cat", "dog"])[LABELS],
        np.array([0, 2, 5, 9])[LABELS],
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_labels_in_other_forms(tmp_path: Path, labels: np.ndarray) -> None:
    data = opened(saved(tmp_path / "a.npz", GREY, labels))
    assert data.facts.num_classes == 4
    kept = np.arange(40) // 4 % 5 != 4
    assert data.labels.tolist() == LABELS[kept].tolist()
    assert data.cache.classes == [str(each) for each in np.unique(labels if labels.shape == (40,) else LABELS)] or (
        labels.dtype.kind == "f"
    )


@pytest.mark.parametrize(
    ("names", "num_held_out"),
    [
        (("x_train", "y_train", "x_test", "y_test"), 10),
        (("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"), 10),
        (("X", "Y"), 8),
        (("arr_0", "arr_1"), 8),
        (("faces", "labels"), 8),
    ],
)
def test_usual_names(tmp_path: Path, names: tuple[str, ...], num_held_out: int) -> None:
    arrays = {
        name: array[: (40, 40, 10, 10, 5, 5)[n]] for n, name in enumerate(names) for array in [(GREY, LABELS)[n % 2]]
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    data = opened(tmp_path / "a.npz")
    assert len(data.held_out.labels) == num_held_out
    assert len(data.labels) == (40 if len(names) > 2 else 32)


def test_names() -> None:
    assert role_of("X_train") == ("train", "images")
    assert role_of("testLabels".lower()) == ("train", "")
    assert role_of("labels_validation") == ("val", "labels")


def test_npy_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "images.npy", GREY)
    with pytest.raises(ValueError, match=r"no labels beside images .*dataset.labels=FILE.npy.*dataset.labels=none"):
        opened(folder)
    np.save(tmp_path / "other.npy", LABELS)
    expected = opened(folder, labels=str(tmp_path / "other.npy")).labels
    np.save(folder / "labels.npy", LABELS)
    assert torch.equal(opened(folder).labels, expected)
    alone = opened(folder / "images.npy", labels="none")
    assert (alone.facts.num_classes, len(alone.labels)) == (1, 32)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": np.array([Evil()] * 40, object), "labels": LABELS}, "Python objects in images"),
        ({"images": GREY, "labels": np.array(list("abcd") * 10, object)}, "Python objects in labels"),
        ({"images": GREY, "labels": LABELS[:7]}, "must be one for each of 40 images"),
        ({"images": GREY, "labels": LABELS - 1}, "from 0 to 2\\^63 - 1, and go from -1 to 2"),
        ({"images": GREY, "labels": LABELS * 1e30}, "from 0 to 2\\^63 - 1"),
        ({"images": GREY, "labels": LABELS.astype(np.uint64) + 2**63}, "from 0 to 2\\^63 - 1"),
        ({"images": GREY, "labels": LABELS + 0.5}, "whole numbers or texts"),
        ({"images": GREY, "labels": np.ones((40, 3))}, "one-hot"),
        ({"images": COLOUR[:, :, None], "labels": LABELS}, "N H W, N H W C or N C H W"),
        ({"images": np.zeros((40, 5, 7, 7)), "labels": LABELS}, "of 1, 3 or 4 channels"),
        ({"images": np.zeros((40, 7, 7)), "labels": LABELS}, "values go from 0 to 0"),
        ({"images": np.full((40, 7, 7), np.nan), "labels": LABELS}, "must be finite numbers"),
        ({"images": GREY * 1e6, "labels": LABELS}, "value_range"),
        ({"images": GREY.astype(str), "labels": LABELS}, "images of numbers"),
        ({"images": GREY.astype("M8[s]"), "labels": LABELS}, "images of numbers"),
        ({"images": GREY.astype(complex), "labels": LABELS}, "images of numbers"),
        ({"images": GREY[:, :, :0], "labels": LABELS}, "one pixel at least"),
        ({"x_train": GREY, "y_train": LABELS, "x_test": GREY / 255, "y_test": LABELS}, "stored in one range.*value_ra"),
        ({"foo": LABELS, "bar": LABELS}, r"np.savez\(FILE, images"),
        ({"x_test": GREY, "y_test": LABELS}, "must name its images and labels .* and has .*x_test"),
        ({"images": GREY, "labels": LABELS, "x_test": GREY[:, :9], "y_test": LABELS}, "images of one shape"),
        ({"images": GREY, "labels": LABELS, "x_test": GREY, "y_test": LABELS + 1}, "holds out the class 4"),
        (
            {"images": GREY, "labels": np.arange(40)},
            "at most 1 image.* of a class, so that none is number 5 of its class.*add images",
        ),
        ({"images": GREY[:16], "labels": LABELS[:16]}, "set dataset.hold_out_every to at most 4"),
        ({}, "has no array"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys, content: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "a.npz", **content)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=words):
        opened(tmp_path / "a.npz")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (np.array(["a\x1b[31m", "b\n", "c", "d"]), ["a\\x1b[31m", "b\\n", "c", "d"]),
        (np.array([b"\xff", "\xe4".encode(), b"c", b"d"]), ["\\xff", "c", "d", "\xe4"]),
    ],
)
def test_names_of_classes_are_printable_and_read_again(tmp_path: Path, names: np.ndarray, classes: list[str]) -> None:
    file = saved(tmp_path / "a.npz", GREY, names[LABELS])
    assert sorted(opened(file).cache.classes) == sorted(opened(file).cache.classes) == sorted(classes)


@pytest.mark.parametrize("labels", [LABELS - 1, LABELS[:7], np.array([None] * 40)])
def test_without_labels_those_in_the_file_are_not_read(tmp_path: Path, labels: np.ndarray) -> None:
    data = opened(saved(tmp_path / "a.npz", GREY, labels), labels="none")
    assert (data.facts.num_classes, len(data.labels), len(data.held_out.labels)) == (1, 32, 8)
    assert "no labels" in data.check()[0]


def test_objects_beside_images_and_labels_are_no_matter(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS, about=np.array({"made": Evil()}, object))
    assert opened(tmp_path / "a.npz").facts.num_classes == 4


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.npz", GREY).read_bytes()
    np.save(tmp_path / "a.npy", GREY)
    array = (tmp_path / "a.npy").read_bytes()
    for name, content in {"cut.npz": whole[:500], "no.npz": b"no", "cut.npy": array[:500], "no.npy": b"no"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is truncated, damaged or no file of NumPy arrays"):
            opened(tmp_path / name, labels="none")
    with pytest.raises(ValueError, match=r"np.savez\(FILE, images=..., labels=...\).*trainer=debug"):
        opened(tmp_path / "nothing.npz")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "dataset.size must be at least 1 and at most 4,096, a whole number, got 0"),
        ({"size": 100_000}, "dataset.size must be at least 1 and at most 4,096, a whole number, got 100000"),
        ({"value_range": (1.0, 0.0)}, "dataset.value_range must be"),
        ({"value_range": (1.0,)}, "dataset.value_range must be"),
        ({"hold_out_every": 1}, "hold_out_every must be at least 2"),
        ({"hold_out_every": 11}, "at most 10 image.* of a class, .*hold_out_every to at most 10"),
        ({"background": "pink"}, "dataset.background"),
    ],
)
def test_settings_outside_their_range(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        opened(saved(tmp_path / "a.npz", GREY), **settings)
