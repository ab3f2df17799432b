"""Images as arrays in an .npz file, written batch by batch: any number of them in the memory of one batch."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.evaluation.images import evaluation_tensor
from fewstep.system.files import atomic_write


def save_batches(
    batches: Iterator[Float[Tensor, "batch *shape"]],
    count: int,
    facts: DataFacts,
    out: Path,
    *,
    labels: Sequence[int] | Sequence[str] | None,
) -> None:
    """Write `count` images to an .npz: `images` (uint8, channels last; points as they are), and their `labels`.

    The file is the one that numpy.savez_compressed would write of all of them; it appears whole or not at all.

    Args:
        facts: of the images. labels: classes or prompts; None for none.

    Raises:
        ValueError: some value is not finite.
        OSError: the disk is full or the folder cannot be written.
    """

    def arrays() -> Iterator[np.ndarray]:
        for batch in batches:
            pixels = evaluation_tensor(batch, facts)
            yield np.ascontiguousarray((pixels.permute(0, 2, 3, 1) if facts.is_image else pixels).numpy())

    made = arrays()
    first = next(made)
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (count, *first.shape[1:]),
    }
    with atomic_write(out) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for array in chain([first], made):
                file.write(array.data)
        if labels is not None:
            with archive.open("labels.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(labels))
