"""fewstep dashboard: how runs and sweeps stand, by question, from local files or in W&B."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.commands.play import Port, require_pages


def dashboard(
    local: Annotated[bool, typer.Option("--local", help="A page from the files below --outputs, live.")] = False,
    outputs: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("outputs"),
    sweep: Annotated[
        str | None, typer.Option(help="Only a sweep: its name or folder below --outputs; or the id of one of W&B's.")
    ] = None,
    port: Port = 5007,
    project: Annotated[str | None, typer.Option(help="Of W&B; default: WANDB_PROJECT, or fewstep.")] = None,
    entity: Annotated[str | None, typer.Option(help="Of W&B; default: WANDB_ENTITY, or your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the workspace instead of saving it in W&B.")] = False,
) -> None:
    """Show how runs stand: is it training, which w, which steps, what did it cost.

    With --local on a page of this machine, live while runs go on; without, as a workspace in W&B, made from code: each
    call makes a new one.

    Example: fewstep dashboard --local
    """
    folder = folder_of(outputs, sweep)
    if not local:
        in_wandb(folder, sweep, project, entity, as_json)
        return
    if as_json or project or entity:
        raise ValueError("--local shows files, and --json, --project and --entity are W&B's: leave them out")
    if sweep is not None and folder is None:
        raise ValueError(f"there is no sweep {sweep} below {outputs}/sweeps; python train.py sweeps=NAME makes one")
    serve_local(folder or outputs, port)


def folder_of(outputs: Path, sweep: str | None) -> Path | None:
    """The folder of a sweep of ours; None if it is none."""
    from fewstep.pages.runs import SWEEP, SWEEPS

    places = [] if sweep is None else [Path(sweep), outputs / SWEEPS / sweep]
    return next((place for place in places if (place / SWEEP).is_file()), None)


def serve_local(outputs: Path, port: int) -> None:
    """Serve the page until Ctrl-C."""
    require_pages()
    if not outputs.is_dir():
        raise ValueError(f"--outputs must be a folder of runs, and {outputs} is none; python train.py makes outputs/")
    from fewstep.pages.dashboard import page_of
    from fewstep.pages.serving import serve

    ready = lambda address: typer.echo(f"{address} (Ctrl-C ends it)")  # noqa: E731
    serve(page_of(outputs), port=port, title="fewstep dashboard", ready=ready)


def in_wandb(folder: Path | None, sweep: str | None, project: str | None, entity: str | None, as_json: bool) -> None:
    """Make the workspace of a project or sweep; print it or save it."""
    require_pages("wandb_workspaces")
    import yaml

    from fewstep.pages.runs import SWEEP
    from fewstep.tracking import workspace

    own_project, own_entity = workspace.default_project()
    about = {} if folder is None else yaml.safe_load((folder / SWEEP).read_text()) or {}
    made = workspace.workspace(
        project or own_project,
        entity or own_entity,
        sweep=sweep if folder is None else None,
        outputs=None if folder is None else str(folder),
        swept=list(about.get("swept") or {}),
    )
    typer.echo(workspace.as_json(made) if as_json else workspace.save(made))
