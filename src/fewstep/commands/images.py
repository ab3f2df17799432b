"""Images as files: a picture, or arrays in an .npz."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fewstep.artifacts.pictures import picture, save_png
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition
from fewstep.evaluation.images import evaluation_tensor
from fewstep.system.files import atomic_write


def save_images(
    x: Tensor,
    condition: Condition,
    facts: DataFacts,
    out: Path,
    *,
    columns: int | None = None,
    prompts: list[str] | None = None,
) -> None:
    """Write images as a picture, or as arrays with their classes or prompts, atomically.

    Args:
        condition: classes, or embeddings of prompts, which are not written. facts: of the images.
        columns: of a picture of several; default: as many as the data have in a row.
    """
    if out.suffix.lower() == ".npz":
        classes = None if condition.is_floating_point() else condition.tolist()
        save_batches(iter([x]), len(x), facts, out, labels=prompts or classes)
        return
    images = evaluation_tensor(x, facts)
    if facts.is_image and len(x) == 1:
        pixels = images[0].permute(1, 2, 0).numpy()
        save_png(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), out)
    else:
        drawn = picture(images, condition, facts, columns or min(len(x), facts.in_a_row))
        save_png(drawn.convert("L") if facts.is_image and facts.shape[0] == 1 else drawn, out)


def save_batches(
    batches: Iterator[Float[Tensor, "batch *shape"]],
    count: int,
    facts: DataFacts,
    out: Path,
    *,
    labels: Sequence[int] | Sequence[str] | None,
) -> None:
    """Write `count` images to an .npz, batch by batch, in the memory of one batch.

    The file is that of numpy.savez_compressed and is written atomically: `images` (uint8, channels last; points as they
    are) and `labels` (classes or prompts; None for none).

    Raises:
        ValueError: some value is not finite.
        OSError: the disk is full or the folder cannot be written.
    """
    tensors = (evaluation_tensor(batch, facts) for batch in batches)
    arrays = (np.ascontiguousarray((x.permute(0, 2, 3, 1) if facts.is_image else x).numpy()) for x in tensors)
    first = next(arrays)
    shape = (count, *first.shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
    with atomic_write(out) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for array in chain([first], arrays):
                file.write(array.data)
        if labels is not None:
            with archive.open("labels.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(labels))
