"""A restricted unpickler of uint8 arrays, for CIFAR-10's python version: the one place that reads pickles.

No global that a pickle names is imported, not even numpy's: a pickle that can construct numpy dtypes can construct one
that reads arbitrary memory. numpy's ndarray, dtype and _reconstruct are replaced by the two stand-ins below, from which
uint8 arrays are built here. Any other global is refused.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np


class DtypeStandIn:
    """In place of numpy.dtype: keeps the name."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order, which uint8 does not have."""


class ArrayStandIn:
    """In place of numpy.ndarray: its state is (version, shape, dtype, whether in Fortran order, bytes)."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        is_uint8 = isinstance(dtype, DtypeStandIn) and dtype.name in ("u1", b"u1")
        if not is_uint8 or fortran or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it has an array of other than uint8 in C order")
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): ArrayStandIn,
    ("numpy._core.multiarray", "_reconstruct"): ArrayStandIn,
    ("numpy", "ndarray"): ArrayStandIn,
    ("numpy", "dtype"): DtypeStandIn,
}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler of uint8 arrays and plain values."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return ALLOWED[module, name]


def read_arrays(path: Path) -> Any:
    """The content of a pickle of uint8 arrays and plain values; Python 2's str becomes bytes.

    Arrays that are values of the outermost dictionary become numpy's; deeper ones stay stand-ins.

    Raises:
        ValueError: the pickle is damaged, or holds anything else, which is not executed.
    """
    try:
        with path.open("rb") as file:
            content = RestrictedUnpickler(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises errors of any type
        raise ValueError(
            f"{path} must be a pickle of arrays of uint8 and plain values alone, and is damaged or holds more, which "
            f"could run code ({error}); it is not opened, get it again"
        ) from error
    if not isinstance(content, dict):
        return content
    return {key: value.values if isinstance(value, ArrayStandIn) else value for key, value in content.items()}
