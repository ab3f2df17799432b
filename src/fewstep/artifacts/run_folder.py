"""The folder of a run: outputs/<dataset>/<stage>/<time>/, found again when the same command is given again."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

import yaml

from fewstep.system.files import atomic_write, remove

CONFIG = "config.yaml"
MODEL = "model.safetensors"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the one before it
DAMAGED = "damaged.ckpt"  # one that could not be used
LOCK = ".lock"
QUALITY = "quality.json"
REPORT = "report.html"
PRODUCTS = "products.json"  # the files that the run makes, once it has finished
TIME = "%Y-%m-%d_%H-%M-%S"  # names of folders
TIME_LENGTH = 19


def rung_file(num_steps: int) -> str:
    """File name of the rung of that many steps."""
    return f"model-{num_steps}.safetensors"


# How and where, not what: a run goes on as it was when these change.
NOT_THE_EXPERIMENT = ("name", "outputs", "resume", "plan", "logger")
NOT_OF_THE_TRAINER = ("devices", "num_nodes", "strategy", "checkpoint_seconds")


@dataclass(frozen=True)
class RunFolder:
    """One run. When it was opened it was `finished`, or not: all its products were there, each whole."""

    path: Path
    finished: bool


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the folder for this process; give False if another one holds it. The lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        _held.add(lock)
        try:
            yield True
        finally:
            _held.discard(lock)


_held: set[IO[str]] = set()


def _let_go() -> None:
    """A lock is held by all who have its file open: data workers, forked, would hold it for a while after a kill."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def open_run(
    outputs: Path,
    dataset: str,
    stage: str,
    config: str,
    products: Sequence[str],
    name: str | None = None,
    keep: Callable[[Path], bool] = lambda folder: False,
    force: bool = False,
) -> Iterator[RunFolder]:
    """Hold this run's folder: `name`'s, else the newest unfinished one of the same settings, else a new one.

    Args:
        config: the resolved settings as YAML; see `differences`.
        name: of the folder, given by the user or by the pipeline whose stage this is; else it is the time.
        keep: whether a finished run of the same settings is what this one would make again, and serves.
        force: go on in the folder of that name though it was made with other settings.

    Raises:
        ValueError: the folder of that name is held by another process or was made with other settings.
        OSError: outputs cannot be written.
    """
    settings = yaml.safe_load(config)
    done = lambda path: all((path / product).is_file() for product in products)  # noqa: E731
    parent = outputs / dataset / stage
    if name is not None:
        candidates = [parent / name]
    else:
        taken = sorted((p.parent for p in parent.glob(f"*/{CONFIG}")), key=made_at, reverse=True)
        same = [p for p in taken if not differences(settings_in(p), settings)]
        going_on = [p for p in same if not done(p) or keep(p)]
        candidates = [*going_on, *fresh(parent)]  # another process may take a fresh name first
    for path in candidates:
        with locked(path) as mine:
            if not mine:
                continue
            changed = differences(settings_in(path), settings) if (path / CONFIG).is_file() else []
            if changed and not force:
                if name is None:  # another process was quicker to take a new folder
                    continue
                raise ValueError(
                    f"{path} was made with other settings ({'; '.join(changed)}); resume=force goes on with these, "
                    "another name= or outputs= starts anew"
                )
            for leftover in [*path.rglob(".*.tmp")]:  # of a process that was killed while it wrote
                remove(leftover)
            with atomic_write(path / CONFIG) as temporary:
                temporary.write_text(config)
            with atomic_write(path / PRODUCTS) as temporary:
                temporary.write_text(json.dumps([*products]) + "\n")
            try:
                yield RunFolder(path, done(path))
            finally:
                family = [path] if name is not None else [path, *parent.parent.glob(f"*/{path.name}")]
                if not any(map(made_anything, family)):
                    shutil.rmtree(path)  # a run, or pipeline, that ended before it made anything leaves nothing
                    for empty in (parent, parent.parent):
                        with suppress(OSError):  # it holds other runs
                            empty.rmdir()
            return
    raise ValueError(f"{candidates[0]} is being written by another process; wait for it or choose another name=")


def fresh(parent: Path) -> Iterator[Path]:
    """New folders in `parent`, named by the time: now, or after every other run of the data set if clocks went back."""
    others = [at for path in parent.parent.glob("*/*/") if (at := time_in(path.name)) and at.year < 9999]
    first = max([datetime.now(), *(at + timedelta(seconds=1) for at in others)])
    for seconds in range(100):
        yield parent / (first + timedelta(seconds=seconds)).strftime(TIME)


def time_in(name: str) -> datetime | None:
    """The time that is a folder's name, if it is one."""
    try:
        return datetime.strptime(name[:TIME_LENGTH], TIME)
    except ValueError:
        return None


def made_at(folder: Path) -> tuple[datetime, str]:
    """What the runs of a data set are sorted by, oldest first: the time in the name, else that of the settings."""
    config = folder / CONFIG
    at = time_in(folder.name)
    if at is None:
        at = datetime.fromtimestamp(config.stat().st_mtime) if config.exists() else datetime.min
    return at, folder.name


def made_anything(folder: Path) -> bool:
    """Whether a run has left more in `folder` than its settings."""
    return any(file.is_file() and file.name not in (CONFIG, PRODUCTS, LOCK) for file in folder.rglob("*"))


def products_of(folder: Path) -> list[str]:
    """The files that the run in `folder` makes; of runs that did not say, none."""
    file = folder / PRODUCTS
    return json.loads(file.read_text()) if file.is_file() else []


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings that the run in `folder` was made with, none if the file is damaged."""
    try:
        settings = yaml.safe_load((folder / CONFIG).read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings of the experiment that are not the same, as "key: before -> now"."""
    then, here = dict(flat(before)), dict(flat(now))
    keys = dict.fromkeys([*then, *here])
    return [
        f"{key}: {then.get(key, 'none')} -> {here.get(key, 'none')}"
        for key in keys
        if then.get(key, ...) != here.get(key, ...) and is_the_experiment(key)
    ]


def is_the_experiment(key: str) -> bool:
    """Whether a setting says what is done, and not how or where."""
    group, _, rest = key.partition(".")
    return group not in NOT_THE_EXPERIMENT and not (group == "trainer" and rest in NOT_OF_THE_TRAINER)


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """("stage.training.images", 1000), ... of nested settings; lists are values."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
