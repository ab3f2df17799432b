"""fewstep collect: what a sweep has found."""

from pathlib import Path
from typing import Annotated

import typer


def collect(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep's folder: outputs/sweeps/NAME.")],
    figure: Annotated[str | None, typer.Option(help="What counts; default: the sweep's own, fid.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the student that counts; default: the sweep's own, 4.")] = None,
    w: Annotated[float | None, typer.Option(help="At one guidance weight; default: mean over all.")] = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="A table and the best figure in Weights & Biases too.")
    ] = False,
) -> None:
    """Make one table of a sweep: results.csv and collect.html, best first, and the leaderboard of its students.

    Example: fewstep collect outputs/sweeps/guidance_range
    """
    from fewstep.sweeps.collect import write_csv, write_page
    from fewstep.sweeps.leaderboard import write_leaderboard
    from fewstep.sweeps.objective import FIGURES, Objective
    from fewstep.sweeps.results import collected, table
    from fewstep.sweeps.sweep import described

    if figure is not None and figure not in FIGURES:
        raise ValueError(f"--figure must be one of {', '.join(FIGURES)}, got {figure}")
    own = described(sweep).objective
    objective = Objective(figure or own.figure, own.steps if steps is None else steps, own.w if w is None else w)
    found = collected(sweep, objective)
    for setting in found.settings:
        spread = setting.objective(objective)
        deviation = "" if spread is None or spread.std is None else f" ± {spread.std:.2g} over {spread.count} seeds"
        typer.echo(f"{setting.name}: {'no such figure' if spread is None else f'{spread.mean:.4g}{deviation}'}")
    if found.missing:
        typer.echo(f"without figures yet: {'; '.join(found.missing)}")
    typer.echo(f"{write_csv(found)}, {write_page(found)} ({objective})")
    if page := write_leaderboard(found):
        typer.echo(f"{page}, {page.with_suffix('.json')}")
    if wandb:
        from fewstep.tracking.wandb_run import upload_table

        best = found.settings[0].objective(objective)
        summary = {} if best is None else {"best": found.settings[0].name, str(objective): best.mean}
        typer.echo(upload_table(sweep, table(found), summary))
