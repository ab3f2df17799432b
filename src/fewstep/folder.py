"""The folder of a run: outputs/<dataset>/<stage>/<time>/, found again when the same command is given again."""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fewstep.files import atomic

CONFIG = "config.yaml"
MODEL = "model.safetensors"
LAST = "last.ckpt"
LOCK = ".lock"
QUALITY = "quality.json"
REPORT = "report.html"


def rung_file(num_steps: int) -> str:
    """File name of the rung of that many steps."""
    return f"model-{num_steps}.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """One run. It is finished when all its `products` are there; each appears whole or not at all."""

    path: Path
    products: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return all((self.path / product).is_file() for product in self.products)


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
        yield True


@contextmanager
def open_run(
    outputs: Path,
    dataset: str,
    stage: str,
    config: str,
    products: Sequence[str],
    time: str | None = None,
    keep: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[RunFolder]:
    """Hold this run's folder: `time`'s, else the newest unfinished one of the same `config`, else a new one.

    Args:
        config: the resolved settings as YAML; equal text means the same run.
        time: name of the folder, for the stages of one pipeline.
        keep: whether a finished run of the same settings is what this one would make again, and serves.

    Raises:
        ValueError: the folder of that name is held by another process or was made with other settings.
        OSError: outputs cannot be written.
    """
    parent = outputs / dataset / stage
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if time is not None:
        candidates = [parent / time]
    else:
        taken = sorted((p.parent for p in parent.glob(f"*/{CONFIG}")), reverse=True)
        same = [p for p in taken if same_config(p, config)]
        going_on = [p for p in same if not RunFolder(p, tuple(products)).finished or keep(p)]
        fresh = [p for n in range(100) if not (p := parent / (now if not n else f"{now}_{n}")).exists()]
        candidates = [*going_on, *fresh]  # another process may take a fresh name first
    for path in candidates:
        with locked(path) as mine:
            if not mine:
                continue
            if (path / CONFIG).is_file() and not same_config(path, config):
                raise ValueError(f"{path} was made with other settings than these; choose another outputs= folder")
            for leftover in path.rglob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink()
            with atomic(path / CONFIG) as temporary:
                temporary.write_text(config)
            try:
                yield RunFolder(path, tuple(products))
            finally:
                family = [path] if time is not None else [path, *parent.parent.glob(f"*/{path.name}")]
                if not any(map(made_anything, family)):
                    shutil.rmtree(path)  # a run, or pipeline, that ended before it made anything leaves nothing
                    for empty in (parent, parent.parent):
                        with suppress(OSError):  # it holds other runs
                            empty.rmdir()
            return
    raise ValueError(f"{candidates[0]} is being written by another process; wait for it or choose another outputs=")


def made_anything(folder: Path) -> bool:
    """Whether a run has left more in `folder` than its settings."""
    return any(file.is_file() and file.name not in (CONFIG, LOCK) for file in folder.rglob("*"))


def same_config(folder: Path, config: str) -> bool:
    """Whether the run in `folder` has exactly these settings."""
    file = folder / CONFIG
    return file.is_file() and file.read_text() == config
