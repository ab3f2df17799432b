"""fewstep methods: what can be trained and distilled with."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fewstep.methods import Method

PARENTS = {
    "two_evaluations": "a teacher",
    "three_evaluations": "a teacher of two conditions",
    "input": "a guided student",
    "none": "a model without guidance",
}
COLUMNS = ("method", "paper", "needs", "samples with", "certainty")


def methods(
    config_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder with stage/NAME.yaml of your own, as of train.py --config-dir; repeat for several."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """List the methods: their paper, what they need, how their students are sampled, and how sure we are of them.

    A stage is run by its name: python train.py stage=NAME; in a pipeline after the guided student: method=NAME. The
    settings are those of conf/stage/NAME.yaml, and docs/extending.md says how to add a method.

    Example: fewstep methods --config-dir my_conf
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fewstep.runs.methods import composed_methods

    rows = [row(name, method) for name, method in composed_methods(config_dir or [])]
    if as_json:
        typer.echo(json.dumps([dict(zip(COLUMNS, cells, strict=True)) for cells in rows], indent=1))
        return
    console = Console()
    if not console.is_terminal:  # of any width: a line for each fact
        for cells in rows:
            typer.echo(cells[0])
            for column, cell in zip(COLUMNS[1:], cells[1:], strict=True):
                typer.echo(f"  {column}: {cell}")
        return
    table = Table(*COLUMNS, show_lines=True)
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(table)


def row(name: str, method: "Method") -> tuple[str, ...]:
    """A method's cells, one for each of COLUMNS."""
    return name, method.paper or "-", needs(method), sampling(method), method.certainty or "-"


def needs(method: "Method") -> str:
    """The method's data, its parent, and the networks that it trains beside the student."""
    found = [method.inputs if method.inputs == "data" else "no data"]
    if (parent := method.parent()) is not None:
        found.append(" or ".join(PARENTS[kind] for kind in parent.guidance))
        if runs_without_teacher(method):
            found.append("or none (teacher=none)")
    if others := method.roles[1:]:
        found.append(f"{len(others)} more trained network{'s' if others[1:] else ''} ({', '.join(others)})")
    return ", ".join(found)


def runs_without_teacher(method: "Method") -> bool:
    """Whether the method has a form for teacher=none."""
    try:
        method.without_teacher()
    except ValueError:
        return False
    return True


def sampling(method: "Method") -> str:
    """The sampler of the method's students, and their numbers of steps."""
    samplings = [phase.sampling for phase in method.phases()]
    last = samplings[-1]
    steps = sorted({number for each in samplings for number in each.steps}, reverse=True)
    count = f"{', '.join(map(str, steps))} steps" if steps else "any number of steps"
    encodes = " (encoding)" if last.direction == "encode" else ""
    twice = ", two evaluations each" if last.evaluations > 1 else ""
    return f"{last.sampler}{encodes}, {count}{twice}"
