"""Tensors as pictures: grids of images, scatter plots of points."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition
from fewstep.system.files import atomic_write

FILM_COLUMNS = 8
VISIBLE = 48  # pixels: images smaller than this are enlarged to about it


def image_grid(images: UInt8[Tensor, "batch channels height width"], num_columns: int) -> Image.Image:
    """Images in rows of `num_columns`, small ones enlarged by a whole number without smoothing.

    Raises:
        ValueError: no image, or not 1 or 3 channels.
    """
    if not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(f"a picture needs images of 1 or 3 channels, got shape {tuple(images.shape)}")
    scale = max(1, VISIBLE // max(images.shape[2:]))
    enlarged = images.cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    grid = make_grid(enlarged, nrow=num_columns, padding=2, pad_value=128)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def scatter(
    points: Float[Tensor, "batch dim"],
    labels: Condition,
    *,
    low: float,
    high: float,
    pixels: int = 160,
) -> Image.Image:
    """The first two coordinates in a square of `pixels`, both axes from `low` to `high`, a colour per class,
    or one where conditions are no classes.

    The axes do not follow the points, so that pictures compare; a point outside is not shown.
    """
    figure = Figure(figsize=(1, 1), dpi=pixels, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(low, high), ylim=(low, high), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#c4c8cd", linewidth=0.8)
    x, y = points[:, 0].cpu().numpy(), points[:, 1].cpu().numpy()
    classes = labels if labels.ndim == 1 else [0] * len(labels)
    colours = [f"C{int(label) % 10}" for label in classes]  # matplotlib's own ten
    axes.scatter(x, y, s=160 / pixels, c=colours, linewidths=0)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def picture(images: Tensor, labels: Condition, facts: DataFacts, num_columns: int) -> Image.Image:
    """uint8 images as a grid, points as a scatter plot coloured by class."""
    if facts.is_image:
        return image_grid(images, num_columns)
    return scatter(images, labels, low=facts.low, high=facts.high, pixels=480)


def film(frames: Tensor, labels: Condition, facts: DataFacts) -> Image.Image:
    """The images of each step in columns, an image a row; of points a scatter plot a step.

    Args:
        frames: (steps, count, ...), as `picture` takes them; of many steps those of `shown_steps`.
    """
    shown = frames[shown_steps(len(frames))]
    if facts.is_image:
        return image_grid(shown.transpose(0, 1).flatten(0, 1), len(shown))
    plots = [scatter(points, labels, low=facts.low, high=facts.high) for points in shown]
    strip = Image.new("RGB", (sum(plot.width for plot in plots), plots[0].height))
    for number, plot in enumerate(plots):
        strip.paste(plot, (number * plot.width, 0))
    return strip


def shown_steps(count: int) -> list[int]:
    """The steps that `film` shows: all, or FILM_COLUMNS at even distances with the first and the last."""
    columns = min(count, FILM_COLUMNS)
    return [round(number * (count - 1) / max(1, columns - 1)) for number in range(columns)]


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all; the folder is made if need be."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)
