"""What the JSON files of a cache hold, checked where they are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pydantic import JsonValue, with_config

from fewstep.data.decode import WHITE
from fewstep.system.stored import read_json
from fewstep.system.validation import STRICT, Count, checked

MANIFEST = "manifest.json"
RECORD: dict[str, Any] = {
    "key": str,
    "count": Count,
    "sha256": str,
    "skipped": list[str],
    "notes": dict[str, int],
    "grey": Count,
    "labels": list[Count],
}


@with_config(STRICT)
@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds: parts by split, and see `Source`."""

    format: Count
    key: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]
    background: str = WHITE  # older ones have none


def read_manifest(folder: Path) -> Manifest:
    """manifest.json of a cache; raises a ValueError where it is damaged."""
    return read_json(folder / MANIFEST, Manifest, "delete it, or choose another folder with dataset.cache")


def read_record(folder: Path, name: str, shape: Sequence[int]) -> dict[str, Any] | None:
    """The record of a part, None if it or its array is missing or damaged, or the array has another length."""
    path, images = folder / f"{name}.json", folder / f"{name}.images"
    if not path.is_file() or not images.is_file():
        return None
    try:
        record: dict[str, Any] = read_json(path, dict[str, JsonValue], "it is converted anew")
        for key, hint in RECORD.items():
            checked(record.get(key), hint, key)
        is_complete = images.stat().st_size == record["count"] * prod(shape)
    except ValueError:
        return None
    return record if is_complete else None
