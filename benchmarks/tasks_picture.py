"""The picture of docs/results.md: ten held-out digits, edited, completed, transferred, and on the way to another.

python benchmarks/tasks_picture.py --student MODEL-4 --encoder ENCODER-4 --out docs/tasks.png
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

import fewstep
from fewstep.artifacts.pictures import image_grid, save_png
from fewstep.data.digits import DigitsData
from fewstep.evaluation.images import evaluation_tensor


def main(
    student: Annotated[Path, typer.Option(help="A rung of stage=progressive.")],
    encoder: Annotated[Path, typer.Option(help="A rung of stage=encoder.")],
    out: Annotated[Path, typer.Option(help="PNG.")],
    w: Annotated[float, typer.Option(help="Guidance weight.")] = 1.0,
) -> None:
    """Rows: sources, edited, left half missing, completed, transferred, and the way from the first to the second."""
    model, back = fewstep.load(student), fewstep.load(encoder)
    x, label = DigitsData(batch_size=1, stream="facts").reference()
    first = torch.stack([torch.where(label == digit)[0][0] for digit in range(10)])
    images, own = x[first], label[first]
    other = (own + 5) % 10
    missing = torch.zeros_like(images, dtype=torch.bool)
    missing[..., :4] = True
    rows = [
        images,
        fewstep.edit(model, images, other, strength=0.75, w=w),
        images.masked_fill(missing, 0.0),
        fewstep.inpaint(model, images, missing, own, w=w),
        fewstep.transfer(model, images, own, other, encoder=back, w=w),
        fewstep.interpolate(model, images[3:4], images[8:9], own[3:4], own[8:9], num=10, encoder=back, w=w)[0],
    ]
    save_png(image_grid(evaluation_tensor(torch.cat(rows), model.card.data), 10), out)


if __name__ == "__main__":
    typer.run(main)
