"""The report's charts as SVG that lives in the page: it takes the page's text colour, font and width."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from fewstep.reports.summary import Row, by_model, model_order

INK, CARD = "#123457", "#fedcb9"  # stand for the page's text and card colours until the SVG is written
# Mid-tones that read on white and on near-black.
COLOURS = {"teacher": "#7a8594", "guided": "#d9822b", "progressive": "#2f86d6"}
OTHERS = ("#2a9d6f", "#b05bc4", "#c2456d", "#8a6d3b")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep",  # the same numbers give the same bytes
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8.5,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True)
class Curve:
    """Training loss over images; `rung` is None outside a ladder."""

    rung: int | None
    images: list[float]
    loss: list[float]


def colours(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model, the same in every chart."""
    others = iter(OTHERS * len(models))
    return {model: COLOURS.get(model) or next(others) for model in sorted(set(models), key=model_order)}


@matplotlib.rc_context(STYLE)
def fid_against_steps(rows: Sequence[Row], reference: Row | None, colour: Mapping[str, str]) -> Markup:
    """FID over steps, a line per model, at one w; dashed `reference`, the teacher's most steps."""
    figure, axes = _axes()
    if reference is not None:
        axes.axhline(reference.fid, color=INK, alpha=0.6, lw=1, ls=(0, (4, 3)))
    for model, own in by_model(rows).items():
        axes.plot([r.steps for r in own], [r.fid for r in own], "o-", color=colour[model], ms=4.5, lw=1.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(row.steps) for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: f"{steps:g}"))
    _label(axes, "steps", "FID")
    _log_y(axes)
    return _svg(figure, "FID against steps")


@matplotlib.rc_context(STYLE)
def fid_against_inception(rows: Sequence[Row], reference: Sequence[Row], colour: Mapping[str, str]) -> Markup:
    """FID over inception score at one number of steps, a curve over w per model, w written on each point.

    `reference`, dashed, is the teacher's most steps.
    """
    figure, axes = _axes()
    curves = [("reference", reference), *by_model(rows).items()]
    for layer, (model, own) in enumerate(curves, start=2):
        points = sorted((row for row in own if row.inception_score is not None), key=lambda row: row.w)
        x, y = [row.inception_score for row in points], [row.fid for row in points]
        hollow = model == "reference"
        line, face, ink = (INK, CARD, INK) if hollow else (colour[model], colour[model], "white")
        axes.plot(x, y, color=line, lw=1.3, ls=(0, (3, 2)) if hollow else "-", zorder=layer)
        axes.scatter(x, y, s=78, facecolor=face, edgecolor=line, linewidths=0.8, zorder=layer + 0.3)
        for row in points:
            axes.annotate(
                f"{row.w:g}",
                (row.inception_score or 0.0, row.fid),
                color=ink,
                size=6.2,
                weight="bold",
                ha="center",
                va="center_baseline",
                zorder=layer + 0.6,
            )
    axes.margins(0.1)
    _label(axes, "inception score", "FID")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _log_y(axes)
    return _svg(figure, "FID against inception score, over w")


@matplotlib.rc_context(STYLE)
def loss_curves(curves: Sequence[Curve], colour: str) -> Markup:
    """Training loss over images in `colour`; a ladder's rungs side by side, below their steps."""
    figure, axes = _axes()
    shades = matplotlib.colormaps["plasma"]
    for index, curve in enumerate(curves):
        face = colour if len(curves) == 1 else shades(0.4 + 0.4 * index / (len(curves) - 1))
        marker = "o" if len(curve.loss) == 1 else None
        axes.plot(curve.images, curve.loss, color=face, lw=1.5, marker=marker, ms=4)
        if curve.rung is not None:
            middle = (curve.images[0] + curve.images[-1]) / 2
            place = axes.get_xaxis_transform()
            axes.text(middle, 1.03, f"{curve.rung}", transform=place, color=face, ha="center", weight="bold")
    _label(axes, "images seen", "loss")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    _log_y(axes)
    return _svg(figure, "training loss")


@dataclass(frozen=True)
class Line:
    """A student's figure over images, t or w; `rung` is None outside a ladder."""

    rung: int | None
    x: list[float]
    y: list[float]


def shades(rungs: Sequence[int | None], colour: str) -> dict[int | None, str]:
    """A colour for each rung in the order of training; `colour` where there is no ladder."""
    plasma = matplotlib.colormaps["plasma"]
    last = max(1, len(rungs) - 1)
    return {
        rung: colour if rung is None else to_hex(plasma(0.1 + 0.75 * index / last)) for index, rung in enumerate(rungs)
    }


@matplotlib.rc_context(STYLE)
def student_lines(
    lines: Sequence[Line], colour: Mapping[int | None, str], x: str, y: str, *, log: bool = True
) -> Markup:
    """A line per rung over `x`; `y` is logarithmic if so wanted and above 0 throughout."""
    figure, axes = _axes()
    for line in lines:
        dots = {"marker": "o", "ms": 3.5} if len(line.x) <= 16 else {}
        axes.plot(line.x, line.y, color=colour[line.rung], lw=1.4, **dots)
    _label(axes, x, y)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    if log and all(value > 0 for line in lines for value in line.y):
        _log_y(axes)
    return _svg(figure, f"{y} over {x}")


def _axes() -> tuple[Figure, Axes]:
    """Axes with room for five-character labels; the y-label stands above them, so that all panels align."""
    figure = Figure(figsize=(3.05, 2.45))
    axes = figure.add_axes((0.135, 0.165, 0.83, 0.745))
    axes.tick_params(length=2.5, pad=2.5)
    return figure, axes


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", x=-0.145, pad=7)


def _log_y(axes: Axes) -> None:
    """A logarithmic axis that is labelled in plain numbers, also where it spans less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    span = high / low
    if span < 1.6:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if span < 8 else (1, 2, 5) if span < 300 else (1,))
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _short(count: float, _: int) -> str:
    """25000 as 25 k, 1500000 as 1.5 M."""
    if count >= 1e6:
        return f"{count / 1e6:g} M"
    return f"{count / 1e3:g} k" if count >= 1e3 else f"{count:g}"


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element for HTML: no prolog, metadata, namespaces, fixed size or address."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    rest = rest.replace(INK, "currentColor").replace(CARD, "var(--card)")
    return Markup(f'<svg {view[0]} role="img" aria-label="{label}">{rest}')
