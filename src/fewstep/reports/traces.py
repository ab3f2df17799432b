"""Traces drawn: charts of how far each prediction is from the final image, below filmstrips in a picture."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fewstep.artifacts.pictures import shown_steps
from fewstep.artifacts.quality_file import TEACHER
from fewstep.artifacts.trace_file import Curve
from fewstep.reports.charts import COLOURS, INK, STYLE, colours, label_axes, new_axes, to_svg

DISTANCES = {"rmse": "RMSE to the final image", "features": "feature distance, 1: another image"}
ON_WHITE = {key: "black" if value == INK else value for key, value in STYLE.items()}
WIDTH, CHART, ABOVE, BELOW, MOST_HEIGHT = 9.0, 2.2, 0.42, 0.5, 3.0  # inches of a picture and its parts


def colours_of(curves: Sequence[Curve]) -> dict[str, str]:
    """A colour for each curve by its name; the first has the teacher's."""
    return colours([curve.name for curve in curves]) | {curve.name: COLOURS[TEACHER] for curve in curves[:1]}


@matplotlib.rc_context(STYLE)
def distance_chart(curves: Sequence[Curve], distance: str) -> Markup:
    """One of DISTANCES over the time of the step, noise on the left; dashed the first curve."""
    figure, axes = new_axes()
    draw_distances(axes, curves, distance)
    return to_svg(figure, DISTANCES[distance])


def draw_distances(axes: Axes, curves: Sequence[Curve], distance: str) -> None:
    """Draw the chart of `distance_chart`."""
    colour = colours_of(curves)
    for number, curve in enumerate(curves):
        line, marker = ((0, (4, 3)), "") if number == 0 else ("-", "o")
        values = getattr(curve, distance)
        axes.plot(
            curve.times, values, color=colour[curve.name], lw=1.5, ms=3.5, ls=line, marker=marker, label=curve.name
        )
    axes.set_xlim(1.02, 0)
    axes.set_ylim(bottom=0)
    label_axes(axes, "time of the step, 1 is noise", DISTANCES[distance])


@matplotlib.rc_context(ON_WHITE)
def trace_picture(curves: Sequence[Curve], films: Sequence[Image.Image]) -> Image.Image:
    """The films of the curves, one above the other, and both charts below them."""
    heights = [min(MOST_HEIGHT, WIDTH * film.height / film.width) for film in films]
    total = sum(heights) + len(films) * ABOVE + ABOVE + CHART + BELOW
    figure = Figure(figsize=(WIDTH, total), dpi=110, facecolor="white")
    canvas, top = FigureCanvasAgg(figure), total
    for curve, film, height in zip(curves, films, heights, strict=True):
        top -= ABOVE + height
        width = height * film.width / film.height / WIDTH
        axes = figure.add_axes((0.01, top / total, 0.98 * width, height / total))
        axes.imshow(np.asarray(film), aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"{curve.name}, w = {curve.w:g}", loc="left", pad=13, weight="bold")
        steps = shown_steps(len(curve.times))
        for column, step in enumerate(steps):
            place = (column + 0.5) / len(steps)
            axes.text(place, 1.01, f"t = {curve.times[step]:.2f}", transform=axes.transAxes, ha="center", size=7)
    for number, distance in enumerate(DISTANCES):
        axes = figure.add_axes((0.07 + 0.5 * number, BELOW / total, 0.41, CHART / total))
        draw_distances(axes, curves, distance)
        axes.legend(fontsize=7, frameon=False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
