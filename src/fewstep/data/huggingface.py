"""Images of a Hugging Face data set on disk: saved by `save_to_disk`, or Parquet files."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from fewstep.data.array_files import HELD_OUT, TRAIN
from fewstep.data.cache import Chunk, Part, Source
from fewstep.data.converted import ConvertedImages, every_nth, key_of, numbered, ranges
from fewstep.data.decode import WHITE
from fewstep.data.generate import generate_huggingface
from fewstep.data.image_sizes import AUTO, fitting_size
from fewstep.data.imagefiles import CHUNK, Decoding
from fewstep.data.labels import OWN
from fewstep.data.split import missing_data_error
from fewstep.data.tables import (
    Table,
    chosen_splits,
    class_names,
    columns,
    file_bytes,
    image_column,
    label_column,
    require_library,
    tables_at,
)


class HuggingFaceData(ConvertedImages):
    """The images of a data set of the `datasets` library, cropped to squares as in ADM and cached.

    A validation split is held out, else a test split, else every N-th image of each class.

    Args:
        root: a folder that `save_to_disk` made, a Parquet file, or a folder of Parquet files.
        size: of the squares, in pixels; auto: see `fitting_size`. labels: own, of a column; or those of `data.labels`.
        image_column, label_column: names of columns; None recognises them by their types and names.
        cache: folder for the converted images, by default ROOT.SIZE.cache.
        hold_out_every: N, where there is no other split.
        strict: refuse a damaged image instead of skipping it with a warning.
        background, channels: see `ImageFolderData`.
        The rest: see `ConvertedImages`.

    Raises:
        ValueError: the library or the files are missing, or no column is of images, or none of labels.
    """

    dataset = "huggingface"
    advice = "put a Parquet file, a folder of them, or what Dataset.save_to_disk makes there"
    generate = staticmethod(generate_huggingface)

    def __init__(
        self,
        *,
        root: str,
        size: int | Literal["auto"],
        batch_size: int,
        stream: str,
        labels: str = OWN,
        image_column: str | None = None,
        label_column: str | None = None,
        cache: str | None = None,
        hold_out_every: int = 10,
        strict: bool = False,
        background: str = WHITE,
        channels: str | int = "auto",
        flip: bool = False,
        num_reference: int = 10_000,
        generated: bool = False,
    ) -> None:
        require_library(root)
        self.reading = partial(
            Reading, image=image_column, label=label_column, has_labels=labels == OWN, hold_out_every=hold_out_every
        )
        if size == AUTO:
            place = self.located(root, generated)
            if not place.exists():
                raise missing_data_error(self.dataset, place, self.advice)
            size = self.reading(place).fitting_size()
        decoding = Decoding(size, strict, background, channels)
        super().__init__(
            root=root,
            source=lambda place: self.reading(place).source(decoding),
            cache=cache,
            suffix=f".{size}.cache",
            is_right=decoding.made,
            background=background,
            batch_size=batch_size,
            stream=stream,
            flip=flip,
            num_reference=num_reference,
            generated=generated,
        )

    def in_words(self) -> list[str]:
        return self.reading(self.place).in_words()


class Rows(NamedTuple):
    """Rows of a table that are used, and the label of each."""

    table: Table
    rows: Int[np.ndarray, "count"]
    labels: Shaped[np.ndarray, "count"]


class Reading:
    """Which columns and rows of a data set are read.

    Args:
        image, label: columns that were named. has_labels: whether labels are those of a column.

    Raises:
        ValueError: see `HuggingFaceData`.
    """

    def __init__(
        self, place: Path, *, image: str | None, label: str | None, has_labels: bool, hold_out_every: int
    ) -> None:
        self.place, self.hold_out_every = place, hold_out_every
        self.tables = chosen_splits(tables_at(place), place)
        self.features = self.tables[TRAIN][0].features
        self.image = image_column(self.features, image)
        self.label = label_column(self.features, label) if has_labels else None
        if has_labels and self.label is None:
            raise ValueError(
                f"{place} has no column of labels among {columns(self.features)}; say dataset.label_column=NAME, or "
                "dataset.labels=none (guidance is off then)"
            )

    def fitting_size(self) -> int:
        """The size for the images of the first table."""
        table = self.tables[TRAIN][0]
        opened = table.read([self.image])
        return fitting_size(table.count, lambda row: file_bytes(opened[row][self.image]), self.place)

    def labelled(self) -> dict[str, list[Rows]]:
        """The rows of each split that have a label, with a warning of those that have none."""
        splits = {split: [self.rows(table) for table in tables] for split, tables in self.tables.items()}
        if HELD_OUT in splits and not sum(len(each.rows) for each in splits[HELD_OUT]):
            del splits[HELD_OUT]  # a test split whose labels are kept secret
        used = sum(len(each.rows) for tables in splits.values() for each in tables)
        if missing := sum(each.table.count for tables in splits.values() for each in tables) - used:
            warnings.warn(f"{missing:,} rows of {self.place} have no label and are left out", stacklevel=2)
        return splits

    def rows(self, table: Table) -> Rows:
        """The rows of one table that have a label; of all without a column of labels, where it is 0."""
        if self.label is None:
            return Rows(table, np.arange(table.count), np.zeros(table.count, np.int64))
        values = list(table.read([self.label])[self.label])
        rows = np.array([row for row, value in enumerate(values) if value not in (None, -1)], np.int64)
        labels = np.array([values[row] for row in rows])
        if labels.dtype.kind == "f" and (labels == labels.round()).all() and (abs(labels) < 2**63).all():
            labels = labels.astype(np.int64)
        if labels.size and (labels.dtype.kind not in "biuU" or labels.ndim != 1):
            raise ValueError(
                f"the column {self.label} of {self.place} must have a whole number or a text for each image, and has "
                f"{values[0]!r:.60}; say dataset.label_column=NAME, or dataset.labels=none"
            )
        return Rows(table, rows, labels)

    def source(self, decoding: Decoding) -> Source:
        """What is converted into the cache."""
        splits = self.labelled()
        own = {split: np.concatenate([each.labels for each in tables]) for split, tables in splits.items()}
        what, named = str(self.place), class_names(self.features[self.label]) if self.label else None
        names, train, held_out = numbered(own[TRAIN], own.get(HELD_OUT), what)
        if named:
            names, train, held_out = named, own[TRAIN], own.get(HELD_OUT)
        labels = {TRAIN: train} if held_out is None else {TRAIN: train, HELD_OUT: held_out}
        splits = {split: relabelled(tables, labels[split]) for split, tables in splits.items()}
        if held_out is None:
            is_held_out = every_nth(train, self.hold_out_every)
            splits = {TRAIN: where(splits[TRAIN], ~is_held_out), HELD_OUT: where(splits[TRAIN], is_held_out)}
        parts = {split: self.parts(split, tables, decoding) for split, tables in splits.items()}
        return decoding.source(parts, names)

    def parts(self, split: str, tables: Sequence[Rows], decoding: Decoding) -> list[Part]:
        """The parts of one split."""
        found: list[Part] = []
        for table, rows, labels in tables:
            for chosen in ranges(len(rows), decoding.per_part):
                given = rows[chosen], labels[chosen]
                key = key_of(decoding.key, table.stamp, self.image, *given)
                chunks = partial(self.chunks, table, *given, decoding)
                found.append(Part(f"{split}-{len(found):05d}", key, len(given[0]), chunks))
        return found

    def chunks(
        self, table: Table, rows: Int[np.ndarray, "count"], labels: Int[np.ndarray, "count"], decoding: Decoding
    ) -> Iterator[Chunk]:
        """Those rows of a table, some at a time."""
        opened = table.read([self.image])
        for chosen in ranges(len(rows), CHUNK):
            cells = opened[rows[chosen].tolist()][self.image]
            yield decoding.chunk(
                [f"{table.name} row {row}" for row in rows[chosen]],
                labels[chosen],
                lambda number, cells=cells: file_bytes(cells[number]),
                self.place,
            )

    def in_words(self) -> list[str]:
        """A line for each split: its rows, and the columns that are read."""
        label = f"labels of the column {self.label}" if self.label else "no labels"
        return [
            f"{'training' if split == TRAIN else 'held out'}: {sum(table.count for table in tables):,} rows of "
            f"{len(tables)} table(s), images of the column {self.image}, {label}"
            for split, tables in self.tables.items()
        ]


def relabelled(tables: Sequence[Rows], labels: Int[np.ndarray, "count"]) -> list[Rows]:
    """The tables of a split with other labels, one after the other."""
    ends = np.cumsum([len(each.rows) for each in tables])
    return [each._replace(labels=part) for each, part in zip(tables, np.split(labels, ends[:-1]), strict=True)]


def where(tables: Sequence[Rows], chosen: Bool[np.ndarray, "count"]) -> list[Rows]:
    """Some of the rows of a split."""
    ends = np.cumsum([len(each.rows) for each in tables])
    masks = np.split(chosen, ends[:-1])
    return [Rows(each.table, each.rows[mask], each.labels[mask]) for each, mask in zip(tables, masks, strict=True)]
