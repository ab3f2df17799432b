"""One table of a sweep: results.csv and collect.html."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewstep.artifacts.quality_file import TEACHER
from fewstep.reports.charts import INK, colours, shades
from fewstep.reports.page import write_page as write_template
from fewstep.reports.sweep_charts import fid_against_evaluations, figure_against_value
from fewstep.sweeps.objective import Objective
from fewstep.sweeps.results import Collected, Point, Setting, pareto, points, table
from fewstep.system.files import atomic_write

CSV, PAGE = "results.csv", "collect.html"


def write_csv(sweep: Collected) -> Path:
    """Write every figure of the sweep, best setting first."""
    rows = table(sweep)
    path = sweep.folder / CSV
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_page(sweep: Collected) -> Path:
    """Write the page of the sweep: its settings best first, its charts, and its Pareto front."""
    cells = [cell for setting in sweep.settings for cell in setting.cells]
    steps = sorted({cell.steps for cell in cells if cell.is_few_step}, reverse=True)
    by_model: dict[str, list[Point]] = {}
    for point in points(sweep):
        by_model.setdefault(point.cell.name, []).append(point)
    front = pareto(point for own in by_model.values() for point in own)
    models = colours([*by_model])
    charts = [chart_of(sweep, key, steps) for key in sweep.keys]
    content = {
        "sweep": sweep,
        "milliseconds": [(setting, [setting.milliseconds(count) for count in steps]) for setting in sweep.settings],
        "settings": [(setting, *figures_of(setting, sweep.objective, steps)) for setting in sweep.settings],
        "jobs": sum(len(setting.jobs) for setting in sweep.settings),
        "one_seed": all(len(setting.jobs) == 1 for setting in sweep.settings),
        "shades": shades(steps, INK),
        "models": models,
        "front": front,
        "charts": [chart for chart in charts if chart is not None],
        "front_chart": fid_against_evaluations(
            {model: [(p.cell.nfe, p.fid.mean) for p in own] for model, own in by_model.items()},
            [(point.cell.nfe, point.fid.mean) for point in front],
            models,
        ),
    }
    write_template(sweep.folder / PAGE, "sweep_report.html", content)
    return sweep.folder / PAGE


def figures_of(setting: Setting, objective: Objective, steps: list[int]) -> tuple[Any, list[Any], Any]:
    """A setting's spreads: of the objective, of the students' FID by steps, of the FID of the teacher's most steps."""
    teachers = [cell for cell in setting.cells if cell.name == TEACHER]
    teacher = setting.spread(max(teachers, key=lambda cell: cell.steps)) if teachers else None
    return setting.objective(objective), [setting.objective(Objective("fid", count)) for count in steps], teacher


def chart_of(sweep: Collected, key: str, steps: list[int]) -> Markup | None:
    """The chart of the objective's figure against one swept value; None where it has one value."""
    values = sorted({setting.values.get(key, "") for setting in sweep.settings}, key=number_or_text)
    if len(values) < 2:
        return None
    dots = {}
    for count in steps:
        objective = replace(sweep.objective, steps=count)
        figures = [(setting.values.get(key, ""), setting.objective(objective)) for setting in sweep.settings]
        if own := [(values.index(value), spread.mean) for value, spread in figures if spread]:
            dots[count] = own
    return figure_against_value(key, values, dots, shades(steps, INK), sweep.objective.figure.upper())


def number_or_text(value: str) -> tuple[bool, float, str]:
    """What values are sorted by: numbers first."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
