"""The folder of a run, outputs/<dataset>/<stage>/<time>/, which the same command finds again."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import JsonValue

from fewstep.system.files import atomic_write, remove, write_json
from fewstep.system.stored import leave_out, read_json, read_yaml

CONFIG = "config.yaml"
MODEL = "model.safetensors"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the checkpoint before last.ckpt
DAMAGED = "damaged.ckpt"  # a last.ckpt that could not be read
LOCK = ".lock"
QUALITY = "quality.json"
PROVENANCE = "provenance.json"  # of the figures: protocol, models, machine
POLICIES, PATHS = "policies.json", "policies.png"  # of models in closed loop, where samples are actions
REPORT = "report.html"
PRODUCTS = "products.json"  # the names of the files that a finished run has
THREADS = "threads.json"  # of torch in each process, and processes: sums of another division round otherwise
TIME = "%Y-%m-%d_%H-%M-%S"  # names of folders
TIME_LENGTH = 19


def rung_file(num_steps: int) -> str:
    """File name of the model of that many steps."""
    return f"model-{num_steps}.safetensors"


# Settings of how and where, not of what is trained: a run resumes when they change.
NOT_THE_EXPERIMENT = ("name", "outputs", "resume", "plan", "logger", "samples")
NOT_OF_THE_TRAINER = ("devices", "num_nodes", "strategy", "checkpoint_seconds", "profiler")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run; `finished` if all its products were there when it was opened."""

    path: Path
    finished: bool


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the folder for this process; give False if another one holds it.

    The lock dies with its process; a forked child, such as a data worker, does not hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


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
    """Lock the folder of a run: that of `name`, else the newest unfinished one of the same settings, else a new one.

    Args:
        config: the resolved settings as YAML; see `differences`.
        name: of the folder, given by the user or by the pipeline of this stage; None names it by the time.
        keep: whether a finished run of the same settings is to be used again instead of made anew.
        force: continue in the folder of that name though its settings differ.

    Raises:
        ValueError: the folder of that name is locked by another process, or its settings differ.
        OSError: outputs cannot be written.
    """
    settings = yaml.safe_load(config)
    candidates = candidate_folders(outputs / dataset / stage, settings, products, name, keep)
    for path in candidates:
        with locked(path) as acquired:
            if not acquired:
                continue
            changed = differences(settings_in(path), settings) if (path / CONFIG).is_file() and not force else []
            if changed:
                if name is None:  # another process was quicker to take a new folder
                    continue
                raise ValueError(
                    f"{path} was made with other settings ({'; '.join(changed)}); resume=force resumes with these, "
                    "another name= or outputs= starts anew"
                )
            prepare(path, config, products)
            try:
                yield RunFolder(path, is_finished(path, products))
            finally:
                remove_if_empty(path, is_named=name is not None)
            return
    raise ValueError(f"{candidates[0]} is being written by another process; wait for it or choose another name=")


def candidate_folders(
    parent: Path,
    settings: Mapping[str, Any],
    products: Sequence[str],
    name: str | None,
    keep: Callable[[Path], bool],
) -> list[Path]:
    """The folders that a run may use, best first: several without a name, since another process may hold the first."""
    if name is not None:
        return [parent / name]
    existing = sorted((config.parent for config in parent.glob(f"*/{CONFIG}")), key=made_at, reverse=True)
    same = [folder for folder in existing if has_settings(folder, settings)]
    return [*(folder for folder in same if not is_finished(folder, products) or keep(folder)), *new_folders(parent)]


def prepare(folder: Path, config: str, products: Sequence[str]) -> None:
    """Write a run's settings and the list of its products; remove the temporary files of a killed process."""
    for temporary in [*folder.rglob(".*.tmp")]:
        remove(temporary)
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(config)
    with atomic_write(folder / PRODUCTS) as temporary:
        temporary.write_text(json.dumps([*products]) + "\n")


def is_finished(folder: Path, products: Sequence[str]) -> bool:
    """Whether all products of a run are there."""
    return all((folder / product).is_file() for product in products)


def remove_if_empty(folder: Path, *, is_named: bool) -> None:
    """Remove the folder of a run that ended before it made anything, and of a pipeline none of whose stages did."""
    stages = [folder] if is_named else [folder, *folder.parent.parent.glob(f"*/{folder.name}")]
    if not any(map(made_anything, stages)):
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            with suppress(OSError):  # it holds other runs
                parent.rmdir()


def new_folders(parent: Path) -> Iterator[Path]:
    """New folders in `parent`, named by the time: now, or after the newest run of the data set if clocks went back."""
    others = [at for path in parent.parent.glob("*/*/") if (at := time_in(path.name)) and at.year < 9999]
    first = max([datetime.now(), *(at + timedelta(seconds=1) for at in others)])
    for seconds in range(100):
        yield parent / (first + timedelta(seconds=seconds)).strftime(TIME)


def time_in(name: str) -> datetime | None:
    """The time that a folder's name begins with, None if it does not."""
    try:
        return datetime.strptime(name[:TIME_LENGTH], TIME)
    except ValueError:
        return None


def made_at(folder: Path) -> tuple[datetime, str]:
    """Sort key of runs, oldest first: the time in the name, else that of the settings file; then the name."""
    config = folder / CONFIG
    at = time_in(folder.name)
    if at is None:
        at = datetime.fromtimestamp(config.stat().st_mtime) if config.exists() else datetime.min
    return at, folder.name


def made_anything(folder: Path) -> bool:
    """Whether `folder` holds more than a run's settings."""
    return any(file.is_file() and file.name not in (CONFIG, PRODUCTS, THREADS, LOCK) for file in folder.rglob("*"))


def products_of(folder: Path) -> list[str]:
    """The names of the files that the run in `folder` makes; none if it has no list of them."""
    file = folder / PRODUCTS
    return read_json(file, list[str], "delete it and run the same command again") if file.is_file() else []


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`.

    Raises:
        ValueError: they are damaged. OSError: they cannot be read.
    """
    return read_yaml(folder / CONFIG, dict[str, JsonValue], "resume=force writes it again, another name= starts anew")


def has_settings(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the run in `folder` is of these settings; one that cannot be read is named, and is of others."""
    try:
        return not differences(settings_in(folder), settings)
    except (ValueError, OSError) as error:
        leave_out(folder, error)
        return False


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings of the experiment that differ, as "key: before -> now"."""
    old, new = dict(flat(before)), dict(flat(now))
    return [
        f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, ...) != new.get(key, ...) and is_the_experiment(key)
    ]


def is_the_experiment(key: str) -> bool:
    """Whether a setting says what is trained, not how or where."""
    group, _, rest = key.partition(".")
    return group not in NOT_THE_EXPERIMENT and not (group == "trainer" and rest in NOT_OF_THE_TRAINER)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("stage.training.images", 1000), ... of nested settings; lists are values."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def threads_of_run(folder: Path, threads: int, processes: int, most: int) -> int:
    """The threads of each process that the run in `folder` began with; a new one begins with `threads`, as is noted.

    Args:
        most: that there are cores for; a run from a larger machine goes on with `threads`, as does one whose number of
            processes has changed.

    Raises:
        ValueError: the note is damaged.
    """
    file, now = folder / THREADS, {"threads": threads, "processes": processes}
    remedy = f"delete it, and the run goes on with {threads} threads"
    began = read_json(file, dict[str, int], remedy) if file.is_file() else {}
    if began.get("processes") == processes and 1 <= began.get("threads", 0) <= most:
        return began["threads"]
    write_json(file, now)
    return threads
