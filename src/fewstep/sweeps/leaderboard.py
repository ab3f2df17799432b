"""The leaderboard of a sweep: its few-step students by steps and w, what they cost, and which of them are the best."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fewstep.artifacts.quality_file import TEACHER, QualityRow
from fewstep.reports.charts import INK, shades
from fewstep.reports.page import write_page
from fewstep.reports.sweep_charts import Dot, quality_against_cost
from fewstep.sweeps.objective import LESS_IS_BETTER
from fewstep.sweeps.results import Collected, Setting, Spread, cell_of, table
from fewstep.sweeps.sweep import described
from fewstep.system.files import write_json

PAGE, JSON = "leaderboard.html", "leaderboard.json"
BEST, TIED = "good", "fair"  # marks of a single best figure, and of those that its column does not tell from the best
RATIO = "fid_ratio"
DISTILLATION = "Distillation"


class Column(NamedTuple):
    """A column of the tables: a figure by its name, how it is called, and what it is better as."""

    figure: str
    title: str
    less_is_better: bool

    @classmethod
    def of(cls, figure: str, title: str) -> "Column":
        return cls(figure, title, figure in LESS_IS_BETTER)


COLUMNS = (
    Column.of("precision", "precision"),
    Column.of("recall", "recall"),
    Column.of("diversity", "diversity within class"),
    Column.of("vendi", "Vendi score within class"),
    Column.of("accuracy", "accuracy"),
    Column.of("same_noise_rmse", "RMSE to teacher, same noise"),
    Column.of("exact_rmse", "RMSE to exact map"),
    Column.of("energy_distance", "energy distance"),
    Column.of("clip_score", "CLIP score"),
)


@dataclass(frozen=True)
class Entry:
    """A model at one number of steps."""

    label: str
    setting: Setting
    cell: QualityRow

    def figure(self, name: str, w: float | None) -> Spread | None:
        """A figure at one w, or its mean over w; `RATIO` is FID over the teacher's of the most steps."""
        return self.setting.ratio(self.cell, w) if name == RATIO else self.setting.spread(self.cell, name, w)

    def quality(self) -> Spread | None:
        """The figure of the charts and of the order: the ratio, mean over w, or FID where there is no teacher."""
        return self.figure(RATIO, None) or self.figure("fid", None)

    def cost(self, name: str) -> float | None:
        """A field of `Cost`."""
        return self.setting.cost(self.cell, name)


def students(sweep: Collected) -> list[Entry]:
    """The few-step students, best first among those of as many steps, most steps last."""
    found = [
        Entry(label_of(setting, cell), setting, cell)
        for setting in sweep.settings
        for cell in setting.cells
        if cell.is_few_step
    ]

    def key(entry: Entry) -> tuple[int, float]:
        quality = entry.quality()
        return entry.cell.steps, quality.mean if quality else float("inf")

    return sorted(found, key=key)


def label_of(setting: Setting, cell: QualityRow) -> str:
    """The model's name, with what the sweep varies where that does not say the same."""
    return ", ".join([cell.name, *(f"{key} = {own}" for key, own in setting.values.items() if own != cell.model)])


def ancestors(sweep: Collected) -> list[Entry]:
    """Teacher and guided student, if the jobs all have the same ones: with one noise, one FID."""
    by_cell: dict[tuple[str, str, int, int], list[tuple[Setting, QualityRow]]] = {}
    for setting in sweep.settings:
        for cell in setting.cells:
            if not cell.is_few_step and cell.name == cell.model:
                by_cell.setdefault(cell_of(cell), []).append((setting, cell))
    entries = []
    for key, owners in by_cell.items():
        rows = [row for setting, _ in owners for rows in setting.jobs for row in rows if cell_of(row) == key]
        figures = {(row.seed, row.weight): row.fid for row in rows}
        if all(figures[row.seed, row.weight] == row.fid for row in rows):
            setting, cell = max(owners, key=lambda owner: len(owner[0].jobs))
            entries.append(Entry(cell.model, setting, cell))
    return entries


def leaders(spreads: Sequence[Spread | None], *, less_is_better: bool) -> list[int]:
    """The places of the best figure and of all whose intervals overlap with its own: one place is a clear winner.

    None where the best has no interval: then nothing tells a difference from chance. Another figure without one counts
    as overlapping. The only figure of a column has won nothing, and is its leader all the same.
    """
    known = [(place, spread) for place, spread in enumerate(spreads) if spread is not None]
    if not known:
        return []
    sign = 1 if less_is_better else -1
    _, best = min(known, key=lambda item: sign * item[1].mean)
    return [] if best.interval is None else [place for place, spread in known if overlap(best, spread)]


def overlap(one: Spread, other: Spread) -> bool:
    """Whether the intervals of two figures have a common point; without an interval a figure may be anywhere."""
    if one.interval is None or other.interval is None:
        return True
    return one.interval[0] <= other.interval[1] and other.interval[0] <= one.interval[1]


class Cell(NamedTuple):
    """A figure in a table, and how it is marked: BEST, TIED or not."""

    spread: Spread | None
    mark: str


def marked(entries: Sequence[Entry], figure: str, w: float | None, *, less_is_better: bool = True) -> list[Cell]:
    """A column of a table. Where others have several seeds, the interval of one seed's images tells nothing apart."""
    spreads = [entry.figure(figure, w) for entry in entries]
    several = any(spread.count > 1 for spread in spreads if spread)
    judged = [
        spread and (replace(spread, interval=None) if several and spread.count == 1 else spread) for spread in spreads
    ]
    best = leaders(judged, less_is_better=less_is_better)
    mark = mark_of(len(best), sum(spread is not None for spread in spreads))
    return [Cell(spread, mark if place in best else "") for place, spread in enumerate(spreads)]


def mark_of(leading: int, count: int) -> str:
    """The mark of so many leaders among so many figures: none where nobody is behind."""
    return "" if leading == count else BEST if leading == 1 else TIED


class Table(NamedTuple):
    """The table of one number of steps: the titles of its columns, and for each student its cells."""

    steps: int
    weights: list[float]
    columns: list[Column]
    rows: list[tuple[Entry, list[Cell]]]
    best: list[Entry]


def tables(entries: Sequence[Entry], weights: list[float]) -> list[Table]:
    """One for each number of steps."""
    found = []
    for steps in sorted({entry.cell.steps for entry in entries}):
        own = [entry for entry in entries if entry.cell.steps == steps]
        columns = [c for c in COLUMNS if any(entry.figure(c.figure, None) for entry in own)]
        cells = [
            marked(own, RATIO, None),
            *(marked(own, "fid", w) for w in weights),
            *(marked(own, column.figure, None, less_is_better=column.less_is_better) for column in columns),
        ]
        best = [own[place] for place in leaders([entry.quality() for entry in own], less_is_better=True)]
        rows = [(entry, [column[place] for column in cells]) for place, entry in enumerate(own)]
        found.append(Table(steps, weights, columns, rows, best))
    return found


def overview(entries: Sequence[Entry], steps: Sequence[int]) -> list[tuple[str, list[Cell | None]]]:
    """For each student's name its figure at each number of steps, best first by the mean of its places."""
    cells: dict[str, dict[int, Cell]] = {}
    places: dict[str, list[float]] = {}
    for count in steps:
        own = [entry for entry in entries if entry.cell.steps == count]
        figure = RATIO if own[0].figure(RATIO, None) else "fid"
        for place, (entry, cell) in enumerate(zip(own, marked(own, figure, None), strict=True)):
            cells.setdefault(entry.label, {})[count] = cell
            places.setdefault(entry.label, []).append(place / len(own))
    order = sorted(cells, key=lambda label: sum(places[label]) / len(places[label]))
    return [(label, [cells[label].get(count) for count in steps]) for label in order]


def front(dots: Iterable[Dot]) -> list[Dot]:
    """Those that no other beats in both cost and quality, cheapest first."""
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.cost, dot.quality)):
        if not found or dot.quality < found[-1].quality:
            found.append(dot)
    return found


def dots(entries: Iterable[Entry], cost: Callable[[Entry], float | None]) -> list[Dot]:
    """The entries in the plane of quality against a cost; those whose cost is not known are left out."""
    pairs = [(entry, entry.quality(), cost(entry)) for entry in entries]
    return [
        Dot(price, quality.mean, quality.interval, entry.label, entry.cell.steps)
        for entry, quality, price in pairs
        if quality is not None and price
    ]


def charts(entries: Sequence[Entry], older: Sequence[Entry], steps: Sequence[int]) -> list[tuple[str, Markup]]:
    """The fronts, each with what it says: quality against what training and what sampling cost."""
    colour = shades(steps, INK)
    has_teacher = any(entry.figure(RATIO, None) for entry in entries)
    quality = "FID over the teacher's, mean over w" if has_teacher else "FID, mean over w"
    teacher = next((entry.cost("evaluations") for entry in older if entry.cell.model == TEACHER), None)
    guided = [entry for entry in older if entry.cell.nfe == entry.cell.steps > max(steps)]
    asked = (
        ("Sampling", "network evaluations an image", [*entries, *guided], lambda entry: entry.cell.nfe, False),
        (DISTILLATION, "evaluations of training, guided student and all", entries, by_cost("distillation"), True),
        ("Time", "seconds of the method's training", entries, by_cost("seconds"), True),
    )
    found = []
    for title, axis, own, cost, by_steps in asked:
        points = dots(own, cost)
        groups = [[dot for dot in points if dot.steps == count] for count in steps] if by_steps else [points]
        if fronts := [front(group) for group in groups if group]:
            line = teacher if title == DISTILLATION else None
            found.append((title, quality_against_cost(points, fronts, colour, axis, quality, teacher=line)))
    return found


def by_cost(name: str) -> Callable[[Entry], float | None]:
    """A field of `Cost`, of an entry."""
    return lambda entry: entry.cost(name)


def write_leaderboard(sweep: Collected) -> Path | None:
    """Write the page and the JSON of the leaderboard; None where no job has a few-step student."""
    entries, older = students(sweep), ancestors(sweep)
    if not entries:
        return None
    weights = sorted({row.w for setting in sweep.settings for rows in setting.jobs for row in rows})
    steps = sorted({entry.cell.steps for entry in entries})
    about = about_sweep(sweep)
    write_json(sweep.folder / JSON, about | {"cells": cells_of(sweep, [*older, *entries])})
    content = {
        "sweep": sweep,
        "about": about,
        "steps": steps,
        "weights": weights,
        "shades": shades(steps, INK),
        "overview": overview(entries, steps),
        "tables": tables(entries, weights),
        "ancestors": older,
        "charts": charts(entries, older, steps),
        "most_seeds": max(len(entry.setting.jobs) for entry in entries),
        "floors": {w: floor_at(entries, w) for w in weights},
    }
    write_page(sweep.folder / PAGE, "leaderboard.html", content)
    return sweep.folder / PAGE


def cells_of(sweep: Collected, entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The rows of `table` for these entries, to six digits, without what is not known."""
    wanted = {(sweep.settings.index(entry.setting) + 1, *cell_of(entry.cell)) for entry in entries}
    return [
        {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in row.items()
            if value or value == 0
        }
        for row in table(sweep)
        if (row["rank"], row["model"], row["sampler"], row["steps"], row["nfe"]) in wanted
    ]


def floor_at(entries: Sequence[Entry], w: float) -> float | None:
    """The energy distance of two sets of exact samples; None where the data have none."""
    spread = entries[0].figure("energy_floor", w)
    return spread and spread.mean


def about_sweep(sweep: Collected) -> dict[str, Any]:
    """Where the figures come from: command, seeds, protocols and machines."""
    own = described(sweep.folder)
    given = [text for text in own.fixed if not text.startswith("logger=")]
    return {
        "command": " ".join(["python train.py", *([] if own.preset else ["--multirun"]), *given]),
        "swept": {key: list(values) for key, values in own.swept.items()},
        "seeds": max(len(setting.jobs) for setting in sweep.settings),
        "missing": list(sweep.missing),
        **sweep.origin,
    }
