"""fewstep wandb-sweep: a preset for W&B's own sweeps."""

from pathlib import Path
from typing import Annotated

import typer


def wandb_sweep(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A file of sweeps/: guidance_range, search, ...")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As train.py takes them: dataset=mixture.")
    ] = None,
    program: Annotated[str, typer.Option(help="What the agents run.")] = "train.py",
) -> None:
    """Print the YAML for `wandb sweep`, whose agents then run the jobs of a preset.

    Example: fewstep wandb-sweep guidance_range teacher=MODEL > sweep.yaml; wandb sweep sweep.yaml; wandb agent ID
    """
    import yaml

    from fewstep.runs.overrides import conf_folder
    from fewstep.sweeps.wandb_sweep import wandb_sweep as sweep_of

    known = sorted(file.stem for file in Path(conf_folder(), "sweeps").glob("*.yaml"))
    if preset not in known:
        raise ValueError(f"PRESET must be one of {', '.join(known)}, got {preset}")
    typer.echo(yaml.safe_dump(sweep_of(preset, overrides or [], program), sort_keys=False, width=200), nl=False)
