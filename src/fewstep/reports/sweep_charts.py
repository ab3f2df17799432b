"""The charts of a sweep's page, in the style of the report's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fewstep.reports.charts import INK, STYLE, label_axes, log_y, new_axes, to_svg

MOST_TICKS = 6


@dataclass(frozen=True)
class Line:
    """Quality against a swept value, for one number of steps: (position of the value, figure) of each setting."""

    steps: int
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Dot:
    """One model in the plane of FID against evaluations."""

    model: str
    nfe: int
    fid: float


def shade(steps: int, all_steps: Sequence[int]) -> str:
    """A colour for each number of steps, the same in every chart of the page."""
    place = sorted(all_steps).index(steps) / max(1, len(all_steps) - 1)
    return to_hex(matplotlib.colormaps["plasma"](0.15 + 0.65 * place))


@matplotlib.rc_context(STYLE)
def figure_against_value(name: str, values: Sequence[str], lines: Sequence[Line], figure_name: str) -> Markup:
    """A figure over the values of one setting: a dot for each job's setting, a line through their means."""
    figure, axes = new_axes()
    steps = [line.steps for line in lines]
    for line in lines:
        colour = shade(line.steps, steps)
        axes.plot(*zip(*line.points, strict=True), "o", color=colour, ms=3.5, alpha=0.55)
        places = sorted({place for place, _ in line.points})
        means = [sum(own) / len(own) for place in places for own in [[y for x, y in line.points if x == place]]]
        if len(values) <= MOST_TICKS:  # of a search every value is one trial's
            axes.plot(places, means, "-", color=colour, lw=1.6)
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, len(values), -(-len(values) // MOST_TICKS)))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: shortened(str(values[round(place)]), min(len(values), MOST_TICKS)))
    )
    axes.set_xlim(-0.35, len(values) - 0.65)
    label_axes(axes, name, figure_name)
    if all(y > 0 for line in lines for _, y in line.points):
        log_y(axes)
    return to_svg(figure, f"{figure_name} against {name}")


@matplotlib.rc_context(STYLE)
def fid_against_evaluations(dots: Sequence[Dot], front: Sequence[Dot], colour: Mapping[str, str]) -> Markup:
    """Every model of every setting, and the line of those that none beats in both."""
    figure, axes = new_axes()
    for model in dict.fromkeys(dot.model for dot in dots):
        own = [dot for dot in dots if dot.model == model]
        axes.plot([d.nfe for d in own], [d.fid for d in own], "o", color=colour[model], ms=3.5, alpha=0.6)
    axes.step([dot.nfe for dot in front], [dot.fid for dot in front], where="post", color=INK, lw=1.2)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda nfe, _: f"{nfe:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    label_axes(axes, "network evaluations", "FID")
    log_y(axes)
    return to_svg(figure, "FID against network evaluations")


def shortened(value: str, count: int) -> str:
    """A value that has room under an axis of `count` values."""
    most = max(4, 36 // count)
    return value if len(value) <= most else f"{value[: most - 1]}…"
