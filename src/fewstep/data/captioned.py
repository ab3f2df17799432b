"""A sample of a text shard: an image or its latent, and a caption or its embedding."""

import io
import json
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load as load_safetensors

from fewstep.data.imagefiles import centre_crop
from fewstep.data.shards import Raw

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
LATENT, EMBEDDING, BOTH = "latent.npy", "text.npy", "safetensors"


class Sample(NamedTuple):
    """One example of a shard.

    Attributes:
        x: uint8 (3, size, size), or the latent: float32, a sample (C, h, w) or its mean and variance (2, C, h, w).
        caption: "" if there is none. embedding: float32 (tokens, features), or None if it is to be encoded.
        mode: of the image file, before conversion to RGB.
    """

    x: np.ndarray
    caption: str
    embedding: np.ndarray | None
    mode: str = "RGB"


def is_sample(extensions: set[str]) -> bool:
    """Whether files of these extensions are an image or its latent, and a caption or its embedding."""
    has_image = any(e in extensions for e in (*PICTURES, LATENT, BOTH))
    return has_image and any(e in extensions for e in (*CAPTIONS, EMBEDDING, BOTH))


def decode_sample(raw: Raw, *, size: int) -> Sample:
    """Decode a sample: images are cropped to their central square, resized and converted to RGB.

    Raises:
        Exception: of any type: the sample is damaged.
    """
    tensors = load_safetensors(raw[BOTH]) if BOTH in raw else {}
    for name in {LATENT, EMBEDDING} & raw.keys():
        tensors[name.removesuffix(".npy")] = np.load(io.BytesIO(raw[name]), allow_pickle=False)
    caption = raw["txt"].decode() if "txt" in raw else json.loads(raw["json"])["caption"] if "json" in raw else ""
    x, mode = tensors.get("latent"), "RGB"
    if x is None:
        picture = Image.open(io.BytesIO(next(raw[extension] for extension in PICTURES if extension in raw)))
        x, mode = centre_crop(picture, size), picture.mode
    embedding = tensors.get("text")
    if embedding is None and not str(caption).strip():
        raise ValueError("its caption is empty")
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
    return Sample(x, str(caption).strip(), None if embedding is None else embedding.astype(np.float32), mode)
