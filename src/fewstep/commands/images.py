"""Images as files: pictures, or arrays in an .npz."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewstep.artifacts.pictures import picture, save_png
from fewstep.commands.arrays import save_batches
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition
from fewstep.evaluation.images import evaluation_tensor


def save_images(
    x: Tensor,
    condition: Condition,
    facts: DataFacts,
    out: Path,
    *,
    columns: int | None = None,
    prompts: list[str] | None = None,
) -> None:
    """Write images as a picture, or as arrays with their classes or prompts, whole or not at all.

    Args:
        condition: classes, or embeddings of prompts, which are not written. facts: of the images.
        columns: of a picture of several; default: as many as the data have in a row.
    """
    classes = None if condition.is_floating_point() else condition
    if out.suffix == ".npz":
        save_batches(iter([x]), len(x), facts, out, labels=prompts or (None if classes is None else classes.tolist()))
        return
    images = evaluation_tensor(x, facts)
    if facts.is_image and len(x) == 1:
        pixels = images[0].permute(1, 2, 0).numpy()
        save_png(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), out)
    else:
        labels = torch.zeros(len(x)).long() if classes is None else classes
        save_png(picture(images, labels, facts, columns or min(len(x), facts.in_a_row)), out)
