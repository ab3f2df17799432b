"""An oracle for tests: the rows that are in W&B's own files, read without W&B.

Its service writes in blocks of 32 KiB: a process that is killed leaves less there than it has logged.
(PYTEST_DONT_REWRITE: it is imported before pytest runs.)
"""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from fewstep.tracking.names import IMAGES, RUNG

BLOCK = 2**15
HEADER = struct.Struct("<IHB")  # of a piece: checksum, length, kind; LevelDB's log format
WHOLE, FIRST, LAST = 1, 2, 4  # kinds of pieces of a record
IDENTITY_BYTES = 7

Logged = tuple[float | None, float | None, str]
"""Where on the x-axis, of which rung, if any, and under which name something was logged.

A rung's first look of the diagnostics stands at the images of the last one of the rung before.
"""


def logged_into(folder: Path) -> set[Logged]:
    """What the W&B runs of a run folder have on disk, those online too, whose files W&B uploads."""
    return {entry for file in sorted(folder.glob("wandb/*run-*/run-*.wandb")) for entry in entries(file)}


def entries(file: Path) -> Iterator[Logged]:
    """What was logged into one file."""
    from google.protobuf.message import DecodeError

    record_type = import_module("wandb.proto.wandb_internal_pb2").Record
    for content in records(file.read_bytes()):
        try:
            record = record_type.FromString(content)
        except DecodeError:  # damaged
            continue
        values = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
        images, rung = (json.loads(values[axis]) if axis in values else None for axis in (IMAGES, RUNG))
        yield from ((images, rung, name) for name in values)


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file that are there to their end."""
    position, record = IDENTITY_BYTES, b""
    while position + HEADER.size <= len(content):
        if BLOCK - position % BLOCK < HEADER.size:  # filling
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, position)
        position += HEADER.size
        piece = content[position : position + length]
        record = piece if kind in (WHOLE, FIRST) else record + piece
        position += length
        if kind in (WHOLE, LAST) and position <= len(content):
            yield record
