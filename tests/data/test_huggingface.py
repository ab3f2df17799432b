"""Hugging Face data sets on disk: splits, columns of images and labels, what is damaged, what is missing."""

from importlib import util
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.huggingface import HuggingFaceData
from fewstep.data.tables import split_of

NAMES = ["cat", "dog", "emu"]
pytestmark = pytest.mark.usefixtures("unchecked")
needs_library = pytest.mark.skipif(util.find_spec("datasets") is None, reason="pip install 'fewstep[huggingface]'")


def opened(root: Path, **settings: Any) -> HuggingFaceData:
    return HuggingFaceData(
        root=str(root), **({"size": 8, "batch_size": 4, "stream": "0", "hold_out_every": 5} | settings)
    )


def png(shade: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((8, 8, 3), (shade, 9, 99), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def made(shades: range, **columns: Any) -> Any:
    """A data set of the library, of images of those shades; the class is the shade modulo 3."""
    from datasets import ClassLabel, Dataset, Features  # pyright: ignore[reportMissingImports]
    from datasets import Image as ImageFeature  # pyright: ignore[reportMissingImports]

    features = Features(image=ImageFeature(), label=ClassLabel(names=NAMES))
    values: dict[str, Any] = {"image": [{"bytes": png(shade), "path": None} for shade in shades]}
    values["label"] = [shade % 3 for shade in shades]
    return Dataset.from_dict(values | columns, features=features)


def raw(path: Path, **columns: Any) -> Path:
    """A Parquet file that the library did not write."""
    from pyarrow import table  # pyright: ignore[reportMissingImports]
    from pyarrow.parquet import write_table  # pyright: ignore[reportMissingImports]

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(table(columns), path)
    return path


def shades(data: HuggingFaceData) -> tuple[list[int], list[int]]:
    """The shades of the training images and of those held out."""
    train, held_out = (
        images[torch.arange(len(labels))][:, 0, 0, 0].tolist()
        for images, labels in ((data.images, data.labels), data.held_out)
    )
    return train, held_out


@needs_library
def test_saved_splits_and_parquet_files_are_the_same_data(tmp_path: Path) -> None:
    from datasets import DatasetDict  # pyright: ignore[reportMissingImports]

    splits = {"train": made(range(20)), "test": made(range(30, 36))}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    files = tmp_path / "files"
    files.mkdir()
    made(range(12)).to_parquet(files / "train-00000-of-00002.parquet")
    made(range(12, 20)).to_parquet(files / "train-00001-of-00002.parquet")
    splits["test"].to_parquet(files / "test-00000-of-00001.parquet")
    for root in (tmp_path / "saved", files):
        data = opened(root)
        assert shades(data) == ([*range(20)], [*range(30, 36)])
        assert data.labels.tolist() == [shade % 3 for shade in range(20)]
        assert data.cache.classes == NAMES
        assert data.facts.shape == (3, 8, 8)
        assert "training: 20 rows of" in data.check()[0]
    assert opened(files, size="auto").facts.shape == (3, 8, 8)
    assert "of 2 table(s), images of the column image, labels of the column label" in opened(files).check()[0]


@needs_library
def test_without_another_split_every_nth_of_a_class_is_held_out(tmp_path: Path) -> None:
    made(range(30)).to_parquet(tmp_path / "one.parquet")
    train, held_out = shades(opened(tmp_path / "one.parquet"))
    assert held_out == [12, 13, 14, 27, 28, 29]
    assert sorted(train + held_out) == [*range(30)]


@needs_library
def test_a_file_that_others_wrote(tmp_path: Path) -> None:
    images, labels = [png(shade) for shade in range(20)], ["b" if shade % 2 else "a" for shade in range(20)]
    data = opened(raw(tmp_path / "a.parquet", img=images, target=labels))
    assert data.cache.classes == ["a", "b"]
    assert data.labels.tolist() == [shade % 2 for shade in shades(data)[0]]
    structs = [{"bytes": each, "path": "x.png"} for each in images]
    data = opened(
        raw(tmp_path / "b.parquet", photo=structs, kind=[3.0] * 10 + [5.0] * 10),
        image_column="photo",
        label_column="kind",
    )
    assert data.cache.classes == ["3", "5"]
    with pytest.raises(ValueError, match=r"dataset.label_column=NAME, or dataset.labels=none"):
        opened(raw(tmp_path / "c.parquet", img=images, caption=labels))
    assert opened(tmp_path / "c.parquet", labels="none").facts.num_classes == 1


@needs_library
def test_rows_without_a_label_or_an_image_are_left_out(tmp_path: Path) -> None:
    from datasets import DatasetDict  # pyright: ignore[reportMissingImports]

    images: list[Any] = [{"bytes": png(shade), "path": None} for shade in range(20)]
    images[0], images[1], images[2] = {"bytes": b"no", "path": None}, None, {"bytes": None, "path": "/etc/passwd"}
    train = made(range(20), image=images, label=[shade % 3 if shade != 5 else None for shade in range(20)])
    test = made(range(6), label=[-1] * 6)  # kept secret
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "saved")
    with pytest.warns(UserWarning, match="1 rows of .* have no label"), pytest.warns(UserWarning, match="3 damaged"):
        data = opened(tmp_path / "saved")
    train, held_out = shades(data)
    assert sorted(train + held_out) == [3, 4, *range(6, 20)]
    with (
        pytest.warns(UserWarning, match="have no label"),
        pytest.raises(ValueError, match=r"train row 0 is damaged or no image.*dataset.strict=false"),
    ):
        opened(tmp_path / "saved", strict=True)


@needs_library
def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    images = [png(shade) for shade in range(4)]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{")
    for root, settings, words in [
        (tmp_path / "bad.parquet", {}, "no data set that `datasets` can read"),
        (tmp_path / "saved", {}, "no data set that `datasets` can read"),
        (tmp_path / "empty", {}, "a Parquet file or a folder of them, and holds none"),
        (raw(tmp_path / "a.parquet", image=[[1, 2]], label=[0]), {}, "dataset.image_column must be"),
        (raw(tmp_path / "b.parquet", image=images, label=[[0]] * 4), {}, "a whole number or a text"),
        (
            raw(tmp_path / "c.parquet", image=images, label=[0] * 4),
            {"label_column": "x"},
            "label_column must be one of",
        ),
        (
            raw(tmp_path / "d.parquet", image=images, label=[0] * 4),
            {"image_column": "x"},
            "got x; the columns are image",
        ),
        (raw(tmp_path / "only" / "test.parquet", image=images, label=[0] * 4).parent, {}, "must have a split train"),
        (tmp_path / "nothing", {}, "save_to_disk makes there.*trainer=debug"),
    ]:
        with pytest.raises(ValueError, match=words):
            opened(root, **settings)


def test_splits_are_named_by_files_and_folders() -> None:
    for path, split in {
        "train-00000-of-00002.parquet": "train",
        "data/validation-0.parquet": "val",
        "default/test/0000.parquet": "test",
        "training.parquet": "train",
        "testimony.parquet": "train",
        "test_images/0000.parquet": "test",
    }.items():
        assert split_of(Path(path)) == split


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`pip install 'fewstep\[huggingface\]'`, or `pip install datasets`, has it"):
        opened(tmp_path, generated=True)
