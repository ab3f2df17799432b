"""The one figure by which the jobs of a sweep are compared."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from pydantic import with_config

from fewstep.artifacts.quality_file import QualityRow
from fewstep.system.validation import STRICT

FIGURES = (
    *("fid", "inception_score", "precision", "recall", "accuracy", "diversity", "vendi", "kid", "clip_score"),
    *("exact_rmse", "energy_distance"),
)
LESS_IS_BETTER = ("fid", "kid", "same_noise_rmse", "exact_rmse", "energy_distance")


@with_config(STRICT)
@dataclass(frozen=True)
class Objective:
    """The one figure by which jobs are compared: that of the student of `steps` steps, over `w` or at one of them.

    Attributes:
        figure: a column of quality.json; less is better of distances and errors, more of the others.
        w: null is the mean over the grid's weights.

    Raises:
        ValueError: no such column.
    """

    figure: str = "fid"
    steps: int = 4
    w: float | None = None

    def __post_init__(self) -> None:
        if self.figure not in (*FIGURES, "same_noise_rmse"):
            raise ValueError(f"the figure of an objective must be one of {', '.join(FIGURES)}, got {self.figure}")

    def __str__(self) -> str:
        where = "mean over w" if self.w is None else f"w = {self.w:g}"
        return f"{self.figure.upper()}, {self.steps} steps, {where}"

    @property
    def less_is_better(self) -> bool:
        return self.figure in LESS_IS_BETTER

    @property
    def sign(self) -> int:
        """Times a figure: of two jobs, the smaller one is better."""
        return 1 if self.less_is_better else -1

    def of(self, rows: Iterable[QualityRow]) -> float | None:
        """The figure of a job; None where its rows have none of such a student."""
        students = [row for row in rows if row.is_few_step and row.name == row.model and row.steps == self.steps]
        return mean_figure([row for row in students if row.model == students[0].model], self.figure, self.w)


def mean_figure(rows: Iterable[QualityRow], figure: str, w: float | None) -> float | None:
    """A figure at one w, or its mean over all; None where no row has it."""
    values = [getattr(row, figure) for row in rows if w is None or row.w == w]
    known = [value for value in values if value is not None]
    return mean(known) if known else None
