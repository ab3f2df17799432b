"""The page of `fewstep dashboard --local`: panels by question, from the files below outputs/, live."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import panel as pn
from markupsafe import Markup
from panel.viewable import Viewable

from fewstep.pages import questions
from fewstep.pages.charts import Chart
from fewstep.pages.questions import FIGURES, LESS_IS_BETTER, Chosen
from fewstep.pages.runs import TRAINED, Outputs, Run, View
from fewstep.pages.serving import STYLE
from fewstep.pages.tables import costs_table, runs_table, settings_table
from fewstep.tracking.names import GRADIENT_NORM, IMAGES_PER_SECOND, LEARNING_RATE, LOSS, SAMPLE_FID, SAMPLE_STATISTICS

EVERY_MILLISECONDS = 2000
COLUMNS = {
    "loss": LOSS,
    "gradient norm": GRADIENT_NORM,
    "learning rate": LEARNING_RATE,
    "images per second": IMAGES_PER_SECOND,
    "FID of the snapshots": SAMPLE_FID,
}
HEADER = Markup(
    "<h1>fewstep dashboard</h1><p>{folder}: experiments and sweeps, {count} of them, read at {now}{note}</p>"
)
SECTION = Markup("<h2>{title}</h2><p>{caption}</p>")


class Section:
    """A card that answers one question: a table and charts, each below its title."""

    def __init__(self, title: str, caption: str, *above: Viewable) -> None:
        heading = pn.pane.HTML(
            str(SECTION.format(title=title, caption=caption)),
            stylesheets=[STYLE],
            css_classes=["flush"],
            sizing_mode="stretch_width",
        )
        self.charts = pn.FlexBox(gap="14px 22px", sizing_mode="stretch_width", margin=(8, 0, 0, 0))
        self.view = pn.Column(
            heading,
            *above,
            self.charts,
            stylesheets=[STYLE],
            css_classes=["card", "below"],
            sizing_mode="stretch_width",
        )

    def add(self, title: str, chart: Chart) -> Chart:
        """Show a chart below the others."""
        heading = pn.pane.HTML(
            f"<h3>{title}</h3>", stylesheets=[STYLE], css_classes=["flush"], sizing_mode="stretch_width"
        )
        chart.pane.link(heading, visible="visible")
        box = pn.Column(heading, chart.pane, styles={"flex": "1 1 400px", "min-width": "0", "max-width": "660px"})
        chart.pane.link(box, visible="visible")
        self.charts.append(box)
        return chart


class DashboardPage:
    """One visitor's page: reads what has changed every two seconds."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self._views: list[View] = []
        self.choice = select("Show", 420)
        self.column = select("Look at", 200, list(COLUMNS))
        self.figure = select("Figure", 180)
        self.w = select("w", 100)
        self.steps = select("Steps", 100)
        self.header = html()
        self.alarms, self.runs, self.costs, self.settings = html(), html(), html(), html()
        self.training = Section(
            "Is it training?",
            "Every stage and rung regresses to its own target, so losses compare inside one chart only. The gap is "
            "what the loss hides: 0 is a perfect student. Drift: samples less the teacher's from the same noise.",
            self.alarms,
            self.runs,
        )
        self.over_images = {stage: self.training.add(stage, Chart("images", "loss", log_y=True)) for stage in TRAINED}
        self.gap = self.training.add("gap to the teacher", Chart("images of the stage or rung", "gap", log_y=True))
        self.drifts = {
            name: self.training.add(f"{name} drift", Chart("images of the stage or rung", name))
            for name in SAMPLE_STATISTICS
        }
        self.which_w = Section("Which w?", "One student serves all w; here is what each w costs in quality.")
        self.over_w = self.which_w.add("quality over w", Chart("w", "FID", log_y=True))
        self.gap_w = self.which_w.add("gap to the teacher by w", Chart("w", "gap"))
        self.which_steps = Section(
            "Which steps?", "Quality by steps at the chosen w, and where on the way the error arises."
        )
        self.over_steps = self.which_steps.add("quality over steps", Chart("steps", "FID", log_x=True, log_y=True))
        self.errors = self.which_steps.add("error of one student step", Chart("t (1 is noise)", "rms error"))
        self.gap_t = self.which_steps.add("gap to the teacher by t", Chart("t (1 is noise)", "gap"))
        self.what_cost = Section(
            "What did it cost?", "Dashed: what nothing beats at the same evaluations or fewer.", self.costs
        )
        self.pareto = self.what_cost.add(
            "quality over evaluations", Chart("evaluations an image", "FID", log_x=True, log_y=True, points=True)
        )
        self.which_setting = Section(
            "Which setting?", "Jobs of the sweep by what differs, at the chosen figure, w and steps.", self.settings
        )
        self._by_key: dict[str, Chart] = {}
        for widget in (self.choice, self.column, self.figure, self.w, self.steps):
            widget.param.watch(lambda _: self._show(), "value")
        self.refresh()

    def view(self) -> Viewable:
        """The page."""
        chosen = pn.FlexBox(
            self.choice, self.column, self.figure, self.w, self.steps, gap="6px 18px", sizing_mode="stretch_width"
        )
        sections = (self.which_setting, self.training, self.which_w, self.which_steps, self.what_cost)
        return pn.Column(
            self.header,
            pn.Column(chosen, margin=(14, 0, 18, 0), sizing_mode="stretch_width"),
            *(section.view for section in sections),
            sizing_mode="stretch_width",
            styles={"max-width": "1500px", "margin": "0 auto", "padding": "26px 24px", "box-sizing": "border-box"},
        )

    def refresh(self) -> None:
        """Read what has changed, and show it."""
        self._views = self.outputs.views()
        labels = [view.label for view in self._views]
        offer(self.choice, labels, labels[0] if labels else None)
        self._show()

    def _show(self) -> None:
        view = next((view for view in self._views if view.label == self.choice.value), None)
        now = datetime.now().strftime("%H:%M:%S")
        if view is None:
            note = ": there is no run yet; this page shows one as soon as it starts"
            self.header.object = str(HEADER.format(folder=self.outputs.folder, count=0, now=now, note=note))
            return
        rows, others = view.judged()
        note = f"; {others} runs judged under another protocol are left out of quality" if others else ""
        header = HEADER.format(folder=self.outputs.folder, count=len(self._views), now=now, note=note)
        self.header.object = str(header)
        self._offer(view, [row for _, row in rows])
        chosen = Chosen(str(self.figure.value or "fid"), float(self.w.value or 0), int(self.steps.value or 1))
        self._show_training(view)
        self._show_quality(view, rows, chosen)

    def _offer(self, view: View, rows: Sequence[questions.Row]) -> None:
        """What can be chosen, of what was measured."""
        figures = {
            words: name for name, words in FIGURES.items() if any(getattr(row, name) is not None for row in rows)
        }
        objective = view.objective
        offer(self.figure, figures, objective.get("figure") or "fid")
        weights = sorted({row.w for row in rows})
        wanted = objective.get("w")
        offer(self.w, {f"{w:g}": w for w in weights}, 1.0 if wanted is None else wanted)
        offer(self.steps, sorted({row.steps for row in rows if row.model == "progressive"}), objective.get("steps", 4))
        self.steps.visible = view.is_sweep
        for widget in (self.figure, self.w):
            widget.visible = bool(rows)

    def _show_training(self, view: View) -> None:
        runs_and_alarms = [(run, run.alarms) for run in view.runs if run.alarms]
        self.alarms.object = str(alarms_of(view, runs_and_alarms))
        self.runs.object = str(runs_table(view))
        column = str(self.column.value)
        for stage, chart in self.over_images.items():
            chart.show(questions.over_images(view, stage, COLUMNS[column]), column)
        self.gap.show(questions.gap_over_images(view))
        for name, chart in self.drifts.items():
            chart.show(questions.drift(view, name))

    def _show_quality(self, view: View, rows: list[tuple[Run, questions.Row]], chosen: Chosen) -> None:
        title = FIGURES[chosen.figure]
        self.over_w.show(questions.over_w(view, rows, chosen), title)
        self.gap_w.show(questions.by_bin(view, "w"))
        self.over_steps.show(questions.over_steps(view, rows, chosen), title)
        self.errors.show(questions.step_errors(view))
        self.gap_t.show(questions.by_bin(view, "t"))
        points = questions.over_evaluations(view, rows, chosen)
        front = questions.front(points, chosen.figure in LESS_IS_BETTER)
        self.pareto.show([*points, front] if front.x else [], title)
        self.costs.object = str(costs_table(view))
        self.which_setting.view.visible = view.is_sweep
        for section, shown in (
            (self.which_w, (self.over_w, self.gap_w)),
            (self.which_steps, (self.over_steps, self.errors, self.gap_t)),
        ):
            section.view.visible = any(chart.pane.visible for chart in shown)
        if view.is_sweep:
            self.settings.object = str(settings_table(view, rows, chosen))
            for key in dict.fromkeys(key for values in view.swept.values() for key in values):
                if key not in self._by_key:
                    self._by_key[key] = self.which_setting.add(key, Chart(key, title))
            for key, chart in self._by_key.items():
                chart.show(questions.over_setting(view, rows, key, chosen), title)


def page_of(outputs: Path) -> Callable[[], Viewable]:
    """What makes each visitor's page."""

    def page() -> Viewable:
        made = DashboardPage(Outputs(outputs))
        pn.state.add_periodic_callback(made.refresh, period=EVERY_MILLISECONDS)
        return made.view()

    return page


def alarms_of(view: View, found: Sequence[tuple[Run, Sequence[str]]]) -> Markup:
    """What the diagnostics warn of, a line each."""
    line = Markup('<p class="alarm"><b>{}</b> {}</p>')
    lines = [
        line.format(f"{run.stage} {run.name}" if view.is_sweep else run.stage, words)
        for run, all_ in found
        for words in all_[-3:]
    ]
    return Markup().join(lines)


def select(name: str, width: int, options: list[str] | None = None) -> pn.widgets.Select:
    return pn.widgets.Select(
        name=name, options=options or [], width=width, stylesheets=[STYLE], css_classes=["flush", "control"]
    )


def offer(widget: pn.widgets.Select, options: list | dict, wanted: object) -> None:
    """Give a widget new options and keep its value, or take `wanted`, where it can be had."""
    if widget.options == options:
        return
    values = list(options.values()) if isinstance(options, dict) else options
    value = widget.value if widget.value in values else wanted if wanted in values else values[0] if values else None
    widget.param.update(options=options, value=value)


def html() -> pn.pane.HTML:
    return pn.pane.HTML("", stylesheets=[STYLE], css_classes=["flush"], sizing_mode="stretch_width")
