"""Where a run's numbers go: metrics.csv always, W&B, TensorBoard and MLflow where wanted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from fewstep.distributed.collectives import rank
from fewstep.tracking.metrics_file import MetricsFile
from fewstep.tracking.tracker import Row, history, trackers


@contextmanager
def started(
    folder: Path,
    *,
    group: str,
    job_type: str,
    config: Mapping[str, Any],
    loggers: Mapping[str, Any],
    earlier: Sequence[Row] = (),
) -> Iterator[list[Logger]]:
    """The loggers of a run folder, closed at the end of the block.

    Only the first process has any but that of metrics.csv, to which only its rows go.

    Args:
        group: the pipeline this run belongs to. job_type: its stage.
        config: the resolved configuration.
        loggers: whether the run is logged to `wandb`, `tensorboard` and `mlflow`, and the `project` there.
        earlier: rows that the run has logged before and keeps in other files than metrics.csv.

    Raises:
        ValueError: see `start_wandb`.
    """
    opened: list[Logger] = [MetricsFile(folder)]
    try:
        if rank() == 0 and loggers.get("wandb"):
            from fewstep.tracking.wandb_run import start_wandb

            run = start_wandb(
                folder,
                group=group,
                job_type=job_type,
                config=config,
                history=partial(history, folder, earlier),
                project=loggers.get("project"),
            )
            opened += [] if run is None else [run]
        if rank() == 0 and loggers.get("tensorboard"):
            from fewstep.tracking.tensorboard import TensorBoardRun

            opened.append(TensorBoardRun(folder, config, history(folder, earlier)))
        if rank() == 0 and loggers.get("mlflow"):
            from fewstep.tracking.mlflow_run import start_mlflow

            run = start_mlflow(
                folder,
                group=group,
                job_type=job_type,
                config=config,
                history=history(folder, earlier),
                project=loggers.get("project"),
            )
            opened += [] if run is None else [run]
        yield opened
    finally:
        for tracker in trackers(opened):
            tracker.finish()
