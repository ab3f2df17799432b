"""MLflow: the same names, x-axis, pictures and table as W&B; its failures never stop training."""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL.Image import Image

from fewstep.artifacts.run_folder import flat
from fewstep.tracking.names import IMAGES, QUALITY_TABLE
from fewstep.tracking.tracker import Position, RemoteTracker, Row, in_one_line, students_fid
from fewstep.tracking.wandb_run import PROJECT, run_id

DATABASE = "mlflow.db"  # beside all runs, where no server is named
IDENTITY = "fewstep.run"  # tag of the run folder


class MLflowRun(MLFlowLogger, RemoteTracker):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Lightning's MLFlowLogger with images as its steps; a resumed run folder goes on in the same MLflow run.

    Args:
        project: the experiment. name: of the run. uri: of the server or database.
        artifacts: where pictures go, as a URI; None for the server's own place.
        run: the run's id, where it has begun before. tags: of a new one.
        last: the last step that MLflow already has.
    """

    service = "MLflow"

    def __init__(
        self,
        *,
        project: str,
        name: str,
        uri: str,
        artifacts: str | None,
        run: str | None,
        tags: dict[str, Any],
        last: int,
    ) -> None:
        super().__init__(
            experiment_name=project,
            run_name=name,
            tracking_uri=uri,
            tags=tags,
            artifact_location=artifacts,
            run_id=run,
        )
        self._position = Position(last)

    @rank_zero_only
    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        if (found := self._position.new(metrics)) is not None:
            at, row = found
            self.attempt(lambda: self._log(at, row))

    def _log(self, step: int, row: Mapping[str, Any]) -> None:
        numbers = {known(name): value for name, value in row.items() if not isinstance(value, Image)}
        super().log_metrics(numbers, step)
        for name, value in row.items():
            if isinstance(value, Image):
                self.experiment.log_image(self.run_id, value, f"{name}/{step:010d}.png")

    @rank_zero_only
    def log_quality(self, rows: Sequence[Mapping[str, Any]]) -> None:
        def log() -> None:
            self.log_metrics(students_fid(rows))
            self.experiment.log_dict(self.run_id, {"rows": [dict(row) for row in rows]}, f"{QUALITY_TABLE}.json")

        self.attempt(log)

    @rank_zero_only
    def alert(self, title: str, text: str) -> None:
        self.attempt(lambda: self.experiment.set_tag(self.run_id, f"alert.{known(title)}", text))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Nothing: the next phase of the stage logs on."""

    @rank_zero_only
    def finish(self) -> None:
        self.attempt(lambda: self.experiment.set_terminated(self.run_id))


def known(name: str) -> str:
    """The name with characters alone that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


@rank_zero_only
def start_mlflow(
    folder: Path,
    *,
    group: str,
    job_type: str,
    config: Mapping[str, Any],
    history: Iterable[Row] = (),
    project: str | None = None,
) -> MLflowRun | None:
    """Start the MLflow run of a run folder, or go on with it; None, with a warning, if that fails.

    It goes to MLFLOW_TRACKING_URI, else to the database mlflow.db beside all runs.

    Args:
        project: None for that of MLFLOW_EXPERIMENT_NAME, or else PROJECT.
        The rest: see `start_wandb`.
    """
    for name in ("mlflow", "lightning.pytorch.loggers.mlflow"):  # a new database and a new experiment are no news
        logging.getLogger(name).setLevel(logging.ERROR)
    outputs = folder.resolve().parents[2]
    uri, identity = os.environ.get("MLFLOW_TRACKING_URI"), run_id(folder)
    project = project or os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    try:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        local = uri or f"sqlite:///{outputs / DATABASE}"
        client = MlflowClient(local)
        experiment = client.get_experiment_by_name(project)
        found = experiment and client.search_runs([experiment.experiment_id], f"tags.`{IDENTITY}` = '{identity}'")
        run = found[0].info.run_id if found else None
        steps = [each.step for each in client.get_metric_history(run, IMAGES)] if run else []
        logger = MLflowRun(
            project=project,
            name="/".join(folder.resolve().parts[-3:]),
            uri=local,
            artifacts=None if uri else (outputs / "mlflow").as_uri(),
            run=run,
            tags={IDENTITY: identity, "group": group, "job_type": job_type},
            last=max(steps, default=-1),
        )
        if run is None:
            logger.log_hyperparams({known(key): value for key, value in flat(config)})
        else:
            client.update_run(run, "RUNNING")
        for row in history:
            logger.log_metrics(row)
        return logger
    except Exception as error:
        rank_zero_warn(f"MLflow did not start: {in_one_line(error)}")
        return None
