"""The one decoder of image files: of data sets, captioned shards, edits, masks, references and adapters.

    decode(data: bytes | Path, background: str = "white") -> Decoded(image, notes)
    flatten(image: PIL.Image.Image, background: str = "white") -> Decoded(image, notes)     # one that is open already

`image` has 8 bits a channel, no alpha and no rotation left: of mode "L" where all its pixels are grey, whatever the
file's, else "RGB". `notes` say in words what was changed, to be counted: "transparent on white", "rotated". `decode`
raises a ValueError, and no other error, for what cannot be read whole. `check_background` checks the setting.
"""

import re
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

VERSION = 1  # part of the key of every cache of images: raise it where decoded pixels change
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no other is opened: Pillow hands PostScript to Ghostscript
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
WHITE, BLACK = "white", "black"
# A PNG's transparent colour is stored in the bits of the file, and Pillow has scaled the pixels to 8.
TURNED = range(2, 9)  # the orientations of EXIF that are not upright
SCALED_BITS = {"L;2": 85, "L;4": 17}
Pixels = UInt8[np.ndarray, "*batch channels height width"]


class Decoded(NamedTuple):
    """An image of mode L (all grey) or RGB, and what was changed to make it one, in words."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def check_background(background: str) -> tuple[int, int, int]:
    """The red, green and blue of `white`, `black` or `#rrggbb`, each 0 to 255.

    Raises:
        ValueError: it is none of them.
    """
    if background not in (WHITE, BLACK) and not re.fullmatch("#[0-9a-fA-F]{6}", background):
        raise ValueError(f"dataset.background must be white, black or a colour '#rrggbb', got {background!r}")
    red, green, blue = ImageColor.getrgb(background)[:3]
    return red, green, blue


def decode(data: bytes | Path, background: str = WHITE) -> Decoded:
    """Decode the bytes or the file of a JPEG, PNG, WebP, BMP, GIF or TIFF; see the module.

    Raises:
        ValueError: it is none of these, damaged, too large, or of pixels whose range is unknown.
    """
    try:
        with Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            return flatten(image, background)
    except UnidentifiedImageError as error:
        raise ValueError("no JPEG, PNG, WebP, BMP, GIF or TIFF") from error
    except Exception as error:  # a damaged file raises errors of any type
        raise ValueError(str(error) or type(error).__name__) from error


def flatten(image: Image.Image, background: str = WHITE) -> Decoded:
    """An open image, its first frame, turned as its EXIF says and put on the background.

    Raises:
        ValueError: the pixels are of more than 16 bits or floating-point numbers.
    """
    colour, notes = check_background(background), []
    raw_mode = raw_mode_of(image)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a JPEG with previews of itself
        notes.append("first of several frames")
    image, is_turned = turned(image)
    if is_turned:
        notes.append("rotated")
    if "16" in raw_mode or image.mode.startswith("I"):
        notes.append("16 bits to 8")
    if image.mode == "CMYK":
        notes.append("CMYK to RGB")
    alpha = alpha_of(image, raw_mode)
    image = eight_bits(image)
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of alphas in the palette
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if alpha is not None and alpha.getextrema()[0] != 255:
        notes.append(f"transparent on {background}")
        image = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, colour), alpha)
    return Decoded(image.getchannel(0) if is_grey(image) else image, tuple(notes))


def raw_mode_of(image: Image.Image) -> str:
    """The layout of the pixels in the file, like "RGB;16B"; "" where it is not known or the image was not of a file."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def turned(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image as its EXIF says it is to be shown, and whether that changed it; damaged EXIF says nothing."""
    before = orientation(image)
    image.load()  # turns a TIFF
    is_turned = orientation(image) in TURNED
    return ImageOps.exif_transpose(image) if is_turned else image, is_turned or before in TURNED


def orientation(image: Image.Image) -> int:
    """The orientation that the EXIF says, 1 (none) where it is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of any type, and the pixels are there
        return 1


def alpha_of(image: Image.Image, raw_mode: str) -> Image.Image | None:
    """The alpha channel, mode L; None where there is none. A single transparent colour has alpha 0, others 255."""
    if not image.has_transparency_data:
        return None
    key = image.info.get("transparency")
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        return image.convert("RGBA").getchannel("A")
    key = np.asarray(key) * SCALED_BITS.get(raw_mode, 1)
    if raw_mode.startswith("RGB;16"):
        key = key >> 8
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    differs = pixels != key
    return Image.fromarray(np.where(differs.any(2) if differs.ndim == 3 else differs, np.uint8(255), np.uint8(0)))


def eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit image scaled to 8 bits, which Pillow would clip at 255; others unchanged.

    Raises:
        ValueError: the pixels are floating-point numbers, or of more than 16 bits, whose range is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"an image must have pixels of 8 or 16 bits, and one is of mode {image.mode}; convert it")
    return Image.fromarray((pixels // 257).astype(np.uint8))


def is_grey(image: Image.Image) -> bool:
    """Whether all pixels of an L or RGB image are grey; a few are looked at first, where most colour images show it."""
    if image.mode == "L":
        return True
    few = image.resize((min(image.width, 16), min(image.height, 16)), Image.Resampling.NEAREST)
    return all(bool((pixels == pixels[..., :1]).all()) for pixels in map(np.asarray, (few, image)))


def luminance(pixels: Pixels) -> Pixels:
    """One channel of three, by the weights of ITU-R 601 as Pillow's mode L; grey stays exactly what it was."""
    red, green, blue = (pixels[..., number, :, :].astype(np.uint32) for number in range(3))
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return grey.astype(np.uint8)[..., None, :, :]
