"""The dashboard's tables, as HTML."""

from collections.abc import Sequence
from statistics import median

from markupsafe import Markup

from fewstep.pages.questions import FIGURES, LESS_IS_BETTER, Chosen
from fewstep.pages.runs import FINISHED, RUNNING, STOPPED, TRAINED, Run, View
from fewstep.reports.summary import Row
from fewstep.system.durations import duration
from fewstep.tracking.names import IMAGES_PER_SECOND, LOSS

STATES = {FINISHED: "finished", RUNNING: "running", STOPPED: "stopped"}
MOST_ROWS = 60


def table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1, best: int | None = None
) -> Markup:
    """A table whose first `left` columns are text; row number `best` stands out."""
    head = Markup().join(
        Markup('<th class="{}">{}</th>').format("left" if n < left else "", text) for n, text in enumerate(headings)
    )
    lines = []
    for number, row in enumerate(rows):
        cells = Markup().join(
            Markup('<td class="{}">{}</td>').format("left" if n < left else "", cell) for n, cell in enumerate(row)
        )
        lines.append(Markup('<tr class="{}">{}</tr>').format("best" if number == best else "", cells))
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        head, Markup().join(lines)
    )


def runs_table(view: View) -> Markup:
    """Each run of the view: how it stands, how far it is, its newest figures; those that run first."""
    runs = sorted(view.runs, key=lambda run: run.state() != RUNNING) if view.is_sweep else view.runs
    rows = []
    for run in runs[:MOST_ROWS]:
        state = run.state()
        share = min(1.0, run.images / run.budget) if run.budget else None
        rows.append(
            (
                *((run.name,) if view.is_sweep else ()),
                run.stage,
                Markup('<span class="{}">{}</span>').format(state, STATES[state]),
                "" if share is None else progress(share),
                f"{run.images:,.0f}" if run.images else "",
                number(run.newest(LOSS)),
                number(run.newest(IMAGES_PER_SECOND)),
                remaining(run) if state == RUNNING else "",
                run.problem,
            )
        )
    headings = ("run", "stage", "state", "progress", "images", "loss", "images/s", "left", "")
    return table(headings[0 if view.is_sweep else 1 :], rows, left=3 if view.is_sweep else 2)


def progress(share: float) -> Markup:
    """A bar and per cent."""
    return Markup('<span class="bar"><i style="width: {:.0f}%"></i></span>{:.0f} %').format(100 * share, 100 * share)


def remaining(run: Run) -> str:
    """Time that the rest of the budget takes at the rate it had lately."""
    rates = [row[IMAGES_PER_SECOND] for row in run.metrics[-10:] if row.get(IMAGES_PER_SECOND)]
    return duration((run.budget - run.images) / median(rates)) if rates and run.budget > run.images else ""


def costs_table(view: View) -> Markup:
    """What the training of each stage cost."""
    rows = []
    for stage in TRAINED:
        if not (runs := view.of(stage)):
            continue
        images, seconds = sum(run.images for run in runs), sum(run.seconds for run in runs)
        rate = images / seconds if seconds else None
        rows.append(
            (stage, len(runs), f"{images:,.0f}", duration(seconds), number(rate), size(sum(map(bytes_of, runs))))
        )
    if not rows:
        return Markup()
    return table(("stage", "runs", "images", "training time", "images/s", "on disk"), rows)


def settings_table(view: View, rows: Sequence[tuple[Run, Row]], chosen: Chosen) -> Markup:
    """The jobs of a sweep, best first."""
    keys = list(dict.fromkeys(key for values in view.swept.values() for key in values))
    figures = {
        run.name: getattr(row, chosen.figure)
        for run, row in rows
        if row.model == "progressive" and row.steps == chosen.steps and row.w == chosen.w
    }
    sign = 1 if chosen.figure in LESS_IS_BETTER else -1
    found = {name: figure for name, figure in figures.items() if figure is not None}
    order = sorted(view.swept, key=lambda name: (name not in found, sign * found.get(name, 0.0), name))
    title = f"{FIGURES[chosen.figure]}, {chosen.steps} steps, w = {chosen.w:g}"
    lines = [
        (*(view.swept[name].get(key, "") for key in keys), number(found.get(name)) or "not judged yet")
        for name in order
    ]
    return table((*keys, title), lines[:MOST_ROWS], left=len(keys), best=0 if found else None)


def bytes_of(run: Run) -> int:
    """Of the files in a run's folder, W&B's own left out."""
    return sum(file.stat().st_size for file in run.path.iterdir() if file.is_file())


def number(value: float | None) -> str:
    """Three significant digits: 0.0121, 3.02, 12,300."""
    if value is None:
        return ""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(count: float) -> str:
    """12 MB."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
