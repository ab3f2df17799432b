"""What a data set says about itself; everything else asks here and nobody types it twice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataFacts:
    """The facts of one data set.

    `shape` is (channels, height, width) for images and (dim,) for points; labels run from 0 to
    num_classes - 1; `low` and `high` bound the values a network sees, -1 and 1 for images.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    low: float
    high: float

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3
