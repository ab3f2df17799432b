"""A sample of a text shard: an image or its latent, and a caption or its embedding."""

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load as load_safetensors

from fewstep.data.decode import FORMATS, SUFFIXES
from fewstep.data.imagefiles import decoded_square
from fewstep.data.shards import Raw

PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
CAPTIONS = ("txt", "json")
LATENT, EMBEDDING, BOTH = "latent.npy", "text.npy", "safetensors"


class Sample(NamedTuple):
    """One example of a shard.

    Attributes:
        x: uint8 (3, size, size), or the latent: float32, a sample (C, h, w) or its mean and variance (2, C, h, w).
        caption: "" if there is none. embedding: float32 (tokens, features), or None if it is to be encoded.
        notes: what was changed in the image, in words.
    """

    x: np.ndarray
    caption: str
    embedding: np.ndarray | None
    notes: tuple[str, ...] = ()


def is_sample(extensions: set[str]) -> bool:
    """Whether files of these extensions are an image or its latent, and a caption or its embedding."""
    has_image = any(e in extensions for e in (*PICTURES, LATENT, BOTH))
    return has_image and any(e in extensions for e in (*CAPTIONS, EMBEDDING, BOTH))


def decode_sample(raw: Raw, *, size: int, background: str) -> Sample:
    """Decode a sample: images are cropped to their central square, resized and RGB.

    Raises:
        Exception: of any type: the sample is damaged.
    """
    tensors = load_safetensors(raw[BOTH]) if BOTH in raw else {}
    for name in {LATENT, EMBEDDING} & raw.keys():
        tensors[name.removesuffix(".npy")] = np.load(io.BytesIO(raw[name]), allow_pickle=False)
    x, notes = tensors.get("latent"), ()
    if x is None:
        data = next(raw[extension] for extension in PICTURES if extension in raw)
        x, notes = decoded_square(data, size, background)
    embedding = tensors.get("text")
    caption = caption_of(raw, needed=embedding is None)
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
    return Sample(x, caption, None if embedding is None else embedding.astype(np.float32), notes)


def caption_of(raw: Raw, *, needed: bool) -> str:
    """The caption of a sample, "" for none.

    Raises:
        ValueError: it is no text, or empty though it is needed; or it is in a .json that is none.
    """
    caption = raw["txt"].decode() if "txt" in raw else ""
    if not caption.strip() and "json" in raw:
        described = json.loads(raw["json"])
        caption = described.get("caption") if isinstance(described, dict) else None
    if isinstance(caption, str) and caption.strip():
        return caption.strip()
    if needed:
        fault = "is empty" if isinstance(caption, str) else "is null" if caption is None else "is no text"
        raise ValueError(f"its caption {fault}")
    return ""


def size_of(raw: Raw) -> list[tuple[int, int]]:
    """Width and height of a sample's image, from its header; nothing for a latent."""
    for extension in PICTURES:
        if extension in raw:
            with Image.open(io.BytesIO(raw[extension]), formats=FORMATS) as image:
                return [image.size]
    return []


def counts(raw_samples: Iterable[Raw], decode: Callable[[Raw], Sample | None]) -> Iterator[str]:
    """Lines with the number of samples, of good ones, of captions, and the sizes of the images in the files.

    Args:
        decode: gives None for a sample that is left out.
    """
    sizes, captions, number, good = set[tuple[int, int]](), Counter[str](), 0, 0
    for raw in raw_samples:
        number += 1
        if (sample := decode(raw)) is not None:
            good += 1
            sizes.update(size_of(raw))
            captions.update([sample.caption] if sample.caption else [])
    words = [len(caption.split()) for caption in captions] or [0]
    yield f"{number:,} samples, {good:,} of them good"
    yield f"captions: {captions.total():,}, {len(captions):,} of them different, of {min(words)} to {max(words)} words"
    if sizes:
        least, most = min(sizes, key=min), max(sizes, key=min)
        yield f"images: {least[0]} x {least[1]} to {most[0]} x {most[1]} pixels"


def warn_sometimes(message: str, count: int) -> None:
    """Warn of the first sample of a kind, the tenth, the hundredth and every thousandth."""
    if count in (1, 10, 100) or count % 1000 == 0:
        warnings.warn(f"{message}; {count:,} so far", stacklevel=3)
