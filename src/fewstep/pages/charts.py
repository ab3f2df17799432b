"""Bokeh charts that take new numbers while they are looked at, without losing the reader's zoom."""

from collections.abc import Sequence
from typing import Any

import panel as pn
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    DataRange1d,
    FactorRange,
    FixedTicker,
    HoverTool,
    Legend,
    LegendItem,
    NumeralTickFormatter,
)
from bokeh.plotting import figure

from fewstep.pages.questions import Line, Lines

INK, SOFT, GRID = "#1d2733", "#64717f", "#e3e8ee"
REFERENCE = "#8a94a0"
PALETTE = ("#2f86d6", "#d9822b", "#2a9d6f", "#b05bc4", "#c2456d", "#8a6d3b", "#1b9aaa", "#6c6fd8", "#7a9a01", "#e05d44")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LEGEND_LETTERS = 48  # that fit beside each other
# In JavaScript: 0.002, not 2.000e-3, and as many digits as neighbours need to differ.
PLAIN = """
const steps = ticks.slice(1).map((next, place) => Math.abs(next - ticks[place])).filter((step) => step > 0)
const digits = steps.length ? Math.ceil(Math.log10(Math.abs(tick) / Math.min(...steps))) + 1 : 0
return String(Number(tick.toPrecision(Math.min(12, Math.max(4, digits || 0)))))
"""
MOST_TICKS = 12
MOST_POINTS = 600  # of a line


class Chart:
    """A chart of lines with markers; made anew only where other lines than before are to be shown.

    Args:
        x, y: titles of the axes. log_x, log_y: whether they are logarithmic (where no value forbids it).
        points: no lines between the points, but for a reference.
    """

    def __init__(self, x: str, y: str, *, log_x: bool = False, log_y: bool = False, points: bool = False) -> None:
        self.x, self.y = x, y
        self.log_x, self.log_y, self.points = log_x, log_y, points
        self._sources: dict[str, ColumnDataSource] = {}
        self._key: tuple[object, ...] = ()
        self.pane = pn.pane.Bokeh(sizing_mode="stretch_width", height=300, margin=0)

    def show(self, lines: Lines, y: str | None = None) -> None:
        """Show these lines, and no others; `y` is the axis' new title."""
        self.y = y or self.y
        self.pane.visible = bool(lines)
        if not lines:
            return
        log_y = self.log_y and all(value > 0 for line in lines for value in line.y)
        factors = tuple(dict.fromkeys(str(x) for line in lines for x in line.x if isinstance(x, str)))
        key = (self.y, log_y, factors, *((line.label, line.reference) for line in lines))
        if key != self._key:
            self._sources = {line.label: ColumnDataSource(dict(columns(line))) for line in lines}
            self.pane.object = self._drawn(lines, log_y, factors)
            self._key = key
        else:
            for line in lines:
                if (new := columns(line)) != self._sources[line.label].data:
                    self._sources[line.label].data = dict(new)  # pyright: ignore[reportAttributeAccessIssue]

    def _drawn(self, lines: Lines, log_y: bool, factors: Sequence[str]) -> figure:
        chart = figure(
            height=300,
            sizing_mode="stretch_width",
            x_axis_type="auto" if factors else "log" if self.log_x else "linear",
            y_axis_type="log" if log_y else "linear",
            x_range=FactorRange(factors=list(factors)) if factors else DataRange1d(),
            tools="pan,box_zoom,wheel_zoom,reset,save",
            active_scroll=None,
            toolbar_location="right",
        )
        dressed(chart, self.x, self.y)
        chart.yaxis.formatter = CustomJSTickFormatter(code=PLAIN)
        places = sorted({x for line in lines for x in line.x if not isinstance(x, str)})
        if self.log_x and len(places) <= MOST_TICKS:
            chart.xaxis.ticker = FixedTicker(ticks=places)
        if not factors and places and places[-1] >= 1000:
            chart.xaxis.formatter = NumeralTickFormatter(format="0.[0] a")
        items = []
        colours = iter(PALETTE * len(lines))
        for line in lines:
            source, colour = self._sources[line.label], REFERENCE if line.reference else next(colours)
            renderers = []
            joined = not self.points or line.reference
            if joined and not (factors and line.reference):
                dash = "dashed" if line.reference else "solid"
                renderers.append(chart.line("x", "y", source=source, color=colour, line_width=2, line_dash=dash))
            few = len(line.x) <= 40
            if self.points and line.reference:  # rings around the points that it goes through
                renderers.append(chart.scatter("x", "y", source=source, size=13, line_color=colour, fill_color=None))
            elif few or not renderers:
                renderers.append(chart.scatter("x", "y", source=source, color=colour, size=7, line_color="white"))
            items.append(LegendItem(label=line.label, renderers=renderers))
        chart.add_tools(HoverTool(tooltips=[("", "@label"), (self.x, "@x"), (self.y, "@y{0.[0000]}")]))
        columns_of_legend = max(1, LEGEND_LETTERS // (max(len(line.label) for line in lines) + 4))
        if 1 < len(items) <= 4 * columns_of_legend:  # else the mouse says which line is which
            legend = Legend(items=items, click_policy="hide", orientation="horizontal", ncols=columns_of_legend)
            legend.update(location="left", border_line_color=None, background_fill_alpha=0, label_text_font=FONT)
            legend.update(label_text_font_size="11px", label_text_color=SOFT, glyph_width=16)
            legend.update(spacing=2, padding=0, margin=4)
            chart.add_layout(legend, "above")
        return chart


def dressed(chart: figure, x: str, y: str) -> None:
    """The look of report.html's charts."""
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    chart.outline_line_color = None
    chart.min_border_left, chart.min_border_right = 46, 12
    chart.grid.grid_line_color = GRID
    for axis in (*chart.xaxis, *chart.yaxis):
        axis.update(axis_line_color=None, major_tick_line_color=None, minor_tick_line_color=None)
        axis.update(major_label_text_color=SOFT, major_label_text_font_size="11px", major_label_text_font=FONT)
        axis.update(axis_label_text_color=INK, axis_label_text_font_style="normal", axis_label_text_font=FONT)
        axis.update(axis_label_text_font_size="12px")
    for axis, title in ((chart.xaxis, x), (chart.yaxis, y)):
        axis.axis_label = title


def columns(line: Line) -> dict[str, Any]:
    """A line as a source's columns, thinned to what a chart can show; the last point stays."""
    stride = -(-len(line.x) // MOST_POINTS)
    x, y = list(line.x)[::-stride][::-1], list(line.y)[::-stride][::-1]
    return {"x": x, "y": y, "label": [line.label] * len(x)}
