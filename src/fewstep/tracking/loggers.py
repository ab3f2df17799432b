"""Where a run's numbers go: metrics.csv always, W&B if wanted."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from fewstep.distributed.collectives import rank
from fewstep.tracking.metrics_file import MetricsFile
from fewstep.tracking.wandb_run import finish, start_wandb


@contextmanager
def started(
    folder: Path, *, group: str, job_type: str, config: Mapping[str, Any], wandb: bool
) -> Iterator[list[Logger]]:
    """The loggers of a run folder, ended with the block: metrics.csv, and one W&B run (see `start_wandb`).

    Of several processes the first alone has a W&B run, and rows of metrics.csv are its own.
    """
    loggers: list[Logger] = [MetricsFile(folder)]
    if wandb and rank() == 0 and (run := start_wandb(folder, group=group, job_type=job_type, config=config)):
        loggers.append(run)
    try:
        yield loggers
    finally:
        finish(loggers)
