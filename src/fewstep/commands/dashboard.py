"""fewstep dashboard: how runs and sweeps stand, as a W&B workspace or in TensorBoard."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

PAGE = "fewstep.commands.tensorboard_page"


def dashboard(
    local: Annotated[bool, typer.Option("--local", help="Start TensorBoard on --outputs.")] = False,
    outputs: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("outputs"),
    sweep: Annotated[
        str | None, typer.Option(help="Only a sweep: its name or folder below --outputs; or the id of one of W&B's.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of TensorBoard on this machine; 0: any free one.")
    ] = 6006,
    project: Annotated[str | None, typer.Option(help="Of W&B; default: WANDB_PROJECT, or fewstep.")] = None,
    entity: Annotated[str | None, typer.Option(help="Of W&B; default: WANDB_ENTITY, or your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the workspace instead of saving it in W&B.")] = False,
) -> None:
    """Show how runs stand: is it training, which w, which steps, what did it cost.

    Without --local, as a workspace in W&B, made from code: each call makes a new one. With it, `tensorboard --logdir`
    on the files of runs with logger=tensorboard; only this machine can open the page.

    Example: fewstep dashboard --local
    """
    from fewstep.sweeps.sweep import SWEEPS

    folder = sweep_folder(outputs, sweep)
    if not local:
        in_wandb(folder, sweep, project, entity, as_json)
        return
    if as_json or project or entity:
        raise ValueError("--local shows files, and --json, --project and --entity are W&B's: leave them out")
    if sweep is not None and folder is None:
        raise ValueError(f"there is no sweep {sweep} below {outputs}/{SWEEPS}; python train.py sweeps=NAME makes one")
    start_tensorboard(folder or outputs, port)


def sweep_folder(outputs: Path, sweep: str | None) -> Path | None:
    """The folder of a local sweep; None if it is none."""
    from fewstep.sweeps.sweep import SWEEP, SWEEPS

    places = [] if sweep is None else [Path(sweep), outputs / SWEEPS / sweep]
    return next((place for place in places if (place / SWEEP).is_file()), None)


def start_tensorboard(outputs: Path, port: int) -> None:
    """Become `tensorboard --logdir outputs`; refuses a folder without a run that was logged to TensorBoard."""
    from fewstep.tracking.tensorboard import FOLDER

    if not outputs.is_dir():
        raise ValueError(f"--outputs must be a folder of runs, and {outputs} is none; python train.py makes outputs/")
    if not any(outputs.rglob(f"{FOLDER}/events.*")):
        raise ValueError(f"no run below {outputs} was logged to TensorBoard; train with logger=tensorboard")
    command = [sys.executable, "-m", PAGE, "--logdir", str(outputs), "--port", str(port)]
    typer.echo(f"tensorboard --logdir {outputs} --port {port}")
    os.execv(sys.executable, command)


def in_wandb(folder: Path | None, sweep: str | None, project: str | None, entity: str | None, as_json: bool) -> None:
    """Make the workspace of a project or sweep; print it or save it."""
    if find_spec("wandb_workspaces") is None:
        raise ValueError("this needs wandb-workspaces, which is not installed: pip install 'fewstep[workspace]'")
    from fewstep.sweeps.sweep import described
    from fewstep.tracking import workspace

    own_project, own_entity = workspace.default_project()
    made = workspace.workspace(
        project or own_project,
        entity or own_entity,
        sweep=sweep if folder is None else None,
        outputs=None if folder is None else str(folder),
        swept=[] if folder is None else list(described(folder).swept),
    )
    typer.echo(workspace.as_json(made) if as_json else workspace.save(made))
