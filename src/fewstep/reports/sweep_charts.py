"""The charts of a sweep's page, in the style of the report's."""

from collections.abc import Mapping, Sequence
from statistics import mean

import matplotlib
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fewstep.reports.charts import INK, STYLE, Points, label_axes, log_2_x, log_y, new_axes, to_svg

MOST_TICKS = 6


@matplotlib.rc_context(STYLE)
def figure_against_value(
    name: str, values: Sequence[str], dots: Mapping[int, Points], colour: Mapping[int | None, str], figure_name: str
) -> Markup:
    """A figure over the values of one setting: a dot for each job's setting, a line through their means.

    Args:
        dots: by the student's steps: (position in `values`, figure) of each setting.
        colour: of each number of steps.
    """
    figure, axes = new_axes()
    for steps, own in dots.items():
        axes.plot(*zip(*own, strict=True), "o", color=colour[steps], ms=3.5, alpha=0.55)
        places = sorted({place for place, _ in own})
        means = [mean(y for x, y in own if x == place) for place in places]
        if len(values) <= MOST_TICKS:  # in a search each value belongs to a single trial
            axes.plot(places, means, "-", color=colour[steps], lw=1.6)
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, len(values), -(-len(values) // MOST_TICKS)))))
    axes.xaxis.set_minor_locator(NullLocator())
    most = max(4, 36 // min(len(values), MOST_TICKS))  # characters that have room below a tick
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: shortened(values[int(place)], most)))
    axes.set_xlim(-0.35, len(values) - 0.65)
    label_axes(axes, name, figure_name)
    if all(y > 0 for own in dots.values() for _, y in own):
        log_y(axes)
    return to_svg(figure, f"{figure_name} against {name}")


@matplotlib.rc_context(STYLE)
def fid_against_evaluations(dots: Mapping[str, Points], front: Points, colour: Mapping[str, str]) -> Markup:
    """FID over network evaluations: every setting of every model, and the line of those that none beats in both."""
    figure, axes = new_axes()
    for model, own in dots.items():
        axes.plot(*zip(*own, strict=True), "o", color=colour[model], ms=3.5, alpha=0.6)
    axes.step(*zip(*front, strict=True), where="post", color=INK, lw=1.2)
    log_2_x(axes)
    label_axes(axes, "network evaluations", "FID")
    log_y(axes)
    return to_svg(figure, "FID against network evaluations")


def shortened(value: str, most: int) -> str:
    """A value in at most so many characters."""
    return value if len(value) <= most else f"{value[: most - 1]}…"
