"""The charts of a sweep's page, in the style of the report's."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from fewstep.reports.charts import INK, STYLE, Points, label_axes, log_2_x, log_y, new_axes, to_svg

MOST_TICKS = 6
LETTER, LINE = 4.6, 8.5  # width and height of a letter of a name, in points
SHIFTS = (-8, 8, -17, 17, -26, 26, -35, 35)  # where a name may be, above or below its dot


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


class Dot(NamedTuple):
    """A student in the plane of quality against cost."""

    cost: float
    quality: float
    interval: tuple[float, float] | None
    label: str
    steps: int


@matplotlib.rc_context(STYLE)
def quality_against_cost(
    dots: Sequence[Dot],
    fronts: Sequence[Sequence[Dot]],
    colour: Mapping[int | None, str],
    x: str,
    y: str,
    *,
    teacher: float | None = None,
) -> Markup:
    """All students with their intervals, coloured by steps, and lines of those that none beats in both, by name.

    Args:
        fronts: each of students of one number of steps, in its colour, or of several, in ink.
        colour: of each number of steps; others, of guided students, are ink.
        teacher: what the teacher's own training cost, a dashed line.
    """
    figure = Figure(figsize=(4.7, 3.3))
    axes = figure.add_axes((0.1, 0.125, 0.87, 0.79))
    axes.tick_params(length=2.5, pad=2.5)
    costs, qualities = [dot.cost for dot in dots], [dot.quality for dot in dots]
    if teacher is not None:
        axes.axvline(teacher, color=INK, alpha=0.6, lw=1, ls=(0, (4, 3)))
    for dot in dots:
        tint = colour.get(dot.steps, INK)
        if dot.interval is not None:
            axes.vlines(
                dot.cost, max(dot.interval[0], min(qualities) / 10), dot.interval[1], color=tint, lw=0.8, alpha=0.45
            )
        is_worth_it = any(dot in front for front in fronts)
        axes.plot(dot.cost, dot.quality, "o", color=tint, ms=5.5 if is_worth_it else 3.5, alpha=0.85)
    for front in fronts:
        tint = colour.get(front[0].steps, INK) if len({dot.steps for dot in front}) == 1 < len(fronts) else INK
        line = [(dot.cost, dot.quality) for dot in front] + [(max(costs), front[-1].quality)]
        axes.step(*zip(*line, strict=True), where="post", color=tint, lw=1, alpha=0.7)
    axes.set_xscale("log")
    label_axes(axes, x, y)
    log_y(axes)
    span = max(qualities) / min(qualities)
    axes.set_ylim(min(qualities) / (span + 0.5) ** 0.1, max(qualities) * (span + 0.5) ** 0.06)  # intervals may leave it
    if max(costs) < 1.6 * min(costs):
        axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    name_dots(axes, [dot for front in fronts for dot in front], colour)
    return to_svg(figure, f"{y} against {x}")


def name_dots(axes: Axes, dots: Sequence[Dot], colour: Mapping[int | None, str]) -> None:
    """Write names beside the dots, in their colours, below or above or further away, where no other name is."""
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes of a figure"
    taken: list[tuple[float, float, float]] = []  # left, right and height of each name, in points
    for dot in sorted(dots, key=lambda dot: dot.quality):
        x, y = axes.transData.transform((dot.cost, dot.quality)) * 72 / figure.dpi
        is_left = axes.transAxes.inverted().transform(axes.transData.transform((dot.cost, dot.quality)))[0] > 0.5
        width = 5 + LETTER * len(dot.label)
        left, right = (x - width, x) if is_left else (x, x + width)
        free = (
            shift
            for shift in SHIFTS
            if all(right < a or left > b or abs(y + shift - height) > LINE for a, b, height in taken)
        )
        shift = next(free, SHIFTS[-1])
        taken.append((left, right, y + shift))
        text: dict[str, Any] = {"size": 7.5, "weight": "bold", "color": colour.get(dot.steps, INK), "va": "center"}
        place = (-5 if is_left else 5, shift)
        ha = "right" if is_left else "left"
        axes.annotate(dot.label, (dot.cost, dot.quality), place, textcoords="offset points", ha=ha, **text)


def shortened(value: str, most: int) -> str:
    """A value in at most so many characters."""
    return value if len(value) <= most else f"{value[: most - 1]}…"
