"""A sweep's table in Weights & Biases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.tracking.wandb_run import start_wandb, table_of


def upload(folder: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """Log a sweep's table as one W&B run, the same one each time; to offline files where nobody is logged in.

    Returns:
        a line that says where it is.
    """
    run = start_wandb(folder, group=folder.name, job_type="sweep", config={})
    if run is None:
        return "W&B: no run was made"
    run.experiment.log({"sweep": table_of(rows)})
    run.experiment.summary.update(dict(summary))
    place = run.experiment.url or f"{folder / 'wandb'}, which `wandb sync` uploads"
    run.finish()
    return f"W&B: {place}"
