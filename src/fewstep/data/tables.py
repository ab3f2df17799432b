"""Hugging Face data sets on disk, saved or as Parquet files: their splits, and which columns are images and labels.

Through the `datasets` library, whose readers of local Arrow and Parquet files execute nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from fewstep.data.array_files import HELD_OUT, SPLITS, TRAIN
from fewstep.system.terminal import printable

IMAGES = ("image", "img", "images", "picture", "jpg", "png", "pixel_values")
LABELS = ("label", "labels", "class", "fine_label", "category", "target", "y")
NEEDED = "datasets"
SAVED = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class Table:
    """Rows of a data set: a Parquet file, or a split that was saved.

    Attributes:
        name: for messages. stamp: changes with the files. features: type of each column. count: of rows.
        read: the library's Dataset, with some of the columns.
    """

    name: str
    stamp: str
    features: Mapping[str, Any]
    count: int
    read: Callable[[list[str]], Any]


def require_library(root: str) -> None:
    """Refuse to read without the `datasets` library.

    Raises:
        ValueError: names the command that installs it.
    """
    if util.find_spec(NEEDED) is None:
        raise ValueError(
            f"{root} is read by the library {NEEDED}, which is not installed; `pip install 'fewstep[huggingface]'`, or "
            f"`pip install {NEEDED}`, has it"
        )


def tables_at(root: Path) -> dict[str, list[Table]]:
    """The tables of each split: of a folder that `save_to_disk` made, a Parquet file, or a folder of Parquet files.

    In a folder, a file's split is what its name or that of a folder in it says, train where none does.

    Raises:
        ValueError: the files are damaged, or there are none.
    """
    try:
        if any((root / name).is_file() for name in SAVED):
            return saved_tables(root)
        if root.is_file():
            return {TRAIN: [parquet(root)]}
        splits: dict[str, list[Table]] = {}
        for file in sorted(root.rglob("*.parquet")):
            splits.setdefault(split_of(file.relative_to(root)), []).append(parquet(file))
    except Exception as error:  # pyarrow and datasets raise errors of many types
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{root} is no data set that `datasets` can read ({error!s:.200}); replace it") from error
    if not splits:
        raise ValueError(
            f"{root} must be a data set saved by save_to_disk, a Parquet file or a folder of them, and holds none"
        )
    return splits


def split_of(path: Path) -> str:
    """The split that the name of a file, else of a folder of it, begins with; train for none."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        word = re.split(r"[^a-z]+", part.lower())[0]
        if word in SPLITS:
            return SPLITS[word]
    return TRAIN


def parquet(file: Path) -> Table:
    """A Parquet file, of which the schema alone is read."""
    from datasets import Dataset, Features  # pyright: ignore[reportMissingImports]
    from pyarrow.parquet import ParquetFile, read_table  # pyright: ignore[reportMissingImports]

    with ParquetFile(file) as opened:
        features, count = Features.from_arrow_schema(opened.schema_arrow), opened.metadata.num_rows
    stat = file.stat()
    stamp = f"{file.name} {stat.st_size} {stat.st_mtime_ns}"
    return Table(
        file.name, stamp, features, count, lambda columns: undecoded(Dataset(read_table(file, columns=columns)))
    )


def saved_tables(root: Path) -> dict[str, list[Table]]:
    """The splits of a folder that `save_to_disk` made."""
    from datasets import Dataset, load_from_disk  # pyright: ignore[reportMissingImports]

    loaded = load_from_disk(str(root))
    splits = {TRAIN: loaded} if isinstance(loaded, Dataset) else dict(loaded)
    stats = sorted((file.relative_to(root).as_posix(), file.stat()) for file in root.rglob("*") if file.is_file())
    stamp = " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    tables: dict[str, list[Table]] = {}
    for name, split in splits.items():
        read = lambda columns, split=split: undecoded(split.select_columns(columns))  # noqa: E731
        table = Table(name, f"{name} {stamp}", split.features, len(split), read)
        tables.setdefault(split_of(Path(name)), []).append(table)
    return tables


def undecoded(dataset: Any) -> Any:
    """The data set with images as the bytes of their files."""
    from datasets import Image  # pyright: ignore[reportMissingImports]

    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def file_bytes(cell: Any) -> bytes:
    """The bytes of an image file in a cell.

    Raises:
        ValueError: it holds none, a path at most, which is not followed.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise ValueError("no bytes of an image file")
    return content


def image_column(features: Mapping[str, Any], wanted: str | None) -> str:
    """The column of images: that which is wanted, else the one of that type, else of a usual name with bytes in it.

    Raises:
        ValueError: there is none, or several.
    """
    from datasets import Image  # pyright: ignore[reportMissingImports]

    def has_bytes(feature: Any) -> bool:
        kind = feature.get("bytes") if isinstance(feature, dict) else feature
        return isinstance(kind, Image) or getattr(kind, "dtype", None) in ("binary", "large_binary")

    typed = [name for name, feature in features.items() if isinstance(feature, Image)]
    usual = [name for name in IMAGES if name in (typed or features) and has_bytes(features[name])]
    found = [wanted] if wanted else usual[:1] or typed
    if len(found) != 1 or found[0] not in features or not has_bytes(features[found[0]]):
        raise ValueError(
            f"dataset.image_column must be the column of image files, got {wanted}; the columns are {columns(features)}"
        )
    return found[0]


def label_column(features: Mapping[str, Any], wanted: str | None) -> str | None:
    """The column of labels: that which is wanted, else the one of classes, else of a usual name; None where none is.

    Raises:
        ValueError: what is wanted is not there.
    """
    from datasets import ClassLabel  # pyright: ignore[reportMissingImports]

    if wanted is not None and wanted not in features:
        raise ValueError(f"dataset.label_column must be one of the columns {columns(features)}, got {wanted}")
    typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    usual = [name for name in LABELS if name in (typed or features)]
    return wanted or next(iter([*usual, *typed]), None)


def class_names(feature: Any) -> list[str] | None:
    """The names of the classes where the column's type says them."""
    from datasets import ClassLabel  # pyright: ignore[reportMissingImports]

    return [printable(name) for name in feature.names] if isinstance(feature, ClassLabel) and feature.names else None


def columns(features: Mapping[str, Any]) -> str:
    """The names and types of columns, for messages."""
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())[:300]


def chosen_splits(splits: Mapping[str, Sequence[Table]], root: Path) -> dict[str, list[Table]]:
    """The tables to train on, and those held out: a validation split, else a test split, else none.

    Raises:
        ValueError: there is nothing to train on, or the tables have other columns than the first.
    """
    if TRAIN not in splits:
        raise ValueError(f"{root} must have a split train, and has {', '.join(splits)}; name its folder or file train")
    chosen = {TRAIN: [*splits[TRAIN]]}
    if held_out := splits.get(HELD_OUT, splits.get("test")):
        chosen[HELD_OUT] = [*held_out]
    first = chosen[TRAIN][0]
    for table in (table for tables in chosen.values() for table in tables):
        if {*table.features} != {*first.features}:
            raise ValueError(
                f"{root} must have tables of the same columns, and {table.name} has {columns(table.features)}, "
                f"{first.name} {columns(first.features)}; name one of them"
            )
    return chosen
