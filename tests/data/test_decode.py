"""The decoder of image files: what each kind of file becomes, what it says of that, and what it refuses."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data.decode import check_background, decode, flatten, luminance

RED, BLUE = (255, 0, 0), (0, 0, 255)
HEX = "#0000ff"


def png(bits: int, colour_type: int, row: bytes, width: int = 2, **chunks: bytes) -> bytes:
    """One row of pixels, with the chunks in front of them: also of depths that Pillow does not write."""

    def chunk(name: str, content: bytes) -> bytes:
        tag = name.encode()
        return struct.pack(">I", len(content)) + tag + content + struct.pack(">I", zlib.crc32(tag + content))

    header = chunk("IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0))
    before = b"".join(chunk(name, content) for name, content in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk("IDAT", zlib.compress(b"\0" + row)) + chunk("IEND", b"")


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def saved(image: Image.Image, form: str, **settings: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def of(mode: str, *colours: object) -> Image.Image:
    image = Image.new(mode, (len(colours), 1))
    for x, colour in enumerate(colours):
        image.putpixel((x, 0), colour)  # pyright: ignore[reportArgumentType]
    return image


def row(data: bytes | Path, background: str = HEX) -> tuple[list, tuple[str, ...]]:
    """The first row of the decoded image, and what was said."""
    image, notes = decode(data, background)
    return np.asarray(image)[0].tolist(), notes


ALPHA = {
    "RGBA": (saved(of("RGBA", (*RED, 0), (*RED, 255)), "PNG"), [BLUE, RED]),
    "half": (saved(of("RGBA", (*RED, 51)), "PNG"), [[51, 0, 204]]),
    "LA": (saved(of("LA", (7, 0), (7, 255)), "PNG"), [BLUE, [7, 7, 7]]),
    "palette": (png(8, 3, b"\0\1", PLTE=bytes([1, 2, 3, *RED]), tRNS=b"\0\xff"), [BLUE, RED]),
    "alphas of a palette": (png(8, 3, b"\0\1", PLTE=bytes([0, 0, 0, *RED]), tRNS=b"\x33\0"), [[0, 0, 204], BLUE]),
    "1 bit, a colour": (png(1, 0, b"\x40", tRNS=words(1)), [[0, 0, 0], BLUE]),
    "2 bits, a colour": (png(2, 0, b"\x1b", 4, tRNS=words(2)), [[0] * 3, [85] * 3, BLUE, [255] * 3]),
    "4 bits, a colour": (png(4, 0, b"\x3c", tRNS=words(3)), [BLUE, [204] * 3]),
    "8 bits, a colour": (png(8, 2, bytes([1, 2, 3, *RED]), tRNS=words(1, 2, 3)), [BLUE, RED]),
    "16 bits grey, a colour": (png(16, 0, words(700, 65535), tRNS=words(700)), [BLUE, [255] * 3]),
    "16 bits, a colour": (png(16, 2, words(65535, 512, 0, 65535, 0, 0), tRNS=words(65535, 512, 0)), [BLUE, RED]),
    "16 bits of alpha": (png(16, 6, words(65535, 0, 0, 0, 65535, 0, 0, 65535)), [BLUE, RED]),
    "16 bits of grey and alpha": (png(16, 4, words(9, 0, 512, 65535)), [BLUE, [2] * 3]),
    "TIFF": (saved(of("RGBA", (*RED, 0), (*RED, 255)), "TIFF"), [BLUE, RED]),
}


@pytest.mark.parametrize("kind", ALPHA)
def test_what_is_transparent_is_put_on_the_background(kind: str) -> None:
    data, expected = ALPHA[kind]
    bits = ("16 bits to 8",) if kind.startswith("16") else ()
    assert row(data) == ([list(pixel) for pixel in expected], (*bits, "transparent on #0000ff"))


@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("black", 0), ("#808080", 128)])
def test_grey_on_grey_is_grey(background: str, expected: int) -> None:
    assert row(saved(of("LA", (7, 0), (7, 255)), "PNG"), background) == (
        [expected, 7],
        (f"transparent on {background}",),
    )


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_put_on_the_background(form: str) -> None:
    frames = [of("RGBA", (*RED, 0), (*RED, 255)), of("RGBA", (*BLUE, 255), (*BLUE, 255))]
    settings = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **settings)
    expected = ([[0, 0, 0], [*RED]], ("first of several frames", "transparent on black"))
    assert row(data, "black") == expected


PLAIN = {
    "opaque alpha": (saved(of("RGBA", (*RED, 255)), "PNG"), [[*RED]], ()),
    "grey": (saved(of("L", 3, 9), "PNG"), [3, 9], ()),
    "one bit": (saved(of("1", 0, 1), "PNG"), [0, 255], ()),
    "colour whose channels are equal": (saved(of("RGB", (3, 3, 3), (9, 9, 9)), "PNG"), [3, 9], ()),
    "colour in one pixel of many": (
        saved(of("RGB", *[(3, 3, 3)] * 40, (3, 3, 4)), "PNG"),
        [[3, 3, 3]] * 40 + [[3, 3, 4]],
        (),
    ),
    "palette": (saved(of("RGB", RED, BLUE).quantize(2), "BMP"), [[*RED], [*BLUE]], ()),
    "CMYK": (saved(of("CMYK", (0, 255, 255, 0)), "TIFF"), [[*RED]], ("CMYK to RGB",)),
    "16 bits": (png(16, 0, words(700, 65535)), [2, 255], ("16 bits to 8",)),
    "16 bits, the other end first": (saved(of("I;16B", 700, 65535), "TIFF"), [2, 255], ("16 bits to 8",)),
    "damaged EXIF": (saved(of("L", 3, 9), "PNG", exif=b"Exif\0\0no such thing"), [3, 9], ()),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_other_kinds_of_file(kind: str) -> None:
    data, expected, notes = PLAIN[kind]
    assert row(data) == (expected, notes)


def test_a_cmyk_jpeg_of_photoshop_is_no_negative() -> None:
    """Adobe stores it inverted, and says so in a marker that Pillow writes too."""
    (pixel,), notes = row(saved(of("CMYK", (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.subtract(pixel, RED)).max() < 12
    assert notes == ("CMYK to RGB",)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_image_is_turned_as_its_exif_says(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    image, notes = decode(saved(Image.new("L", (3, 2), 9), form, exif=exif))
    assert (image.size, notes) == ((2, 3), ("rotated",))


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[0, 1], [2, 3]]),
        (2, [[1, 0], [3, 2]]),
        (3, [[3, 2], [1, 0]]),
        (4, [[2, 3], [0, 1]]),
        (5, [[0, 2], [1, 3]]),
        (6, [[2, 0], [3, 1]]),
        (7, [[3, 1], [2, 0]]),
        (8, [[1, 3], [0, 2]]),
        (9, [[0, 1], [2, 3]]),
    ],
)
def test_the_orientations_of_exif(orientation: int, expected: list) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2))
    found, notes = decode(saved(image, "PNG", exif=exif))
    assert np.asarray(found).tolist() == expected
    assert notes == (("rotated",) if 1 < orientation < 9 else ())


NOISE = Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8))
REFUSED = {
    "nothing": (b"", "no JPEG, PNG, WebP, BMP, GIF or TIFF"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no JPEG, PNG"),
    "a format of Pillow that is not read": (saved(of("L", 3), "PPM"), "no JPEG, PNG"),
    "a cut PNG": (saved(NOISE, "PNG")[:-2000], "truncated"),
    "a cut JPEG": (saved(NOISE, "JPEG", quality=95)[:3000], "truncated"),
    "a cut GIF": (saved(NOISE, "GIF")[:3000], "truncated"),
    "floating point": (saved(of("F", 0.5), "TIFF"), "8 or 16 bits, and one is of mode F"),
    "32 bits": (saved(of("I", 100_000), "TIFF"), "8 or 16 bits, and one is of mode I"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_whole_is_one_error(kind: str) -> None:
    data, rule = REFUSED[kind]
    with pytest.raises(ValueError, match=rule):
        decode(data)


def test_a_size_that_no_memory_holds_is_refused_before_it_is_read() -> None:
    header = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(ValueError, match="exceeds limit"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk + png(8, 0, b"")[33:])


def test_a_file_and_an_open_image_are_decoded_alike(tmp_path: Path) -> None:
    path = tmp_path / "ä b.PNG"
    path.write_bytes(ALPHA["palette"][0])
    assert row(path) == ([[*BLUE], [*RED]], ("transparent on #0000ff",))
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(flatten(image, HEX).image), np.asarray(decode(path, HEX).image))


@pytest.mark.parametrize("background", ["red", "#fff", "#12345g", "", "ffffff", "#ffffff\n"])
def test_backgrounds_that_are_none(background: str) -> None:
    with pytest.raises(ValueError, match=r"dataset\.background must be white, black or a colour '#rrggbb', got"):
        check_background(background)


def test_luminance_is_pillows_and_keeps_grey() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(3, 50, 50), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(luminance(pixels)[0], expected)
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, None], 3, axis=0)
    assert np.array_equal(luminance(grey), grey[:1])
