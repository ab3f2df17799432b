"""What W&B, TensorBoard and MLflow have in common: rows of numbers and pictures, each logged once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from fewstep.artifacts.quality_file import GUIDED, TEACHER
from fewstep.tracking.metrics_file import FILE, read_metrics
from fewstep.tracking.names import IMAGES, RUNG, SAMPLE_GRID, quality_of

AXES = {IMAGES, RUNG}  # present in every row

Row = Mapping[str, Any]
"""Numbers and PIL images by name, with IMAGES and, in a stage of several phases, RUNG."""


class Position:
    """The step up to which a log is complete; decides what of a row is new.

    The step of a row is its number of images plus the number of phases before its own: the first row of a phase stands
    at the same images as the last row of the phase before.

    Args:
        last: the last step that is already logged, as a whole.
    """

    def __init__(self, last: int = -1) -> None:
        self.step = last
        self._names: set[str] | None = None  # logged at this step; None: all there are
        self._phases: list[float] = []
        self._phase = 0

    def new(self, row: Row) -> tuple[int, dict[str, Any]] | None:
        """The step of a row and those of its values that were not logged before; None if there are none."""
        if (rung := row.get(RUNG)) is not None:
            if rung not in self._phases:
                self._phases.append(rung)
            self._phase = self._phases.index(rung)
        step = int(row[IMAGES]) + self._phase if IMAGES in row else max(0, self.step)
        if step < self.step or (step == self.step and self._names is None):
            return None
        if step > self.step or self._names is None:
            self.step, self._names = step, set()
        names = set(row) - self._names
        self._names |= names - AXES
        return (step, {name: row[name] for name in row if name in names}) if names - AXES else None


def last_step(rows: Iterable[Row]) -> int:
    """The step of the last of these rows; -1 of none."""
    position = Position()
    for row in rows:
        position.new(row)
    return position.step


class Tracker(Logger, ABC):
    """A logger that shows pictures and the quality table too."""

    @abstractmethod
    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        """Log what is new in a row; `step` is not used: the x-axis is `metrics["images"]`."""

    @abstractmethod
    def log_quality(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the rows of quality.json as a table, and the students' FID as numbers."""

    @abstractmethod
    def alert(self, title: str, text: str) -> None:
        """Tell the user, by whatever way the tracker has."""

    @abstractmethod
    def finish(self) -> None:
        """Close the log; everything is on disk, or uploaded, when this returns."""


class RemoteTracker(Tracker):
    """A tracker whose service may fail, which then falls silent with one warning and never stops a training.

    Attributes:
        service: its name, for the warning.
    """

    service: ClassVar[str]
    _failed = False

    def attempt(self, action: Callable[[], object]) -> None:
        """Do `action` unless the service has failed before; a failure of any kind is a warning."""
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            rank_zero_warn(
                f"{self.service} failed and is left out from here on, training goes on and its data stay on disk: "
                f"{in_one_line(error)}"
            )


def in_one_line(error: BaseException) -> str:
    """The message of an error, or else its name."""
    return " ".join(str(error).split()) or type(error).__name__


def trackers(loggers: Iterable[Logger]) -> Iterator[Tracker]:
    """The trackers among the loggers."""
    return (logger for logger in loggers if isinstance(logger, Tracker))


def log_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, *, images: int) -> None:
    """Show one picture in every tracker, at `images` on the x-axis."""
    for tracker in trackers(loggers):
        tracker.log_metrics({IMAGES: images, name: picture})


def log_quality(loggers: Iterable[Logger], rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the rows of quality.json in every tracker."""
    for tracker in trackers(loggers):
        tracker.log_quality(rows)


def history(folder: Path, earlier: Sequence[Row] = ()) -> Iterator[Row]:
    """The rows that a run has logged so far, by images, read from its own files: metrics.csv and samples/*.png.

    Args:
        earlier: rows that it keeps in other files.
    """
    pictures = [(int(path.stem), path) for path in (folder / "samples").glob("*.png") if path.stem.isdigit()]
    rows = [(row[IMAGES], row) for row in read_metrics(folder / FILE)]
    for images, row in sorted([*rows, *pictures, *((row[IMAGES], row) for row in earlier)], key=lambda each: each[0]):
        yield {IMAGES: images, SAMPLE_GRID: Image.open(row, formats=["PNG"])} if isinstance(row, Path) else row


def students_fid(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """FID of the few-step students by steps, as mean over w and at each w, of the best method: what sweeps compare.

    Students after steps of a base are left out.
    """
    by_method: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["model"] not in (TEACHER, GUIDED) and not row.get("base_steps"):
            for w in (None, row["w"]):
                by_method.setdefault((quality_of("fid", row["steps"], w), row["model"]), []).append(row["fid"])
    best: dict[str, float] = {}
    for (name, _), values in by_method.items():
        best[name] = min(best.get(name, float("inf")), sum(values) / len(values))
    return best
