"""Weights & Biases: the same numbers, pictures and table as on disk; its failures never stop training."""

import os
import re
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
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL.Image import Image

from fewstep.tracking.names import IMAGES, QUALITY_TABLE
from fewstep.tracking.tracker import Position, RemoteTracker, Row, in_one_line, students_fid
from fewstep.tracking.wandb_agent import COUNTED, agents_run
from fewstep.tracking.wandb_fragments import Mark, fragments_of, last_logged, remove_repeated, write_mark

PROJECT = "fewstep"
INIT_SECONDS = 30.0  # to wait for the server before the run goes offline
FINISH_SECONDS = 120.0  # to wait at the end for what is not yet uploaded; `wandb sync` uploads it from the disk
STOP_SECONDS = 10.0  # to wait for a broken service to end


def logged_in() -> bool:
    """Whether W&B has a key or token in the environment or a netrc file; opens no connection."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for place in places:
        with suppress(OSError, NetrcParseError):
            entry = netrc(os.path.expanduser(place)).authenticators(host)
            if entry and entry[2]:
                return True
    return False


def run_id(folder: Path) -> str:
    """12 hex digits that follow from the run folder, so that a resumed run is the same W&B run."""
    return sha256(str(folder.resolve()).encode()).hexdigest()[:12]


class RefusedKeyError(ValueError):
    """W&B has answered and does not accept the key."""


class WandbRun(WandbLogger, RemoteTracker):
    """Lightning's WandbLogger with images as its steps, which falls silent with one warning if W&B fails.

    Args:
        run: W&B's own. folder: of the run.
        last: the last step that W&B already has.
    """

    service = "W&B"
    accepted: ClassVar[bool] = False  # whether the server has taken a run of this process: its key was good

    def __init__(self, run: Any, folder: Path, last: int = -1) -> None:
        super().__init__(experiment=run, save_dir=folder)
        self._position = Position(last)

    @rank_zero_only
    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        if (found := self._position.new(metrics)) is not None:
            self.attempt(lambda: self.experiment.log(_as_wandb(found[1]), step=found[0]))

    @rank_zero_only
    def log_quality(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.attempt(lambda: self.log_metrics(students_fid(rows) | {QUALITY_TABLE: table_of(rows)}))

    @rank_zero_only
    def alert(self, title: str, text: str) -> None:
        """Have W&B tell its user, by mail or chat as set up there."""
        self.attempt(lambda: self.experiment.alert(title=title, text=text, level="WARN"))

    @rank_zero_only
    def finish(self) -> None:
        def end() -> None:
            fragment = Path(self.experiment.dir).parent
            self.experiment.finish()
            write_mark(fragment, Mark(self._position.step, complete=True))

        self.attempt(end)
        self._failed = True


def _as_wandb(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its pictures as W&B wants them."""
    import wandb

    return {name: wandb.Image(value) if isinstance(value, Image) else value for name, value in row.items()}


def table_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as W&B's table, the ends of an interval in columns of their own: fid_low, fid_high."""
    import wandb

    flat = [
        {key: value for key, value in row.items() if key != "intervals"}
        | {
            f"{name}_{end}": value
            for name, pair in row.get("intervals", {}).items()
            for end, value in zip(("low", "high"), pair, strict=True)
        }
        for row in rows
    ]
    columns: list[str | int] = list(dict.fromkeys(column for row in flat for column in row))
    return wandb.Table(columns=columns, data=[[row.get(str(column)) for column in columns] for row in flat])


@rank_zero_only
def start_wandb(
    folder: Path,
    *,
    group: str,
    job_type: str,
    config: Mapping[str, Any],
    history: Callable[[], Iterable[Row]] = tuple,
    project: str | None = None,
) -> WandbRun | None:
    """Start the W&B run of a run folder, files below `folder/wandb/`; None, with a warning, if that fails.

    Online if the user is logged in, otherwise offline (`wandb sync` uploads it later); WANDB_MODE, where set,
    decides. A server that does not answer in 30 s makes it offline too. None on every process but the first.
    A resumed run is the same W&B run, which gets those rows of its history that it lacks.

    Args:
        group: the pipeline this run belongs to. job_type: its stage.
        config: the resolved configuration.
        history: the rows that the run has logged before.
        project: None for that of WANDB_PROJECT, or else PROJECT.

    Raises:
        RefusedKeyError: the server refuses the key; where it took that of an earlier stage, the run is kept offline.
    """
    # None leaves the choice to W&B's own settings, WANDB_MODE among them.
    first = None if "WANDB_MODE" in os.environ or logged_in() else "offline"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")  # it prints before the settings below count
    for mode in dict.fromkeys((first, "offline")):
        try:
            run = _initialised(folder, project, group=group, job_type=job_type, config=config, mode=mode)
            WandbRun.accepted |= not run.offline
            if run.disabled:  # WANDB_MODE
                return None
            fragment = Path(run.dir).parent
            earlier = [path for path in fragments_of(folder, run.id) if path.name != fragment.name]
            last = last_logged(earlier, history) if run.offline else run.starting_step - 1
            write_mark(fragment, Mark(last, complete=False))
            remove_repeated(earlier, online=not run.offline)
            logger = WandbRun(run, folder, last)
            for row in history():
                logger.log_metrics(row)
            return logger
        except Exception as error:
            if mode is None and is_refusal(error) and not WandbRun.accepted:
                raise RefusedKeyError(
                    f"W&B refuses the key ({in_one_line(error)}); `wandb login --relogin` takes another, "
                    "WANDB_MODE=offline or logger=csv does without"
                ) from error
            where = "" if mode else " online, and its data stay on disk"
            rank_zero_warn(f"W&B did not start{where}: {in_one_line(error)}")
            stop_service()
    return None


def _initialised(
    folder: Path, project: str | None, *, group: str, job_type: str, config: Mapping[str, Any], mode: Any
) -> Any:
    """W&B's own run, the same one for the same folder."""
    import wandb

    agents = agents_run()  # asked for in every stage: it clears the environment
    if job_type != COUNTED:
        agents = {}
    run = wandb.init(
        project=project or os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder),
        id=agents.get("run_id") or run_id(folder),
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
            sweep_id=agents.get("sweep_id"),
            sweep_param_path=agents.get("sweep_param_path"),
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )
    run.define_metric(IMAGES)
    run.define_metric("*", step_metric=IMAGES)
    return run


def stop_service() -> None:
    """End W&B's service, which keeps a run that did not start and may itself be broken."""

    def end() -> None:
        with suppress(Exception):
            import_module("wandb").teardown()

    ending = Thread(target=end, daemon=True)
    ending.start()
    ending.join(STOP_SECONDS)


def is_refusal(error: BaseException) -> bool:
    """Whether W&B's server refuses the key, or W&B itself finds it malformed."""
    return type(error).__name__ == "AuthenticationError" or bool(re.search(r"\berror 40[13]\b", str(error)))


def upload_table(folder: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """Log a sweep's table as one W&B run, the same one each time; to offline files where nobody is logged in.

    Returns:
        a line that says where it is.
    """
    run = start_wandb(folder, group=folder.name, job_type="sweep", config={})
    if run is None:
        return "W&B: no run was made"
    as_text = [row | {"w": str(row["w"])} for row in map(dict, rows)]  # a number or "mean"; W&B's columns have one type
    run.experiment.log({"sweep": table_of(as_text)})
    run.experiment.summary.update(dict(summary))
    place = run.experiment.url or f"{folder / 'wandb'}, which `wandb sync` uploads"
    run.finish()
    return f"W&B: {place}"
