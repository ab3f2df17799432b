"""Labels of image files in a table, a .csv or .tsv file with a row for each: its name and its class."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "image_name", "img", "path", "name", "id")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "y")
DELIMITERS = ",;\t"


def read_label_table(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The class of each image file that the table names; a warning counts files without a row, and rows without a file.

    The first row is a header if it has the usual names of columns, or names no file. Files may be named with or without
    folders and suffix.

    Args:
        names: of the image files below their root, with /.

    Raises:
        ValueError: there is no such table, no column of files or of labels in it, or a file has two classes.
    """
    rows = rows_of(path)
    known = spellings(names)
    file_column, label_column, has_header = columns_of(rows, known, path)
    labels: dict[str, str] = {}
    num_strangers = 0
    for row in rows[1:] if has_header else rows:
        if len(row) <= max(file_column, label_column) or not (label := row[label_column].strip()):
            continue
        name = found_in(known, row[file_column])
        if name is None:
            num_strangers += 1
        elif labels.setdefault(name, label) != label:
            raise ValueError(f"{path} must have one class for each file, and has {labels[name]} and {label} for {name}")
    if not labels:
        raise ValueError(
            f"{path} must name image files of dataset.root in a column, and none of its {len(rows):,} rows does; the "
            f"files are named like {names[0]}"
        )
    if len(labels) < len(names):
        warnings.warn(f"{len(names) - len(labels):,} images have no row in {path} and are left out", stacklevel=2)
    if num_strangers:
        warnings.warn(f"{num_strangers:,} rows of {path} name no image file and are left out", stacklevel=2)
    return labels


def rows_of(path: Path) -> list[list[str]]:
    """The rows of a table, at least one.

    Raises:
        ValueError: it is missing, empty or not text.
    """
    if not path.is_file():
        raise ValueError(f"dataset.labels names a table of file,label, and there is none at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=first.count)
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a table as UTF-8 text, like file,label, and is not ({error})") from error
    if not rows or len(rows[0]) < 2:
        raise ValueError(f"{path} must have at least two columns, file,label, and has {rows[0] if rows else 'no row'}")
    return rows


def spellings(names: Sequence[str]) -> dict[str, str | None]:
    """Each way to name a file, with and without folders and suffix -> its name; None where several have the same."""
    known: dict[str, str | None] = {}
    for spell in (str, without_suffix, basename, lambda name: without_suffix(basename(name))):
        own: dict[str, str | None] = {}
        for name in names:
            spelt = spell(name)
            own[spelt] = None if spelt in own else name
        known = own | known  # the fuller spelling counts
    return known


def without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def basename(name: str) -> str:
    return PurePosixPath(name).name


def found_in(known: dict[str, str | None], cell: str) -> str | None:
    """The file that a cell names, None where it names none.

    Raises:
        ValueError: it names several.
    """
    spelt = cell.strip().replace("\\", "/").removeprefix("./")
    for each in (spelt, basename(spelt)):
        if each in known:
            if (name := known[each]) is None:
                raise ValueError(
                    f"the table of labels names {cell.strip()}, and several files are called so; add folders"
                )
            return name
    return None


def columns_of(rows: list[list[str]], known: dict[str, str | None], path: Path) -> tuple[int, int, bool]:
    """The columns of files and of labels, and whether the first row is a header.

    Raises:
        ValueError: it is not clear which they are.
    """
    header = [cell.strip().lower() for cell in rows[0]]

    def usual(columns: Sequence[str]) -> int | None:
        return next((header.index(name) for name in columns if name in header), None)

    def of_files(row: list[str]) -> int | None:
        found = (number for number, cell in enumerate(row) if cell.strip() and found_in(known, cell) is not None)
        return next(found, None)

    first = of_files(rows[0])
    has_header = first is None
    files = usual(FILE_COLUMNS) if has_header else first
    if files is None:
        files = next((number for row in rows[1:100] if (number := of_files(row)) is not None), None)
    labels = usual(LABEL_COLUMNS) if has_header else None
    if labels is None and files is not None and len(header) == 2:
        labels = 1 - files
    if files is None or labels is None or files == labels:
        raise ValueError(
            f"{path} must have a column of file names and one of labels, as file,label, and starts with "
            f"{','.join(rows[0]):.80}; name them so in its first row"
        )
    return files, labels, has_header
