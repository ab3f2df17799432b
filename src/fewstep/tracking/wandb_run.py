"""Weights & Biases: the same numbers, pictures and table as on disk; never a reason for training to stop."""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from netrc import NetrcParseError, netrc
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL.Image import Image

from fewstep.tracking.metrics_file import FILE, read_metrics
from fewstep.tracking.names import IMAGES, QUALITY_TABLE, RUNG, quality_of
from fewstep.tracking.wandb_agent import counted_run
from fewstep.tracking.wandb_file import Logged, logged_into

PROJECT = "fewstep"
INIT_SECONDS = 30.0  # to wait for the server before the run goes offline
FINISH_SECONDS = 120.0  # to wait at the end for what is not yet uploaded; `wandb sync` uploads it from the disk
LET_GO_SECONDS = 10.0  # to wait for a broken service to end
X_AXIS = {IMAGES, RUNG}  # which are in every row


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


class RefusedKeyError(ValueError):
    """W&B has answered, and does not accept the key."""


class WandbRun(WandbLogger):
    """Lightning's WandbLogger, which falls silent with one warning if W&B fails and logs nothing a second time.

    Args:
        run: W&B's own. folder: of the run.
        logged: what earlier processes have logged into it.
    """

    accepted: ClassVar[bool] = False  # whether the server has taken a run of this process: its key was good

    def __init__(self, run: Any, folder: Path, logged: Iterable[Logged] = ()) -> None:
        super().__init__(experiment=run, project=PROJECT, save_dir=folder)
        self._logged = set(logged)
        self._failed = False

    def attempt(self, action: Callable[[], object]) -> None:
        """Do `action` unless W&B has failed before; a failure of any kind is a warning."""
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            rank_zero_warn(
                f"W&B failed and is left out from here on, training goes on and its data stay on disk: {said(error)}"
            )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log as is; `step` is not used: the x-axis is `metrics["images"]`."""
        self.attempt(lambda: self._log(metrics))

    @rank_zero_only
    def log_lazily(self, metrics: Callable[[Any], Mapping[str, Any]]) -> None:
        """Log what `metrics` makes of the wandb module; making it may fail too."""
        self.attempt(lambda: self._log(metrics(import_module("wandb"))))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: the configuration was given at the start."""

    @rank_zero_only
    def finish(self) -> None:
        """End the W&B run; everything is on disk, or uploaded, when this returns."""
        self.attempt(lambda: self.experiment.finish())
        self._failed = True

    def _log(self, metrics: Mapping[str, Any]) -> None:
        """Log what of a row was not logged before: a resumed run trains again what no checkpoint has."""
        images, rung = metrics.get(IMAGES), metrics.get(RUNG)
        new = {name for name in metrics if (images, rung, name) not in self._logged}
        if new:
            self.experiment.log({name: value for name, value in metrics.items() if name in new | X_AXIS})
            self._logged |= {(images, rung, name) for name in new}


@rank_zero_only
def start_wandb(folder: Path, *, group: str, job_type: str, config: Mapping[str, Any]) -> WandbRun | None:
    """Start the W&B run of a run folder, files below `folder/wandb/`; None, with a warning, if that fails.

    Online if the user is logged in, otherwise offline (`wandb sync` uploads it later); WANDB_MODE, where set,
    decides. A server that does not answer in 30 s makes it offline too. None on every process but the first.
    It goes on as the same W&B run, with those rows of metrics.csv that W&B has not on disk.

    Args:
        group: the pipeline this run belongs to; job_type: its stage.
        config: the resolved configuration.

    Raises:
        RefusedKeyError: the server refuses the key; where it took that of an earlier stage, the run is kept offline.
    """
    # None leaves the choice to W&B's own settings, WANDB_MODE among them.
    first = None if "WANDB_MODE" in os.environ or logged_in() else "offline"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")  # its login has words of its own, before the settings below count
    agents = counted_run(job_type)
    for mode in dict.fromkeys((first, "offline")):
        try:
            import wandb

            logged = logged_into(folder)
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=str(folder),
                id=agents.id if agents else run_id(folder),
                name="/".join(folder.resolve().parts[-3:]),
                group=group,
                job_type=job_type,
                config=dict(config),
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    sweep_id=agents and agents.sweep,
                    sweep_param_path=agents and agents.parameters,
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                ),
            )
            WandbRun.accepted |= not run.offline
            run.define_metric(IMAGES)
            run.define_metric("*", step_metric=IMAGES)
            logger = WandbRun(run, folder, logged)
            for row in read_metrics(folder / FILE):
                logger.log_metrics(row)
            return logger
        except Exception as error:
            if mode is None and is_refusal(error) and not WandbRun.accepted:
                raise RefusedKeyError(
                    f"W&B refuses the key ({said(error)}); `wandb login --relogin` takes another, WANDB_MODE=offline "
                    "or logger=csv does without"
                ) from error
            rank_zero_warn(f"W&B did not start{'' if mode else ' online, and its data stay on disk'}: {said(error)}")
            let_go()
    return None


def let_go() -> None:
    """End W&B's service, which takes a run that did not start for one in use and may itself be broken."""

    def end() -> None:
        with suppress(Exception):
            import_module("wandb").teardown()

    ending = Thread(target=end, daemon=True)
    ending.start()
    ending.join(LET_GO_SECONDS)


def is_refusal(error: BaseException) -> bool:
    """Whether W&B's server, or W&B itself at the look of the key, says that the key is not good."""
    return type(error).__name__ == "AuthenticationError" or bool(re.search(r"\berror 40[13]\b", str(error)))


def said(error: BaseException) -> str:
    """An error's own words in one line, or else its name."""
    return " ".join(str(error).split()) or type(error).__name__


def log_picture(loggers: Iterable[Logger], name: str, picture: Image, *, images: int) -> None:
    """Show one picture in W&B, if it is among the loggers, at `images` on the x-axis."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_lazily(lambda wandb: {IMAGES: images, name: wandb.Image(picture)})


def log_quality(loggers: Iterable[Logger], rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the rows of quality.json as a table in W&B, and the students' FID as numbers, if it is among the loggers."""
    columns = list(rows[0]) if rows else []
    data = [[row.get(column) for column in columns] for row in rows]
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_lazily(lambda wandb: {QUALITY_TABLE: wandb.Table(columns=columns, data=data)} | students(rows))


def students(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The FID of each student by its steps, mean over w and at each w: what sweeps compare."""
    fid: dict[str, list[float]] = {}
    for row in rows:
        if row["model"] == "progressive":
            for w in (None, row["w"]):
                fid.setdefault(quality_of("fid", row["steps"], w), []).append(row["fid"])
    return {name: sum(values) / len(values) for name, values in fid.items()}


def finish(loggers: Iterable[Logger]) -> None:
    """End the W&B run among the loggers, if any: one process has several stages, each its own run."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.finish()
