"""The one place that reads pickles: CIFAR-10's python version is published as such, and in no other way.

Nothing that a pickle names is imported. It may name three things, which are handed to it from here: numpy's array, its
type, and the function that makes an empty array; all else ends the reading. What comes out are arrays, numbers, bytes,
text, lists, tuples and dictionaries.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

EMPTY_ARRAY = np.empty(0).__reduce__()[0]
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): EMPTY_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): EMPTY_ARRAY,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(pickle.Unpickler):
    """An unpickler that knows arrays and plain values."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return ALLOWED[module, name]


def read_arrays(path: Path) -> Any:
    """What a pickle of arrays and plain values holds; Python 2's text comes as bytes.

    Raises:
        ValueError: it is damaged, or holds anything else (which could run code, and is not run).
    """
    try:
        with path.open("rb") as file:
            return ArraysOnly(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise ValueError(
            f"{path} must be a pickle of arrays and plain values alone, and is damaged or holds more, which could run "
            f"code ({error}); it is not opened, get it again"
        ) from error
