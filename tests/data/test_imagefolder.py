"""Folders and zips of images: what is a class, what is held out, how a square is cut, what is damaged."""

from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import imagefiles
from fewstep.data.generate import generate_imagefolder
from fewstep.data.imagefiles import ImageFile, centre_crop, split_by_class
from fewstep.data.imagefolder import ImageFolderData

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of ten images."""
    generate_imagefolder(tmp_path / "images", num_classes=3, per_class=10)
    return tmp_path / "images"


def opened(root: Path, **settings) -> ImageFolderData:
    return ImageFolderData(
        root=str(root), **({"size": 32, "batch_size": 5, "stream": "0", "hold_out_every": 5} | settings)
    )


def zipped(root: Path, out: Path, prefix: str = "") -> Path:
    with ZipFile(out, "w") as archive:
        for path in sorted(root.rglob("*.png"), reverse=True):
            archive.write(path, prefix + path.relative_to(root).as_posix())
        archive.writestr("__MACOSX/._000.png", b"")
        archive.writestr("README.txt", b"")
    return out


def everything(data: ImageFolderData) -> torch.Tensor:
    return data.images[torch.arange(len(data.labels))]


def halved(pixels: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels: of two in a row, rounded, then of two such in a column, rounded, as Pillow does."""
    wide = pixels.astype(int)
    rows = (wide[:, ::2] + wide[:, 1::2] + 1) // 2
    return ((rows[::2] + rows[1::2] + 1) // 2).astype(np.uint8)


@pytest.mark.parametrize("shape", [(128, 128), (160, 128), (128, 300), (512, 1024)])
def test_the_crop_is_box_halving_where_that_is_all(shape: tuple[int, int]) -> None:
    """Sides that are the size times a power of two: no bicubic step moves a pixel, and numpy can say what comes out."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = pixels
    while min(expected.shape[:2]) >= 2 * 32:
        expected = halved(expected)
    top, left = (expected.shape[0] - 32) // 2, (expected.shape[1] - 32) // 2
    expected = expected[top : top + 32, left : left + 32].transpose(2, 0, 1)
    found = centre_crop(Image.fromarray(pixels), 32)
    assert np.array_equal(found, expected)


def cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' kernel (1981), as Pillow's BICUBIC."""
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resized(length: int, size: int) -> np.ndarray:
    """The matrix that resamples `length` values to `size`, its kernel widened when it shrinks."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale
    weights = cubic((np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(48, 48), (50, 61), (90, 51), (20, 27)])
def test_the_crop_is_bicubic_below_twice_the_size(shape: tuple[int, int]) -> None:
    """Smooth pixels, so that Pillow's rounding between its two passes does not show."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels = np.stack([128 + 90 * np.sin(x / 7), 128 + 90 * np.cos(y / 9), x + y], -1).astype(np.uint8)
    height, width = (round(side * 32 / min(shape)) for side in shape)
    full = np.einsum("hy,wx,yxc->hwc", resized(shape[0], height), resized(shape[1], width), pixels.astype(float))
    top, left = (height - 32) // 2, (width - 32) // 2
    expected = full[top : top + 32, left : left + 32].transpose(2, 0, 1).round().clip(0, 255)
    assert np.abs(centre_crop(Image.fromarray(pixels), 32) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(1, 60_000, 3), (60_000, 1, 3)])
def test_a_line_of_pixels_is_no_gigabytes(shape: tuple[int, int, int]) -> None:
    pixels = np.zeros(shape, np.uint8)
    pixels.reshape(-1, 3)[29_500:30_500] = 200
    tracked: list[int] = []
    resize = Image.Image.resize

    def counted(image: Image.Image, size: tuple[int, int], *args: Any, **settings: Any) -> Image.Image:
        tracked.append(size[0] * size[1])
        return resize(image, size, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", counted)
        found = centre_crop(Image.fromarray(pixels), 64)
    assert np.unique(found).tolist() == [200]
    assert max(tracked) <= 17 * 64 * 64


def test_a_zip_gives_the_same_as_its_folder(root: Path, tmp_path: Path) -> None:
    folder = opened(root)
    for number, prefix in enumerate(("", "images/")):
        packed = opened(zipped(root, tmp_path / f"{number}.zip", prefix))
        assert torch.equal(everything(packed), everything(folder))
        assert torch.equal(packed.labels, folder.labels)
        assert torch.equal(packed.reference().x, folder.reference().x)
        assert packed.facts == folder.facts
    assert folder.cache.folder == root.with_name("images.32.cache")


def test_every_nth_of_each_class_is_held_out(root: Path) -> None:
    data = opened(root)
    assert data.labels.bincount().tolist() == [8, 8, 8]
    assert data.held_out.labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = [centre_crop(Image.open(root / "class-1" / f"{n:03d}.png"), 32) for n in (4, 9)]
    assert np.array_equal(data.held_out.images[torch.tensor([2, 3])].numpy(), np.stack(expected))
    train = {image.numpy().tobytes() for image in everything(data)}
    assert not train & {image.numpy().tobytes() for image in data.held_out.images[torch.arange(6)]}


def named(*names: str) -> list[ImageFile]:
    return [ImageFile(name, (1, 1)) for name in names]


def test_folders_train_and_val_are_the_split() -> None:
    files = named("train/b/1.png", "train/a/deep/1.png", "val/b/1.png", "val/b/2.png")
    classes, train, held_out = split_by_class(files, Path("root"), 2)
    assert classes == ["a", "b"]
    assert [(e.file.name, e.label) for e in train] == [("train/b/1.png", 1), ("train/a/deep/1.png", 0)]
    assert [(e.file.name, e.label) for e in held_out] == [("val/b/1.png", 1), ("val/b/2.png", 1)]


def test_val_beside_the_classes_is_held_out_and_a_class_may_be_called_train() -> None:
    classes, train, held_out = split_by_class(named("a/1.png", "b/1.png", "val/a/1.png"), Path("root"), 2)
    assert (classes, len(train), len(held_out)) == (["a", "b"], 2, 1)
    classes, train, held_out = split_by_class(named("train/1.png", "train/2.png", "car/1.png"), Path("root"), 2)
    assert (classes, len(train), len(held_out)) == (["car", "train"], 2, 1)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["1.png", "a/1.png"], r"a folder for each class, and 1.png is in none"),
        (["train/a/1.png", "val/b/1.png"], r"val has the class b, which is not among"),
    ],
)
def test_files_that_fit_no_class_are_named(names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split_by_class(named(*names), Path("root"), 2)


def damage(root: Path) -> None:
    (root / "class-0" / "000.png").write_bytes((root / "class-0" / "000.png").read_bytes()[:500])
    (root / "class-2" / "003.png").write_bytes(b"no image")


def test_damaged_images_are_left_out_and_counted(root: Path) -> None:
    damage(root)
    with pytest.warns(UserWarning, match="2 damaged images were left out"):
        data = opened(root)
    assert data.labels.bincount().tolist() == [7, 8, 7]
    assert "2 damaged images left out, none changed" in data.check()
    assert data.cache.skipped == ["class-0/000.png", "class-2/003.png"]
    expected = np.stack([centre_crop(Image.open(root / "class-1" / f"{n:03d}.png"), 32) for n in (0, 1, 2)])
    assert np.array_equal(data.images[torch.tensor([7, 8, 9])].numpy(), expected)  # labels still belong to images


def test_damaged_images_are_refused_when_strict(root: Path) -> None:
    damage(root)
    with pytest.raises(ValueError, match=r"class-0/000.png is damaged or no image.*dataset.strict=false"):
        opened(root, strict=True)
    with pytest.warns(UserWarning, match="2 damaged"):
        opened(root)
    with pytest.raises(ValueError, match="is damaged or no image"):
        opened(root, strict=True)  # though a cache without them is there


def test_a_damaged_image_in_a_zip_is_left_out(root: Path, tmp_path: Path) -> None:
    packed = zipped(root, tmp_path / "images.zip")
    first = (root / "class-0" / "000.png").read_bytes()
    content = packed.read_bytes()
    packed.write_bytes(content.replace(first[100:140], b"#" * 40))
    with pytest.warns(UserWarning, match="1 damaged images were left out"):
        assert len(opened(packed).labels) == 23


def test_all_of_it_damaged_is_an_error(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="training part"), pytest.warns(UserWarning, match="30 damaged"):
        opened(root)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda path: path.mkdir(), {}, "must hold images"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut"), {}, "truncated, damaged or no zip"),
        (lambda path: generate_imagefolder(path, per_class=3), {"hold_out_every": 1}, "at least 2, got 1"),
        (lambda path: generate_imagefolder(path, per_class=3), {"size": 0}, "size must be at least 1"),
        (
            lambda path: generate_imagefolder(path, per_class=3),
            {"size": 100_000},
            "at most 4,096, a whole number, got 100000",
        ),
        (lambda path: generate_imagefolder(path), {"num_reference": 0}, "num_reference must be at least 1"),
        (lambda path: generate_imagefolder(path, per_class=3), {}, "at most 3 image.*hold_out_every to at most 3"),
        (lambda path: None, {}, "a sub-folder of images for each class.*trainer=debug"),
    ],
)
def test_what_is_no_such_folder_is_refused(tmp_path: Path, make, settings, words: str) -> None:
    make(tmp_path / "given")
    with pytest.raises(ValueError, match=words):
        opened(tmp_path / "given", **settings)


def test_an_image_that_came_or_went_is_noticed(root: Path) -> None:
    assert len(opened(root).held_out.labels) == 6
    (root / "class-0" / "000.png").unlink()
    assert len(opened(root).held_out.labels) == 5


def test_sizes_have_caches_of_their_own(root: Path) -> None:
    assert opened(root, size=16).facts.shape == (3, 16, 16)
    assert opened(root, size=32).facts.shape == (3, 32, 32)
    assert {path.name for path in root.parent.iterdir()} == {"images", "images.16.cache", "images.32.cache"}


def test_many_parts_are_one_array(root: Path, monkeypatch) -> None:
    whole = everything(opened(root))
    monkeypatch.setattr(imagefiles, "PART_BYTES", 5 * 3 * 32 * 32)
    monkeypatch.setattr(imagefiles, "CHUNK", 2)
    parts = opened(root, cache=str(root.with_name("parts")))
    assert len(list(root.with_name("parts").glob("train-*.images"))) == 5
    index = torch.randperm(24)
    assert torch.equal(parts.images[index], whole[index])


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    for name in ("a/1.JPG", "a/2.jpeg"):
        buffer = BytesIO()
        Image.fromarray(np.full((70, 70, 3), 77, np.uint8)).save(buffer, "JPEG")
        path = tmp_path / "given" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    assert everything(opened(tmp_path / "given", hold_out_every=2)).unique().tolist() == [77]


def test_changed_images_are_counted_in_one_warning(root: Path) -> None:
    for name, mode in (("000", "L"), ("001", "L"), ("002", "RGBA")):
        path = root / "class-1" / f"{name}.png"
        image = Image.open(path).convert(mode)
        if mode == "RGBA":
            image.putalpha(0)
        image.save(path)
    with pytest.warns(UserWarning, match="^images were changed: 3 grey, kept in colour, 1 transparent on white$"):
        opened(root)
    assert "0 damaged images left out, 3 grey, kept in colour, 1 transparent on white" in opened(root).check()


def test_an_image_that_is_another_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    for value in (7, 200):
        for name in ("a/1.bmp", "a/2.bmp"):
            path = tmp_path / "given" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(path)
        assert everything(opened(tmp_path / "given", hold_out_every=2)).unique().tolist() == [value]
        packed = opened(zipped_bmp(tmp_path / "given", tmp_path / "given.zip"), hold_out_every=2)
        assert everything(packed).unique().tolist() == [value]


def zipped_bmp(root: Path, out: Path) -> Path:
    with ZipFile(out, "w") as archive:
        for path in sorted(root.rglob("*.bmp")):
            archive.write(path, path.relative_to(root).as_posix())
    return out


def test_what_is_not_from_here_stays_in_the_folder_of_a_cache(root: Path, tmp_path: Path) -> None:
    kept = [tmp_path / "mine" / name for name in ("notes.json", "my.images", ".x.tmp", "train-1.json")]
    kept[0].parent.mkdir()
    for path in kept:
        path.write_text("precious")
    opened(root, cache=str(tmp_path / "mine"))
    assert all(path.read_text() == "precious" for path in kept)


@pytest.mark.parametrize("content", ["{}", "{", "[]"])
def test_a_manifest_of_something_else_is_never_replaced(root: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json is damaged or not of fewstep.*dataset.cache"):
        opened(root, cache=str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "manifest.json").read_text() == content
