"""A sweep's table in Weights & Biases."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.tracking.wandb_run import PROJECT, logged_in, run_id


def upload(folder: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """Log a sweep's table as one W&B run, the same one each time; to offline files where nobody is logged in.

    Returns:
        a line that says where it is.
    """
    import wandb

    mode = None if "WANDB_MODE" in os.environ or logged_in() else "offline"
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder),
        id=run_id(folder),
        name=folder.name,
        group=folder.name,
        job_type="sweep",
        mode=mode,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    columns: list[str | int] = list(rows[0])
    run.log({"sweep": wandb.Table(columns=columns, data=[[row[str(column)] for column in columns] for row in rows])})
    run.summary.update(dict(summary))
    place = run.url or f"{folder / 'wandb'}, which `wandb sync` uploads"
    run.finish()
    return f"W&B: {place}"
