"""Every name that is logged, defined once: the columns of metrics.csv are the keys W&B gets."""

from typing import Final

IMAGES: Final = "images"  # the x-axis of everything: images seen in this run; the rungs of a ladder add up
RUNG: Final = "rung"  # steps of the rung being trained; empty outside a ladder
LOSS: Final = "train/loss"  # mean since the row before
LEARNING_RATE: Final = "train/learning_rate"
GRADIENT_NORM: Final = "train/gradient_norm"  # of the last step, before clipping
IMAGES_PER_SECOND: Final = "train/images_per_second"  # since the row before, snapshots included
SAMPLE_FID: Final = "samples/fid"
SAMPLE_INCEPTION_SCORE: Final = "samples/inception_score"

COLUMNS: Final = (
    IMAGES,
    RUNG,
    LOSS,
    LEARNING_RATE,
    GRADIENT_NORM,
    IMAGES_PER_SECOND,
    SAMPLE_FID,
    SAMPLE_INCEPTION_SCORE,
)

SAMPLE_GRID: Final = "samples/grid"  # W&B only: a picture
QUALITY_TABLE: Final = "quality"  # W&B only: the rows of quality.json

# W&B only; on disk they are the lines of diagnostics.jsonl.
GAP: Final = "diagnostics/gap"
ALARMS: Final = "diagnostics/alarms"  # how many kinds of alarm a look has raised
SAMPLE_STATISTICS: Final = ("contrast", "saturation", "excess", "diversity")


def gap_at(axis: str, low: float, high: float) -> str:
    """The gap in one bin of t or w."""
    return f"diagnostics/gap_{axis}/{span(low, high)}"


def gap_of(branch: str) -> str:
    """The gap of the conditional or the unconditional branch."""
    return f"diagnostics/gap_branch/{branch}"


def step_error_at(t: float) -> str:
    """The error of one student step from t."""
    return f"diagnostics/step_error/t={t:.3f}"


def of_samples(statistic: str) -> str:
    """One of SAMPLE_STATISTICS of the student's samples."""
    return f"diagnostics/{statistic}"


def drift_of(statistic: str) -> str:
    """The same less the teacher's from the same noise, or less the data's where there is no teacher."""
    return f"diagnostics/{statistic}_drift"


def gradient_norm_of(part: str) -> str:
    """The gradient's norm in one part of the network."""
    return f"diagnostics/gradient_norm/{part}"


def span(low: float, high: float) -> str:
    """A bin as "0.125-0.25", or the one value it has."""
    return f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}"


def quality_of(figure: str, steps: int, w: float | None = None) -> str:
    """A figure of the student of so many steps, at one w or its mean: what a sweep of W&B's compares."""
    return f"quality/{figure}_{steps}_steps" + ("" if w is None else f"_w{w:g}")
