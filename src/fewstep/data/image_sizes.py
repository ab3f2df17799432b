"""The size of squares that fits images of many sizes: dataset.size=auto."""

from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from statistics import median

from PIL import Image

from fewstep.data.decode import FORMATS

AUTO = "auto"
SIZES = (8, 16, 24, 28, 32, 48, 64)  # pixels: those that the networks of model=auto take; larger ones are asked for
MOST_FILES = 1000  # whose headers are read, evenly spaced


def shorter_sides(count: int, read: Callable[[int], bytes], place: Path) -> list[int]:
    """The shorter side in pixels of each of at most MOST_FILES of `count` images; damaged files have none.

    Args:
        read: the bytes of the file of that number. place: where they are, for messages.

    Raises:
        ValueError: no file can be opened.
    """
    sides, looked_at = [], min(count, MOST_FILES)
    for number in range(looked_at):
        with (
            suppress(Exception),  # a damaged file raises errors of any type
            Image.open(BytesIO(read(number * count // looked_at)), formats=FORMATS) as image,
        ):
            sides.append(min(image.size))
    if not sides:
        raise ValueError(f"{place} must hold images ({', '.join(FORMATS)}), and none can be opened; replace them")
    return sides


def fitting_size(count: int, read: Callable[[int], bytes], place: Path) -> int:
    """The largest of SIZES that enlarges at most half of the images; the smallest where all do. See `shorter_sides`."""
    middle = median(shorter_sides(count, read, place))
    return max((size for size in SIZES if size <= middle), default=SIZES[0])
