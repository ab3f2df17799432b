"""fewstep models: what has been trained."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands.models import OUTPUTS
from fewstep.system.durations import duration

if TYPE_CHECKING:
    from fewstep.artifacts.catalogue import Entry

COLUMNS = ("model", "data", "method", "steps", "w", "FID", "age")


def models(
    outputs: Annotated[Path, typer.Option(help="Where the runs are.")] = OUTPUTS,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, with the FID at each w.")] = False,
) -> None:
    """List the models below outputs, the newest first: data, method, steps, guidance range, figures, age.

    The FID is the mean over w at the most steps, of the newest evaluation that judged the model.

    Example: fewstep models --json
    """
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fewstep.artifacts.catalogue import models_below

    if not outputs.is_dir():
        raise ValueError(f"--outputs must be a folder of runs, and {outputs} is none; `python train.py` makes one")
    entries = models_below(outputs)
    if as_json:
        typer.echo(json.dumps([as_dict(entry) for entry in entries], indent=1))
        return
    if not entries:
        typer.echo(f"no models below {outputs}; `python train.py` makes some")
        return
    console, now = Console(), datetime.now()
    rows = [row(entry, duration((now - entry.made).total_seconds())) for entry in entries]
    if not console.is_terminal:  # of any width: a line for each model
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        for cells in (COLUMNS, *rows):
            typer.echo("  ".join(map(str.ljust, cells, widths)).rstrip())
        return
    table = Table(*COLUMNS)
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(table)


def row(entry: "Entry", age: str) -> tuple[str, ...]:
    """A model's cells, one for each of COLUMNS."""
    if entry.problem is not None:
        return str(entry.path), "-", "cannot be read", "-", "-", "-", age
    steps = ", ".join(map(str, entry.steps)) or "any"
    w = "-" if entry.w is None else f"{entry.w[0]:g} to {entry.w[1]:g}"
    fid = f"{sum(entry.fid.values()) / len(entry.fid):.4g}" if entry.fid else "-"
    return str(entry.path), entry.dataset, entry.method, steps, w, fid, age


def as_dict(entry: "Entry") -> dict[str, object]:
    """An entry as plain JSON."""
    return {
        "path": str(entry.path),
        "made": entry.made.isoformat(timespec="seconds"),
        "problem": entry.problem,
        "data": entry.dataset,
        "method": entry.method,
        "steps": list(entry.steps),
        "w": entry.w and list(entry.w),
        "fid": {f"{w:g}": fid for w, fid in entry.fid.items()},
    }
