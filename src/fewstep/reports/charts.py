"""The report's charts as SVG that lives in the page: it takes the page's text colour, font and width."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import cycle
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullLocator

from fewstep.artifacts.quality_file import GUIDED, TEACHER, QualityRow
from fewstep.reports.summary import by_name

IMAGES_SEEN = "images seen"  # label of an axis, whose numbers are shown as 25 k, 1.5 M
INK, CARD = "#123457", "#fedcb9"  # stand for the page's text and card colours until the SVG is written
# Mid-tones that read on white and on near-black.
COLOURS = {TEACHER: "#7a8594", GUIDED: "#d9822b"}
PALETTE = ("#2f86d6", "#2a9d6f", "#b05bc4", "#c2456d", "#1b9aaa", "#8a6d3b", "#6c6fd8", "#7a9a01", "#e05d44")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep",  # the same numbers give the same bytes
    "font.size": 8.5,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.titlecolor", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK),
}
Points = Sequence[tuple[float, float]]
"""(x, y) of each point of a line."""


def colours(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model, the same in every chart: fixed for teacher and guided, others in order of appearance."""
    palette = cycle(PALETTE)
    return {model: COLOURS.get(model) or next(palette) for model in dict.fromkeys(models)}


@matplotlib.rc_context(STYLE)
def fid_against_steps(rows: Sequence[QualityRow], reference: QualityRow | None, colour: Mapping[str, str]) -> Markup:
    """FID and its interval over steps, a line per model, at one w; dashed `reference`, the teacher's most steps."""
    figure, axes = new_axes()
    if reference is not None:
        axes.axhline(reference.fid, color=INK, alpha=0.6, lw=1, ls=(0, (4, 3)))
    for model, own in by_name(rows).items():
        axes.plot([r.steps for r in own], [r.fid for r in own], "o-", color=colour[model], ms=4.5, lw=1.6)
        for row in own:
            if "fid" in row.intervals:
                axes.plot(
                    [row.steps] * 2, [max(end, row.fid / 10) for end in row.intervals["fid"]], color=colour[model]
                )
    log_2_x(axes)
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(row.steps) for row in rows})))
    label_axes(axes, "steps", "FID")
    log_y(axes)
    return to_svg(figure, "FID against steps")


@matplotlib.rc_context(STYLE)
def fid_against_inception(
    rows: Sequence[QualityRow], reference: Sequence[QualityRow], colour: Mapping[str, str]
) -> Markup:
    """FID over inception score at one number of steps, a curve over w per model, w written on each point.

    `reference`, dashed, is the teacher's most steps.
    """
    figure, axes = new_axes()
    curve_over_w(axes, reference, line=INK, face=CARD, ink=INK, layer=2)
    for layer, (model, own) in enumerate(by_name(rows).items(), start=3):
        curve_over_w(axes, own, line=colour[model], face=colour[model], ink="white", layer=layer)
    axes.margins(0.1)
    label_axes(axes, "inception score", "FID")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    log_y(axes)
    return to_svg(figure, "FID against inception score, over w")


def curve_over_w(axes: Axes, rows: Sequence[QualityRow], *, line: str, face: str, ink: str, layer: int) -> None:
    """A curve whose points are discs with their w in them; dashed where the discs are of another colour."""
    points = sorted((row for row in rows if row.inception_score is not None), key=lambda row: row.w)
    x, y = [row.inception_score or 0.0 for row in points], [row.fid for row in points]
    axes.plot(x, y, color=line, lw=1.3, ls="-" if face == line else (0, (3, 2)), zorder=layer)
    axes.scatter(x, y, s=78, facecolor=face, edgecolor=line, linewidths=0.8, zorder=layer + 0.3)
    text: dict[str, Any] = {"ha": "center", "va": "center_baseline", "size": 6.2, "weight": "bold", "color": ink}
    for row, score, fid in zip(points, x, y, strict=True):
        axes.annotate(f"{row.w:g}", (score, fid), zorder=layer + 0.6, **text)


@matplotlib.rc_context(STYLE)
def line_chart(
    lines: Mapping[int | None, Points],
    colour: Mapping[int | None, str],
    x: str,
    y: str,
    *,
    log: bool = True,
    label: bool = False,
) -> Markup:
    """A line per phase over `x`.

    Args:
        lines, colour: of each phase, by its steps; None in a run of one phase.
        log: whether y is logarithmic, where it is above 0 throughout.
        label: whether the steps of a phase stand above its line.
    """
    figure, axes = new_axes()
    for rung, points in lines.items():
        marker = {"marker": "o", "ms": 3.5} if len(points) <= 16 else {}
        axes.plot(*zip(*points, strict=True), color=colour[rung], lw=1.4, **marker)
        if label and rung is not None:
            text: dict[str, Any] = {"color": colour[rung], "ha": "center", "weight": "bold"}
            middle = (points[0][0] + points[-1][0]) / 2
            axes.text(middle, 1.03, f"{rung}", transform=axes.get_xaxis_transform(), **text)
    label_axes(axes, x, y)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if x == IMAGES_SEEN:
        axes.xaxis.set_major_formatter(EngFormatter())
    if log and all(value > 0 for points in lines.values() for _, value in points):
        log_y(axes)
    return to_svg(figure, f"{y} over {x}")


def shades(rungs: Sequence[int | None], colour: str) -> dict[int | None, str]:
    """A colour for each number of steps, in this order; `colour` in a run of one phase, which has none."""
    plasma, last = matplotlib.colormaps["plasma"], max(1, len(rungs) - 1)
    return {
        rung: colour if rung is None else to_hex(plasma(0.15 + 0.7 * index / last)) for index, rung in enumerate(rungs)
    }


def new_axes() -> tuple[Figure, Axes]:
    """Axes with room for five-character labels; the y-label stands above them, so that all panels align."""
    figure = Figure(figsize=(3.05, 2.45))
    axes = figure.add_axes((0.135, 0.165, 0.83, 0.745))
    axes.tick_params(length=2.5, pad=2.5)
    return figure, axes


def label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", x=-0.145, pad=7)


def log_2_x(axes: Axes) -> None:
    """A logarithmic axis of steps or evaluations, labelled in plain numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def log_y(axes: Axes) -> None:
    """A logarithmic axis that is labelled in plain numbers, also where it spans less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    span = high / low
    subs = (1, 1.5, 2, 3, 5, 7) if span < 8 else (1, 2, 5) if span < 300 else (1,)
    axes.yaxis.set_major_locator(MaxNLocator(5) if span < 1.6 else LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def to_svg(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element for HTML: no prolog, metadata, namespaces, fixed size or address."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    found = re.search(r'<svg[^>]*(viewBox="[^"]*")[^>]*>\s*<metadata>.*?</metadata>(.*)', text.getvalue(), re.DOTALL)
    assert found is not None
    rest = found[2].replace(INK, "currentColor").replace(CARD, "var(--card)")
    return Markup(f'<svg {found[1]} role="img" aria-label="{label}">{rest}')
