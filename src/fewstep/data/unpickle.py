"""The one place that reads pickles: CIFAR-10's python version is published as such, and in no other way.

Nothing that a pickle names is imported, and nothing of numpy is handed to it either: a pickle that may build numpy's
types can build one that reads any memory. It may name numpy's array, its type and the function that makes an empty
array; in their places it gets the notes below, of which arrays of bytes are made here. All else ends the reading.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np


class Kind:
    """What a pickle says of the type of an array's elements: its name."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """The order of its bytes, which uint8 has not."""


class Array:
    """What a pickle says of an array: (version, shape, type, whether in Fortran's order, bytes)."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, Kind) or kind.name not in ("u1", b"u1") or fortran or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it has an array of other than uint8 in C order")
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Kind,
}


class ArraysOnly(pickle.Unpickler):
    """An unpickler that knows arrays of uint8 and plain values."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return ALLOWED[module, name]


def read_arrays(path: Path) -> Any:
    """What a pickle of arrays of uint8 and plain values holds; Python 2's text comes as bytes.

    The outermost dictionary's arrays are numpy's; further inside they stay notes.

    Raises:
        ValueError: it is damaged, or holds anything else (which could run code, and is not run).
    """
    try:
        with path.open("rb") as file:
            read = ArraysOnly(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise ValueError(
            f"{path} must be a pickle of arrays of uint8 and plain values alone, and is damaged or holds more, which "
            f"could run code ({error}); it is not opened, get it again"
        ) from error
    if not isinstance(read, dict):
        return read
    return {key: value.values if isinstance(value, Array) else value for key, value in read.items()}
