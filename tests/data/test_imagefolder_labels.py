"""Image folders whose labels are not in folders: in a table, or nowhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.imagefolder import ImageFolderData
from fewstep.data.label_table import read_label_table
from fewstep.data.labels import relabelled

pytestmark = pytest.mark.usefixtures("unchecked")
NAMES = ["a/1.png", "a/2.png", "b/3.jpg"]


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    return tmp_path / "labels.csv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,label\na/1.png,cat\na/2.png,dog\nb/3.jpg,cat\n", "cat dog cat"),
        ("\ufeffid\tbreed\n1\tx\n2\ty\n3\tz\n", "x y z"),
        ("1.png;cat\n2.png;dog\n3.jpg;cat\n", "cat dog cat"),
        ('label,x,image_id\n"a, b",0,1.png\n7,0,./a/2.png\n7,0,a\\..\n', "a, b 7"),
        ("foo,bar\nx,3\ny,1\nz,2\n", "x y z"),
    ],
)
def test_tables_of_usual_forms(tmp_path: Path, text: str, expected: str) -> None:
    path = table(tmp_path, text)
    if "image_id" in text:
        with pytest.warns(UserWarning, match="1 images have no row"), pytest.warns(UserWarning, match="1 rows of"):
            found = read_label_table(path, NAMES)
    else:
        found = read_label_table(path, NAMES)
    assert " ".join(found.values()) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least two columns"),
        ("file\n1.png\n", "at least two columns"),
        ("foo,bar\nq,r\n", "a column of file names and one of labels"),
        ("a,b,c\n1.png,x,y\n", "a column of file names and one of labels"),
        ("file,label\n9.png,x\n", "none of its 2 rows does; the files are named like a/1.png"),
        ("file,label\n1.png,x\na/1.png,y\n", "one class for each file, and has x and y for a/1.png"),
    ],
)
def test_tables_that_say_nothing_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_label_table(table(tmp_path, text), NAMES)


def test_a_name_of_several_files_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label\na/1.png,x\n1.png,x\n")
    with pytest.raises(ValueError, match="several files are called so; add folders"):
        read_label_table(path, ["a/1.png", "b/1.png"])
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe,\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_label_table(path, NAMES)
    with pytest.raises(ValueError, match="there is none at"):
        read_label_table(tmp_path / "nothing.csv", NAMES)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Twelve images of as many shades in one folder."""
    (tmp_path / "flat").mkdir()
    for number in range(12):
        Image.fromarray(np.full((9, 8, 3), (number, 9, 9), np.uint8)).save(tmp_path / f"flat/{number:02}.png")
    return tmp_path / "flat"


def opened(root: Path, labels: str, **settings: Any) -> ImageFolderData:
    own = {"size": 8, "batch_size": 5, "stream": "0", "hold_out_every": 3}
    return ImageFolderData(root=str(root), labels=labels, **(own | settings))


def test_a_flat_folder_has_no_labels(flat: Path) -> None:
    with pytest.raises(ValueError, match=r"00.png is in none.*dataset.labels=FILE.csv.*dataset.labels=none"):
        opened(flat, "own")
    data = relabelled(opened(flat, "none"), "none")
    assert (data.facts.num_classes, data.facts.labels) == (1, "none")
    assert data.reference().x.shape == (4, 3, 8, 8)
    assert not data.batch(0).label.any()
    assert any("1 of 1 classes, 8 to 8 of each" in line for line in data.check())


def test_folders_do_not_matter_without_labels(flat: Path) -> None:
    for name in ("train", "val", "val/deep"):
        (flat / name).mkdir()
    for number in range(12):
        where = "train" if number < 9 else "val" if number < 11 else "val/deep"
        (flat / f"{number:02}.png").rename(flat / where / f"{number:02}.png")
    data = opened(flat, "none")
    assert (len(data.labels), len(data.held_out.labels)) == (9, 3)


def test_a_table_makes_the_classes(flat: Path) -> None:
    rows = "".join(f"{number:02}.png,{10 if number % 2 else 9}\n" for number in range(12) if number != 5)
    table(flat, f"file,label\n{rows}")
    with pytest.warns(UserWarning, match="1 images have no row"):
        data = opened(flat, "labels.csv")  # looked for in the root too
    assert data.cache.classes == ["9", "10"]  # as numbers
    shades = [int(image[0, 0, 0]) for image in data.images[torch.arange(len(data.labels))]]
    assert [label == shade % 2 for label, shade in zip(data.labels.tolist(), shades, strict=True)] == [True] * 8
    assert 5 not in shades
    table(flat, f"file,label\n{rows}".replace(",10", ",11"))
    with pytest.warns(UserWarning, match="1 images have no row"):
        assert opened(flat, "labels.csv").cache.classes == ["9", "11"]
