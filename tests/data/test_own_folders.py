"""Folders as people have them: transparent, grey or mixed images, odd names, links, few images; and caches of them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.cache import Cache
from fewstep.data.imagefolder import ImageFolderData

pytestmark = pytest.mark.usefixtures("unchecked")
SIZE = 8
RED = (255, 0, 0)


def write(path: Path, image: Image.Image, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)
    return path


def plain(value: int | tuple[int, ...], mode: str = "L") -> Image.Image:
    return Image.new(mode, (SIZE, SIZE), value)


def grey_folder(root: Path, count: int = 4) -> Path:
    """Two classes of grey images, every second in a file of three channels."""
    for name in ("a", "b"):
        for number in range(count):
            image = plain(10 * number + 5)
            write(root / name / f"{number}.png", image.convert("RGB") if number % 2 else image)
    return root


def opened(root: Path, **settings: object) -> ImageFolderData:
    given = {"size": SIZE, "batch_size": 2, "stream": "0", "hold_out_every": 2} | settings
    return ImageFolderData(root=str(root), **given)  # pyright: ignore[reportArgumentType]


def values(data: ImageFolderData) -> list[list[int]]:
    """The channels of one pixel of each training image."""
    return data.images[torch.arange(len(data.labels))][:, :, 0, 0].tolist()


def test_a_grey_folder_has_one_channel(tmp_path: Path) -> None:
    data = opened(grey_folder(tmp_path / "x"))
    assert data.facts.shape == (1, SIZE, SIZE)
    assert values(data) == [[5], [25], [5], [25]]
    assert data.batch(0).x.shape == (2, 1, SIZE, SIZE)
    assert "0 damaged images left out, none changed" in data.check()


@pytest.mark.parametrize(("background", "channels"), [("white", 1), ("#333333", 1), ("#ff0000", 3)])
def test_what_lies_behind_grey_images_counts(tmp_path: Path, background: str, channels: int) -> None:
    root = grey_folder(tmp_path / "x")
    write(root / "a" / "0.png", plain((77, 0), "LA"))
    with pytest.warns(UserWarning, match=f"1 transparent on {background}"):
        data = opened(root, background=background)
    assert data.facts.shape == (channels, SIZE, SIZE)
    assert data.facts.background == background
    expected = {"white": [255], "#333333": [0x33], "#ff0000": [255, 0, 0]}[background]
    assert values(data)[0] == expected


def test_one_image_of_colour_among_the_last_makes_three_channels(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    write(root / "b" / "2.png", plain(RED, "RGB"))
    with pytest.warns(UserWarning, match="images were changed: 7 grey, kept in colour"):
        mixed = opened(root)
    assert values(mixed) == [[5] * 3, [25] * 3, [5] * 3, [*RED]]
    assert torch.equal(mixed.images[torch.arange(4)], opened(root, channels=3).images[torch.arange(4)])
    write(root / "b" / "2.png", plain(9))
    assert opened(root).facts.shape[0] == 1  # once it is gone
    write(root / "b" / "2.png", plain(RED, "RGB"))
    assert opened(root).facts.shape[0] == 3  # and back


def test_colour_that_is_only_held_out_becomes_grey(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    write(root / "a" / "1.png", plain(RED, "RGB"))
    with pytest.warns(UserWarning, match="1 of colour made grey"):
        data = opened(root)
    assert data.facts.shape[0] == 1
    assert int(data.held_out.images[torch.tensor([0])].unique()) == 76  # by the weights of ITU-R 601


def test_channels_may_be_given(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    assert values(opened(root, channels=3)) == [[5] * 3, [25] * 3] * 2
    write(root / "a" / "0.png", plain(RED, "RGB"))
    assert values(opened(root, channels=1)) == [[76], [25], [5], [25]]
    assert opened(root).facts.shape[0] == 3  # what was made of the same files for channels=1 is no proof of grey


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"channels": 2}, "channels must be auto, 1 or 3, got 2"),
        ({"channels": "1"}, "channels must be auto, 1 or 3, got '1'"),
        ({"channels": 1, "background": "#ff0000"}, "channels=1 needs a grey dataset.background, got '#ff0000'"),
        ({"background": "red"}, "background must be white, black or a colour '#rrggbb', got 'red'"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, settings, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        opened(grey_folder(tmp_path / "x"), **settings)
    assert not (tmp_path / "x.8.cache").exists()


def age(folder: Path) -> None:
    """Make a cache one of the version before."""
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in folder.glob("*-*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: record[key] for key in record if key not in ("notes", "grey")}))


def test_a_cache_of_the_old_way_is_made_again(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    write(root / "a" / "0.png", plain((9, 9, 9, 0), "RGBA"))
    folder = opened(root).cache.folder
    images = folder / "train-00000.images"
    images.write_bytes(bytes(len(images.read_bytes())))
    age(folder)
    with pytest.warns(UserWarning, match=r"x.8.cache is of an earlier version.*ignored transparency: it is made again"):
        assert values(opened(root))[0] == [255]
    age(folder)
    shutil.rmtree(root)
    with pytest.raises(ValueError, match=r"is of an earlier version.*x is not there to make it again"):
        opened(root)


@pytest.mark.parametrize("changed", [{"background": "black"}, {"channels": 3}])
def test_a_cache_of_other_settings_is_made_again(tmp_path: Path, changed) -> None:
    root = grey_folder(tmp_path / "x")
    write(root / "a" / "0.png", plain((9, 0), "LA"))
    before = opened(root).images[torch.arange(4)]
    with pytest.warns(UserWarning, match="is of other files or settings: it is made again"):
        assert opened(root, **changed).images[torch.arange(4)].tolist() != before.tolist()
    shutil.rmtree(root)
    assert len(opened(root, **changed).labels) == 4  # a finished cache is enough
    with pytest.raises(ValueError, match=r"has images .* not as the settings say.*put it back"):
        opened(root, **({"background": "white"} if "background" in changed else {"channels": 1}))


NAMES = ("1.PNG", "2.tar.png", "3.png.JPEG", "鳥 é.png", "it's 50%.gif", "a\udce9.png", "\x1b[31mred.png")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_classes(tmp_path: Path, name: str) -> None:
    """Upper-case and double extensions, spaces, quotes, other alphabets, bytes that are no UTF-8, terminal escapes."""
    root = grey_folder(tmp_path / "x", count=2)
    form = "JPEG" if name.endswith("JPEG") else "GIF" if name.endswith("gif") else "PNG"
    for folder in ("a", f"{name}.d"):
        for number in range(2):
            write(root / folder / f"{number}{name}", plain(99), format=form)
    data = opened(root)
    assert len(data.labels) == len(data.held_out.labels) == 4
    assert len(data.cache.classes) == 3
    assert name in "".join(data.cache.classes) or not name.isprintable()
    assert data.cache.skipped == []
    assert all(line.isprintable() for line in data.check())


@pytest.mark.parametrize("hidden", [".DS_Store", "._0.png", ".git/0.png", "a/.thumbnails/0.png", "__MACOSX/a/0.png"])
def test_hidden_files_are_none_of_the_images(tmp_path: Path, hidden: str) -> None:
    root = grey_folder(tmp_path / "x")
    write(root / hidden, plain(9), format="PNG")
    data = opened(root)
    assert (data.cache.classes, len(data.labels)) == (["a", "b"], 4)


@pytest.mark.parametrize("target", [".", "..", "a", "a/loop", "b/loop"])
def test_links_that_lead_back_end(tmp_path: Path, target: str) -> None:
    root = grey_folder(tmp_path / "x")
    (root / "a" / "loop").symlink_to(root / target, target_is_directory=True)
    if target == "b/loop":
        (root / "b" / "loop").symlink_to(root / "a", target_is_directory=True)
    data = opened(root)
    assert set(data.labels.tolist()) == {0, 1}
    assert len(data.labels) >= 4


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    elsewhere, root = grey_folder(tmp_path / "there"), tmp_path / "x"
    root.mkdir()
    (root / "a").symlink_to(elsewhere / "a", target_is_directory=True)
    (root / "b").mkdir()
    for path in (elsewhere / "b").iterdir():
        (root / "b" / path.name).symlink_to(path)
    assert values(opened(root)) == values(opened(elsewhere))


def test_a_link_to_nothing_is_damaged_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    (root / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(root / "a" / "pipe.png")
    with pytest.warns(UserWarning, match="1 damaged images were left out"):
        data = opened(root)
    assert data.cache.skipped == ["a/gone.png"]


def test_a_single_class(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    shutil.rmtree(root / "b")
    data = opened(root)
    assert data.facts.num_classes == 1
    assert data.conditions(3).tolist() == [0, 0, 0]  # type: ignore[union-attr]


def test_one_image_a_class_needs_images_to_compare_with(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x", count=1)
    with pytest.raises(ValueError, match=r"at most 1 image.*add images, or a folder val/CLASS"):
        opened(root)
    for name in ("a", "b"):
        write(root / "val" / name / "0.png", plain(9))
    assert len(opened(root).labels) == 2


def test_a_class_of_one_image_is_said_to_be_in_no_figure(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    write(root / "c" / "only.png", plain(9))
    data = opened(root)
    lines = data.check()
    assert "reference: no image of the class(es) c" in lines
    assert any("held out: none of 1 class(es), which figures leave out" in line for line in lines)
    assert data.conditions(4).tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]


def test_imbalance_and_enlarged_images_are_said(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x", count=2)
    for number in range(10):
        write(root / "a" / f"more {number}.png", Image.new("L", (6, 30)))
    with pytest.warns(UserWarning, match="^images were changed: 10 enlarged$"):
        lines = opened(root).check()
    assert "training: imbalanced, a has 6 times as many images as b" in lines
    assert "0 damaged images left out, 10 enlarged" in lines


def test_kinds_are_counted(tmp_path: Path) -> None:
    root = grey_folder(tmp_path / "x")
    exif = Image.Exif()
    exif[0x0112] = 3
    frames = [plain(RED, "RGB"), plain(9, "RGB")]
    write(root / "a" / "turned.jpg", plain(RED, "RGB"), exif=exif)
    write(root / "a" / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    write(root / "a" / "moving.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    write(root / "a" / "print.jpg", plain((0, 255, 255, 0), "CMYK"))
    write(root / "a" / "clear.png", plain((*RED, 0), "RGBA"))
    write(root / "a" / "deep.png", Image.fromarray(np.full((SIZE, SIZE), 65535, np.uint16)))
    with pytest.warns(UserWarning, match="images were changed"):
        cache = opened(root).cache
    assert cache.notes == {
        "grey, kept in colour": 10,
        "first of several frames": 2,
        "rotated": 1,
        "CMYK to RGB": 1,
        "transparent on white": 1,
        "16 bits to 8": 1,
    }
    assert Cache(cache.folder).changes.startswith("10 grey, kept in colour, 2 first of several frames, ")
