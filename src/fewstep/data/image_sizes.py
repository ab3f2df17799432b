"""The size of squares that fits the images of a folder or a zip: dataset.size=auto."""

from contextlib import suppress
from io import BytesIO
from statistics import median

from PIL import Image

from fewstep.data.decode import FORMATS
from fewstep.data.imagefiles import ImageFiles

AUTO = "auto"
SIZES = (8, 16, 24, 28, 32, 48, 64)  # pixels: those that the networks of model=auto take; larger ones are asked for
MOST_FILES = 1000  # whose headers are read, evenly spaced


def shorter_sides(files: ImageFiles) -> list[int]:
    """The shorter side in pixels of each of at most MOST_FILES images; damaged files have none.

    Raises:
        ValueError: no file can be opened.
    """
    count, sides = len(files.files), []
    for number in range(min(count, MOST_FILES)):
        with suppress(Exception):  # a damaged file raises errors of any type
            name = files.files[number * count // min(count, MOST_FILES)].name
            with Image.open(BytesIO(files.read(name)), formats=FORMATS) as image:
                sides.append(min(image.size))
    if not sides:
        raise ValueError(f"{files.root} must hold images ({', '.join(FORMATS)}), and none can be opened; replace them")
    return sides


def fitting_size(files: ImageFiles) -> int:
    """The largest of SIZES that enlarges at most half of the images; the smallest where all do."""
    middle = median(shorter_sides(files))
    return max((size for size in SIZES if size <= middle), default=SIZES[0])
