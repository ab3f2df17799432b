"""Memory-mapped arrays, indexed as one."""

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import ConcatDataset

RELEASE_BYTES = 2**27  # after reading about so many, mapped pages are released to the system
FAULT_BYTES = 2**16  # that the system maps around each read


class MappedRows:
    """The rows of one or more memory-mapped arrays, indexed as one array; none of the arrays is empty.

    Pages that were read are released now and then, so that the resident memory of a long training stays bounded; the
    system's page cache keeps what it has room for.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._maps: list[Any] = [array.base for array in arrays]
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_RANDOM)  # no read-ahead
        self._rows = ConcatDataset([np.asarray(array) for array in arrays])  # pyright: ignore[reportArgumentType]
        self._num_read = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Int[Tensor, "batch"]) -> Shaped[Tensor, "batch *shape"]:
        rows: list[Any] = [self._rows[number] for number in index.tolist()]
        stacked = np.stack(rows)
        self._num_read += stacked.nbytes + len(rows) * FAULT_BYTES
        if self._num_read > RELEASE_BYTES:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._num_read = 0
        return torch.from_numpy(stacked)
