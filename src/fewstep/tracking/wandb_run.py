"""Weights & Biases: the same numbers, pictures and table as on disk; never a reason for training to stop."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL.Image import Image

from fewstep.tracking.names import IMAGES, QUALITY_TABLE

PROJECT = "fewstep"
INIT_SECONDS = 30.0  # to wait for the server before the run goes offline


def logged_in() -> bool:
    """Whether W&B has a key or token in the environment or a netrc file; asks nobody, opens no connection."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for place in places:
        try:
            entry = netrc(os.path.expanduser(place)).authenticators(host)
        except (OSError, NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False


def run_id(folder: Path) -> str:
    """12 hex digits that follow from the run folder, so that a resumed run is the same W&B run."""
    return sha256(str(folder.resolve()).encode()).hexdigest()[:12]


class WandbRun(WandbLogger):
    """Lightning's WandbLogger, which falls silent with one warning if W&B fails."""

    _failed = False

    def attempt(self, action: Callable[[], object]) -> None:
        """Do `action` unless W&B has failed before; a failure of any kind is a warning."""
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            rank_zero_warn(f"W&B failed and is left out from here on, training goes on: {error}")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log as is; `step` is not used: the x-axis is `metrics["images"]`."""
        self.attempt(lambda: self.experiment.log(dict(metrics)))

    @rank_zero_only
    def log_lazily(self, metrics: Callable[[Any], Mapping[str, Any]]) -> None:
        """Log what `metrics` makes of the wandb module; making it may fail too."""
        self.attempt(lambda: self.experiment.log(dict(metrics(import_module("wandb")))))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: the configuration was given at the start."""

    @rank_zero_only
    def finish(self) -> None:
        """End the W&B run; everything is on disk, or uploaded, when this returns."""
        self.attempt(lambda: self.experiment.finish())
        self._failed = True


@rank_zero_only
def start_wandb(folder: Path, *, group: str, job_type: str, config: Mapping[str, Any]) -> WandbRun | None:
    """Start the W&B run of a run folder, files below `folder/wandb/`; None, with a warning, if that fails.

    Online if the user is logged in, otherwise offline (`wandb sync` uploads it later); WANDB_MODE, where set,
    decides. A server that does not answer in 30 s makes it offline too. None on every process but the first.

    Args:
        group: the pipeline this run belongs to; job_type: its stage.
        config: the resolved configuration.
    """
    # None leaves the choice to W&B's own settings, WANDB_MODE among them.
    first = None if "WANDB_MODE" in os.environ or logged_in() else "offline"
    folder.mkdir(parents=True, exist_ok=True)
    for mode in dict.fromkeys((first, "offline")):
        try:
            import wandb

            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=str(folder),
                id=run_id(folder),
                name="/".join(folder.resolve().parts[-3:]),
                group=group,
                job_type=job_type,
                config=dict(config),
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS),
            )
            run.define_metric(IMAGES)
            run.define_metric("*", step_metric=IMAGES)
            return WandbRun(experiment=run, project=PROJECT, save_dir=folder)
        except Exception as error:
            rank_zero_warn(f"W&B did not start{'' if mode else ' online'}: {error}")
    return None


def log_picture(loggers: Iterable[Logger], name: str, picture: Image, *, images: int) -> None:
    """Show one picture in W&B, if it is among the loggers, at `images` on the x-axis."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_lazily(lambda wandb: {IMAGES: images, name: wandb.Image(picture)})


def log_quality(loggers: Iterable[Logger], rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the rows of quality.json as a table in W&B, if it is among the loggers."""
    columns = list(rows[0]) if rows else []
    data = [[row.get(column) for column in columns] for row in rows]
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_lazily(lambda wandb: {QUALITY_TABLE: wandb.Table(columns=columns, data=data)})


def finish(loggers: Iterable[Logger]) -> None:
    """End the W&B run among the loggers, if any: one process has several stages, each its own run."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.finish()
