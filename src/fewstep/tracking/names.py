"""Every name that is logged, the same in metrics.csv, W&B and TensorBoard."""

from typing import Final

IMAGES: Final = "images"  # the x-axis: images seen in this run, all phases together
RUNG: Final = "rung"  # steps of the phase in training; empty in a stage of one phase
LOSS: Final = "train/loss"  # mean since the row before
LEARNING_RATE: Final = "train/learning_rate"
GRADIENT_NORM: Final = "train/gradient_norm"  # of the last step, before clipping
IMAGES_PER_SECOND: Final = "train/images_per_second"  # since the row before, snapshots included
PEAK_MEMORY: Final = "train/peak_memory"  # bytes, of the process; of its GPU where it has one
SAMPLE_FID: Final = "samples/fid"
SAMPLE_INCEPTION_SCORE: Final = "samples/inception_score"

COLUMNS: Final[tuple[str, ...]] = (
    IMAGES,
    RUNG,
    LOSS,
    LEARNING_RATE,
    GRADIENT_NORM,
    IMAGES_PER_SECOND,
    PEAK_MEMORY,
    SAMPLE_FID,
    SAMPLE_INCEPTION_SCORE,
)

SAMPLE_GRID: Final = "samples/grid"  # not in metrics.csv: a picture
TRACE_PICTURE: Final = "samples/trace"  # not in metrics.csv: of an evaluation, the predicted images of each step
QUALITY_TABLE: Final = "quality"  # not in metrics.csv: the rows of quality.json

# Not in metrics.csv; on disk they are the lines of diagnostics.jsonl.
GAP: Final = "diagnostics/gap"
ALARMS: Final = "diagnostics/alarms"  # number of kinds of alarm that were raised
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
    """One of SAMPLE_STATISTICS less the teacher's from the same noise, or less the data's without a teacher."""
    return f"diagnostics/{statistic}_drift"


def gradient_norm_of(part: str) -> str:
    """The gradient's norm in one part of the network."""
    return f"diagnostics/gradient_norm/{part}"


def gradient_ratio_of(role: str) -> str:
    """The gradient's norm of a role over the student's."""
    return f"diagnostics/gradient_ratio/{role}"


def of_critic(role: str, statistic: str) -> str:
    """A statistic of a critic."""
    return f"diagnostics/{role}/{statistic}"


def span(low: float, high: float) -> str:
    """A bin as "0.125-0.25", or as its one value."""
    return f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}"


def quality_of(figure: str, steps: int, w: float | None = None) -> str:
    """A figure of the few-step student at one w, or its mean over w."""
    return f"quality/{figure}_{steps}_steps" + ("" if w is None else f"_w{w:g}")
