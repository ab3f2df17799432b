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
