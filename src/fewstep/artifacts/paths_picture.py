"""Paths of policies as a picture: a panel for each model, a colour for each way."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor

SHOWN = 60  # paths in a panel
COLUMNS = 4
FAILED = "#b00020"


class PathsPanel(NamedTuple):
    """Paths of one model: positions, whether each did the task, and in which way."""

    title: str
    paths: Float[Tensor, "positions batch 2"]
    success: Bool[Tensor, "batch"]
    way: Int[Tensor, "batch"]


def paths_picture(panels: Sequence[PathsPanel], discs: Sequence[tuple[float, float, float]]) -> Image.Image:
    """The first paths of each model in [-1, 1]^2 with the obstacles; a path that fails ends in a red cross."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), dpi=110, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        paths = panel.paths[:, :SHOWN].transpose(0, 1).cpu().numpy()
        good = panel.success[:SHOWN].tolist()
        colours = [f"C{int(way) % 10}" if done else FAILED for way, done in zip(panel.way, good, strict=False)]
        place.add_collection(LineCollection([*paths], colors=colours, linewidths=0.7, alpha=0.7))
        ends = np.array([path[-1] for path, done in zip(paths, good, strict=True) if not done]).reshape(-1, 2)
        place.scatter(*ends.T, marker="x", s=14, color=FAILED, linewidths=0.9, zorder=3)
        for x, y, radius in discs:
            place.add_patch(Circle((x, y), radius, color="#6b7280", zorder=2))
        place.set_title(panel.title, fontsize=8)
    for place in figure.axes:
        place.set(xlim=(-1, 1), ylim=(-1.02, 1.08), xticks=[], yticks=[], aspect="equal")
    for place in figure.axes[len(panels) :]:
        place.set_axis_off()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
