"""Files that a user gives as images and masks: what is refused in one line, and what comes back as it was."""

import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.commands.images import save_images
from fewstep.data.digits import DigitsData
from fewstep.inference.image_io import read_images, read_mask, read_picture

FACTS = DigitsData.facts
PIXELS = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (np.full((8, 8), np.nan), "finite numbers,.* got float64"),
        (np.full((8, 8), "a"), "finite numbers,.* got <U1"),
        (np.zeros(8, [("a", int)]), "finite numbers,.* got "),
        (np.ones((9, 9)), r"\(1, 8, 8\).*\(9, 9\)"),
        (np.array(0), "marks nothing"),
    ],
)
def test_masks_that_are_none(tmp_path: Path, mask: np.ndarray, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_mask(str(npz(tmp_path / "mask.npz", mask=mask)), [(8, 8)] * 4, FACTS)


def test_a_number_is_a_mask_of_everything(tmp_path: Path) -> None:
    assert read_mask(str(npz(tmp_path / "mask.npz", mask=np.array(1))), [(8, 8)] * 4, FACTS).all()


def test_archives_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    header = BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 1)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"truncated or no \.npz"):  # a terabyte, and it is not there
        read_images([path], FACTS)
    path.write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(ValueError, match=r"no \.npz of plain arrays") as caught:
        read_images([path], FACTS)
    assert "allow_pickle" not in str(caught.value)  # numpy would advise to open it
    with pytest.raises(ValueError, match=r"and .* has uint8 \(2, 0, 8, 1\)"):
        read_images([npz(path, images=PIXELS[:2, :0])], FACTS)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"8 or 16 bits.*mode F"):
        read_images([tmp_path / "a.tif"], FACTS)


def test_labels_that_are_prompts_are_no_classes(tmp_path: Path) -> None:
    """As `fewstep sample` of a text model writes them: the images are given all the same."""
    given = read_images([npz(tmp_path / "a.npz", images=PIXELS, labels=np.array(list("abcd")))], FACTS)
    assert given.labels is None
    assert len(given.images) == 4
    huge = read_images([npz(tmp_path / "b.npz", images=PIXELS, labels=np.full(4, 2**63, np.uint64))], FACTS)
    assert huge.labels is not None
    assert (huge.labels < 0).all()  # no class either


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    """One image is its own file, pixel for pixel, and several are rows of at most `in_a_row`."""
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1
    save_images(x[:1], torch.tensor([3]), FACTS, tmp_path / "one.png")
    torch.testing.assert_close(read_images([tmp_path / "one.png"], FACTS).images, x[:1])
    save_images(x, torch.arange(4), FACTS, tmp_path / "four.npz")
    given = read_images([tmp_path / "four.npz"], FACTS)
    torch.testing.assert_close(given.images, x)
    assert given.labels is not None
    assert given.labels.tolist() == [0, 1, 2, 3]
    save_images(x, torch.zeros(4, 3, 2), FACTS, tmp_path / "prompts.npz", prompts=list("abcd"))
    with np.load(tmp_path / "prompts.npz") as file:
        assert sorted(file) == ["images", "labels"]
        assert file["labels"].tolist() == list("abcd")
    save_images(x, torch.zeros(4, 3, 2), FACTS, tmp_path / "embedded.npz")
    with np.load(tmp_path / "embedded.npz") as file:
        assert list(file) == ["images"]  # zeros would say class 0
    save_images(x.repeat(8, 1, 1, 1), torch.zeros(32).long(), FACTS, tmp_path / "many.png")
    many = Image.open(tmp_path / "many.png")
    assert (many.size, many.mode) == ((10 * 50 + 2, 4 * 50 + 2), "L")


def test_images_masks_and_references_come_in_by_the_one_decoder(tmp_path: Path) -> None:
    """Transparent on the background that the model's data had, turned, the first frame; a mask keeps what is clear."""
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    clear.paste((200, 200, 200, 255), (0, 0, 4, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    clear.save(tmp_path / "clear.png", exif=exif)
    with pytest.warns(UserWarning, match=r"^1 image\(s\) rotated, transparent on black$"):
        given = read_images([tmp_path / "clear.png"], replace(FACTS, background="black"))
    assert (given.images[0, 0, 0] * 127.5 + 127.5).round().tolist() == [0] * 4 + [200] * 4
    assert read_mask(str(tmp_path / "clear.png"), [(8, 8)], FACTS)[0, 0, 0].tolist() == [False] * 4 + [True] * 4
    with pytest.warns(UserWarning, match="transparent on #ff0000"):
        assert read_picture(tmp_path / "clear.png", "#ff0000")[:, 0, 0].tolist() == [1, -1, -1]
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.warns(UserWarning, match="of colour made grey"):
        assert (read_images([tmp_path / "red.png"], FACTS).images + 1).mul(127.5).round().unique().tolist() == [76]
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    for read in (lambda path: read_images([path], FACTS), lambda path: read_mask(str(path), [(8, 8)], FACTS)):
        with pytest.raises(ValueError, match=r"script\.png is no image that can be read whole \(no JPEG, PNG"):
            read(tmp_path / "script.png")
