"""One table of a sweep: results.csv and collect.html."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewstep.artifacts.quality_file import TEACHER
from fewstep.reports.charts import colours
from fewstep.reports.sweep_charts import Dot, Line, fid_against_evaluations, figure_against_value, shade
from fewstep.reports.sweep_report import write_sweep_report
from fewstep.sweeps.results import Collected, Setting, pareto, points, table
from fewstep.sweeps.status import Objective
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
    """Write the page of the sweep."""
    cells = [cell for setting in sweep.settings for cell in setting.cells]
    steps = sorted({cell.steps for cell in cells if cell.is_few_step}, reverse=True)
    every = points(sweep)
    front = pareto(every)
    models = colours([point.cell.model for point in every])
    settings = [row_of(setting, sweep.objective, steps) for setting in sweep.settings]
    content = {
        "name": sweep.folder.name,
        "objective": str(sweep.objective),
        "protocol": sweep.protocol,
        "keys": sweep.keys,
        "settings": settings,
        "best": settings[0],
        "jobs": sum(len(setting.results) for setting in sweep.settings),
        "missing": sweep.missing,
        "one_seed": all(len(setting.results) == 1 for setting in sweep.settings),
        "student_steps": steps,
        "shades": [(count, shade(count, steps)) for count in steps],
        "models": list(models.items()),
        "front": [
            {"nfe": point.cell.nfe, "model": point.cell.name, "steps": point.cell.steps, "setting": point.setting.name}
            | {"fid": point.fid.mean, "std": point.fid.std}
            for point in front
        ],
    }
    charts = [chart for key in sweep.keys if (chart := chart_of(sweep, key, steps)) is not None]
    dots, line = ([Dot(p.cell.model, p.cell.nfe, p.fid.mean) for p in own] for own in (every, front))
    write_sweep_report(sweep.folder / PAGE, content, charts, fid_against_evaluations(dots, line, models))
    return sweep.folder / PAGE


def row_of(setting: Setting, objective: Objective, steps: list[int]) -> dict[str, Any]:
    """A setting as the page's table has it."""
    figure = setting.objective(objective)
    teachers = [cell for cell in setting.cells if cell.name == TEACHER]
    teacher = setting.spread(max(teachers, key=lambda cell: cell.steps)) if teachers else None
    by_steps = [setting.objective(Objective("fid", count)) for count in steps]
    return {
        "name": setting.name,
        "values": setting.values,
        "count": len(setting.results),
        "figure": figure and figure.mean,
        "std": figure and figure.std,
        "by_steps": [spread and spread.mean for spread in by_steps],
        "teacher": teacher and teacher.mean,
    }


def chart_of(sweep: Collected, key: str, steps: list[int]) -> Markup | None:
    """The chart of the objective's figure against one swept value; None where it has one value."""
    values = sorted({setting.values.get(key, "") for setting in sweep.settings}, key=number_or_text)
    if len(values) < 2:
        return None
    lines = []
    for count in steps:
        objective = replace(sweep.objective, steps=count)
        figures = [(setting.values.get(key, ""), setting.objective(objective)) for setting in sweep.settings]
        dots = [(values.index(value), spread.mean) for value, spread in figures if spread]
        lines += [Line(count, dots)] if dots else []
    return figure_against_value(key, values, lines, sweep.objective.figure.upper())


def number_or_text(value: str) -> tuple[bool, float, str]:
    """What values are sorted by: numbers first."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
