"""One table of a sweep: results.csv and collect.html."""

import csv
from pathlib import Path
from typing import Any

from fewstep.reports.charts import colours
from fewstep.reports.sweep_charts import Dot, Line, fid_against_evaluations, figure_against_value, shade
from fewstep.reports.sweep_report import write_sweep_report
from fewstep.sweeps.results import Collected, Setting, pareto, points, table
from fewstep.sweeps.status import NO_STUDENTS, Objective
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
    steps = student_steps(sweep)
    every = points(sweep)
    front = pareto(every)
    models = colours([point.cell[0] for point in every])
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
            {"nfe": p.nfe, "fid": p.fid.mean, "std": p.fid.std, "model": who(p.cell), "steps": p.cell[2]}
            | {"setting": p.setting.name}
            for p in front
        ],
    }
    charts = [chart for key in sweep.keys if (chart := chart_of(sweep, key, steps)) is not None]
    dots, line = ([Dot(p.cell[0], p.nfe, p.fid.mean) for p in each] for each in (every, front))
    write_sweep_report(sweep.folder / PAGE, content, charts, fid_against_evaluations(dots, line, models))
    return sweep.folder / PAGE


def student_steps(sweep: Collected) -> list[int]:
    """The steps of the students, most first."""
    found = {cell[2] for setting in sweep.settings for cell in setting.cells if cell[0] not in NO_STUDENTS}
    return sorted(found, reverse=True)


def row_of(setting: Setting, objective: Objective, steps: list[int]) -> dict[str, Any]:
    """A setting as the page's table has it."""
    figure = setting.objective(objective)
    teachers = [cell for cell in setting.cells if cell[0] == "teacher" and cell[1] == "ddim"]
    most = max(teachers, key=lambda cell: cell[2], default=None)
    teacher = setting.spread(most) if most else None
    return {
        "name": setting.name,
        "values": setting.values,
        "count": len(setting.results),
        "figure": figure and figure.mean,
        "std": figure and figure.std,
        "by_steps": [fid_at(setting, count) for count in steps],
        "teacher": teacher and teacher.mean,
    }


def fid_at(setting: Setting, steps: int) -> float | None:
    """The mean FID over w of the student of so many steps."""
    spread = setting.objective(Objective("fid", steps))
    return spread and spread.mean


def chart_of(sweep: Collected, key: str, steps: list[int]) -> Any:
    """The chart of the objective's figure against one swept value; None where it has one value."""
    values = list(dict.fromkeys(setting.values.get(key, "") for setting in sweep.settings))
    values.sort(key=lambda value: (0, float(value), "") if is_number(value) else (1, 0.0, value))
    lines = []
    for count in steps:
        own = Objective(sweep.objective.figure, count, sweep.objective.w)
        dots = [
            (values.index(setting.values.get(key, "")), spread.mean)
            for setting in sweep.settings
            if (spread := setting.objective(own)) is not None
        ]
        lines += [Line(count, dots)] if dots else []
    return figure_against_value(key, values, lines, sweep.objective.figure.upper()) if len(values) > 1 else None


def is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def who(cell: tuple[str, str, int, int]) -> str:
    """A model, and the sampler where it says something."""
    model, sampler, _, _ = cell
    return model if sampler == "ddim" else f"{model}, {sampler}"
