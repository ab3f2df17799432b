"""report.html: what a run achieved, in one file that opens anywhere, made of the run's own files alone."""

import base64
import math
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from fewstep.artifacts.provenance_file import Provenance, read_provenance
from fewstep.artifacts.quality_file import TEACHER, QualityRow, Weight, names_in_order, read_rows
from fewstep.artifacts.run_folder import QUALITY, REPORT
from fewstep.artifacts.trace_file import FILMS, TRACE, read_curves
from fewstep.reports import charts
from fewstep.reports.diagnostics import seen
from fewstep.reports.page import write_page
from fewstep.reports.summary import fid_ratio, fid_ratio_half_width, headline, references, speed_table
from fewstep.reports.traces import DISTANCES, colours_of, distance_chart
from fewstep.system.stored import leave_out
from fewstep.tracking.metrics_file import FILE as METRICS
from fewstep.tracking.metrics_file import read_metrics
from fewstep.tracking.names import IMAGES, LOSS, RUNG, SAMPLE_STATISTICS

PICTURE_BYTES = 3_000_000  # for all pictures together; one larger than its share becomes a JPEG, as high as fits
FILM_BYTES = 500_000  # for the films of predictions, likewise
JPEG_HEIGHTS = (64, 32, 16)
MOST_POINTS = 300  # of a loss curve
PICTURE_NAME = re.compile(r"(?P<model>.+)-(?P<steps>\d+)-w(?P<w>\d+(\.\d+)?)(-(?P<w2>\d+(\.\d+)?))?\.png")


def write_report(run: Path) -> Path:
    """Write `run`/report.html (one file, below 5 MB, needs no network) and return its path.

    Reads quality.json, provenance.json, trace.json, config.yaml and samples/ of the run folder, and metrics.csv of the
    runs that provenance.json names. The page names what is missing.

    Raises:
        ValueError: quality.json is missing, malformed or of several protocols, or provenance.json is of another.
        OSError: the page cannot be written.
    """
    rows = read_rows(run / QUALITY)
    provenance = read_provenance(run)
    protocol = provenance.protocol if provenance else {}
    if provenance and protocol and provenance.protocol_id != rows[0].protocol:
        raise ValueError(
            f"quality.json and provenance.json need one protocol id, got {rows[0].protocol} and "
            f"{provenance.protocol_id} in {run}; evaluate again"
        )
    reference, models = references(rows), names_in_order(rows)
    colour = charts.colours(models)
    runs = _runs(provenance)
    weights = sorted({row.weight for row in rows})
    found = (seen(run / folder, stage, colour.get(stage, charts.INK)) for folder, stage in runs.items())
    content = {
        "run": "/".join(run.resolve().parts[-3:]),
        "rows_by_w": [(w, _with_ratios([row for row in rows if row.weight == w], reference)) for w in weights],
        "headline": headline(rows),
        "models": models,
        "samplers": sorted({row.sampler for row in rows}),
        "colour": colour,
        "reference_steps": max((row.steps for row in rows if row.name == TEACHER), default=None),
        "pictures": _pictures(run / "samples" / "same-noise", models),
        "fid_steps": [
            (w, charts.fid_against_steps([row for row in rows if row.weight == w], reference.get(w), colour))
            for w in weights
        ],
        **_traces(run),
        "fid_inception": _fid_inception(rows, list(reference.values()), colour),
        "speeds": speed_table(rows),
        "losses": [
            (stage, _loss_chart(run / own / METRICS, colour.get(stage, charts.INK))) for own, stage in runs.items()
        ],
        "diagnostics": [one for one in found if one is not None],
        "config": _read_text(run / "config.yaml"),
        "protocol": protocol or {"id": rows[0].protocol},
        "provenance": provenance,
        "statistics": SAMPLE_STATISTICS,
        "example": rows[0],
        "hybrid": next((row for row in rows if row.base_steps), None),
    }
    write_page(run / REPORT, "report.html", content)
    return run / REPORT


def _with_ratios(
    rows: Sequence[QualityRow], reference: dict[Weight, QualityRow]
) -> list[tuple[QualityRow, float | None, float | None]]:
    """Each row with its FID over the teacher's, and half the width of that ratio's interval."""
    return [(row, fid_ratio(row, reference), fid_ratio_half_width(row, reference)) for row in rows]


def _traces(run: Path) -> dict[str, Any]:
    """What the page shows of trace.json: each curve with its film, the charts, and the colours in them.

    A page without traces is better than none: a damaged file is named and left out.
    """
    curves = []
    try:
        curves = read_curves(run / TRACE)
    except ValueError as error:
        leave_out(run / TRACE, error)
    return {
        "traces": [(curve, _embed(run / FILMS / f"{curve.name}.png", FILM_BYTES // len(curves))) for curve in curves],
        "trace_charts": [distance_chart(curves, distance) for distance in DISTANCES if curves],
        "trace_colour": colours_of(curves),
    }


Cell = tuple[str, int, int] | None
"""A picture on the page: its data address, width and height in pixels; None where there is none."""


def _pictures(folder: Path, models: Sequence[str]) -> tuple[list[Weight], list[tuple[int, str, list[Cell]]]] | None:
    """The same-noise pictures of a folder: all w, and rows of (steps, model, a cell per w), most steps first.

    None if there are no pictures.
    """
    found: dict[tuple[int, str, Weight], Path] = {}
    for path in folder.glob("*.png"):
        if match := PICTURE_NAME.fullmatch(path.name):
            w = float(match["w"])
            weight = w if match["w2"] is None else (w, float(match["w2"]))
            found[int(match["steps"]), match["model"], weight] = path
    if not found:
        return None
    cells = {key: _embed(path, PICTURE_BYTES // len(found)) for key, path in found.items()}
    weights = sorted({w for _, _, w in cells})
    place = {model.replace(", ", "-"): number for number, model in enumerate(models)}  # as files are named
    lines = {(steps, model) for steps, model, _ in cells}
    order = sorted(lines, key=lambda line: (-line[0], place.get(line[1], len(place)), line[1]))
    return weights, [(*line, [cells.get((*line, w)) for w in weights]) for line in order]


def _embed(path: Path, most_bytes: int) -> Cell:
    """A picture as a data address and its size on the page: small strips enlarged, others not."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
    except OSError:
        return None
    kind, content = "png", path.read_bytes()
    width, height = image.size
    for most in JPEG_HEIGHTS:
        if len(content) <= most_bytes:
            break
        buffer = BytesIO()
        small = image.convert("RGB")
        small.thumbnail((width, most))
        small.save(buffer, format="JPEG", quality=80)
        kind, content = "jpeg", buffer.getvalue()
    scale = max(1, 24 // height) if width > height else min(1.0, 120 / height)
    scale = min(scale, 320 / width) if width > 320 else scale
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return address, round(width * scale), round(height * scale)


def _fid_inception(
    rows: Sequence[QualityRow], reference: Sequence[QualityRow], colour: dict[str, str]
) -> list[tuple[int, Markup]]:
    """A chart for each number of steps that a student has, few steps first.

    None without inception scores, and none of two guidance weights, over which there is no curve.
    """
    if all(row.inception_score is None or row.w2 is not None for row in rows):
        return []
    return [
        (steps, charts.fid_against_inception([row for row in rows if row.steps == steps], reference, colour))
        for steps in sorted({row.steps for row in rows if row.model != TEACHER})
    ]


def _runs(provenance: Provenance | None) -> dict[str, str]:
    """Folder and stage of every training run in provenance.json."""
    runs: dict[str, str] = {}
    for model in provenance.models if provenance else ():
        if model.run:
            runs.setdefault(model.run, model.model)
    return runs


def _loss_chart(metrics: Path, colour: str) -> Markup | None:
    """The loss by phase, in the order of training, thinned to what a chart can show; None where there is none."""
    by_rung: dict[int | None, list[dict[str, float]]] = {}
    for row in read_metrics(metrics):
        if 0 < row.get(LOSS, 0.0) < math.inf and math.isfinite(row.get(RUNG, 0.0)):
            by_rung.setdefault(int(row[RUNG]) if RUNG in row else None, []).append(row)
    if not by_rung:
        return None
    thin = {rung: own[:: -math.ceil(len(own) / MOST_POINTS)][::-1] for rung, own in by_rung.items()}  # keeps the last
    lines = {rung: [(row[IMAGES], row[LOSS]) for row in own] for rung, own in thin.items()}
    return charts.line_chart(lines, charts.shades([*lines], colour), charts.IMAGES_SEEN, "loss", label=True)


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
