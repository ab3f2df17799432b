"""dataset.size=auto: the largest size that enlarges at most half of the images of a folder or a zip."""

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image

from fewstep.data.image_sizes import SIZES, fitting_size
from fewstep.data.imagefiles import ImageFiles
from fewstep.data.imagefolder import ImageFolderData


def save_images(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    for number, size in enumerate(sizes):
        path = folder / "class" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", size, (number, 0, 0, 128)).save(path)
    return folder


def fitting(root: Path) -> int:
    files = ImageFiles(root)
    return fitting_size(len(files.files), lambda number: files.read(files.files[number].name), root)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)] * 3, 28),
        ([(200, 70), (64, 300), (72, 72)], 64),
        ([(31, 90)] * 3, 28),
        ([(500, 500)] * 2 + [(20, 20)], 64),  # one is enlarged
        ([(500, 500)] + [(20, 40)] * 2, 16),
        ([(5, 5)], 8),
    ],
)
def test_it_is_the_median_shorter_side_snapped_down(
    sizes: list[tuple[int, int]], expected: int, tmp_path: Path
) -> None:
    folder = save_images(tmp_path / "images", sizes)
    assert fitting(folder) == expected
    assert expected in SIZES
    with ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder))
    assert fitting(tmp_path / "images.zip") == expected


def test_damaged_files_have_no_size(tmp_path: Path) -> None:
    folder = save_images(tmp_path, [(32, 32)] * 2)
    (folder / "class" / "a.png").write_bytes(b"%!PS-Adobe")
    assert fitting(folder) == 32
    for path in folder.rglob("?.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none can be opened"):
        fitting(folder)


def test_the_data_set_takes_it(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", [(30, 40)] * 12)
    data = ImageFolderData(root=str(folder), size="auto", batch_size=2, stream="test")
    assert data.facts.shape[1:] == (28, 28)
    assert (tmp_path / "images.28.cache").is_dir()
    assert data.num_examples == 11
    with pytest.raises(ValueError, match="is not at"):
        ImageFolderData(root=str(tmp_path / "nowhere"), size="auto", batch_size=2, stream="test")
