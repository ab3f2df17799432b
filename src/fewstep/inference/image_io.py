"""Images and masks from files, converted to what a model takes; a warning says what was converted."""

import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from fewstep.data.decode import BLACK, Decoded, decode, flatten
from fewstep.data.facts import DataFacts

Size = tuple[int, int]  # width, height, as PIL has it
MODES = {1: "L", 3: "RGB"}  # of Pillow, by channels


class LoadedImages(NamedTuple):
    """Images in [-1, 1] (points in their own range), their labels, and their sizes before conversion."""

    images: Float[Tensor, "count *image"]
    labels: Int[Tensor, "count"] | None
    sizes: list[Size]


def read_images(paths: Sequence[Path], facts: DataFacts) -> LoadedImages:
    """Read image files, and .npz files as `fewstep sample` writes them, in the order of `paths`.

    They are decoded as those of a data set, see `data.decode`; images of another size are centre-cropped and resized,
    grey and RGB turned into each other; a warning says which. `facts` are of the pixels.

    Raises:
        ValueError: no image, a file that is missing, truncated or no image, or arrays of another kind.
    """
    if not facts.is_image:
        return _read_points(paths, facts)
    pictures, labels = [], []
    for path in paths:
        if path.suffix == ".npz":
            arrays = _arrays(path)
            pictures += _pictures_of(arrays["images"], path)
            labels += _labels_of(arrays, path)
        else:
            pictures.append(_open(path, facts.background))
    _, height, width = facts.shape
    for change, count in Counter(filter(None, (_change(p, facts) for p in pictures))).items():
        warnings.warn(f"{count} image(s) {change}", stacklevel=2)
    mode = _mode(facts)
    fitted = [ImageOps.fit(p.image.convert(mode), (width, height), Image.Resampling.LANCZOS) for p in pictures]
    stack = torch.from_numpy(np.stack([np.asarray(p).reshape(height, width, -1) for p in fitted]))
    images = stack.permute(0, 3, 1, 2).float() / 127.5 - 1
    complete = torch.tensor(labels) if len(labels) == len(images) else None
    return LoadedImages(images, complete, [p.image.size for p in pictures])


def read_picture(path: Path, background: str) -> Float[Tensor, "3 height width"]:
    """An image of any size as RGB in [-1, 1], what is transparent on `background`; a warning says what was changed.

    Raises:
        ValueError: no image, or a file that is missing or truncated.
    """
    image, notes = _open(path, background)
    if notes:
        warnings.warn(f"{path}: {', '.join(notes)}", stacklevel=2)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def read_mask(given: str, sizes: Sequence[Size], facts: DataFacts) -> Bool[Tensor, "count *image"]:
    """The mask of each image, True where it is missing: left, right, top or bottom half, or a file.

    In an image file white (128 and more) is missing, black is kept, as in diffusers, and so is what is transparent; in
    an .npz the array `mask` is True or not 0 where something is missing, for one image or for each. An image file has
    the size of the images it is for, before or after their conversion, and is converted as they are: a pixel with a
    missing part is missing.

    Raises:
        ValueError: a mask of another size, or that marks nothing, or a file that cannot be read.
    """
    shape = (len(sizes), *facts.shape)
    if given in ("left", "right", "top", "bottom") and facts.is_image:
        half = torch.zeros(facts.shape[1:], dtype=torch.bool)
        along = half if given in ("top", "bottom") else half.T  # a view: rows of it are columns of the image
        middle = len(along) // 2
        along[slice(middle) if given in ("top", "left") else slice(middle, None)] = True
        return half.expand(shape)
    path = Path(given)
    if path.suffix == ".npz":
        mask = _arrays(path, "mask")["mask"]
        if mask.dtype.kind not in "biuf" or not np.isfinite(mask).all():
            raise ValueError(f"the mask must be of finite numbers, not 0 where something is missing, got {mask.dtype}")
        missing = torch.as_tensor(mask != 0)
        try:
            missing = missing[:, None].expand(shape) if missing.ndim == 3 else missing.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"the mask must be for images of shape {facts.shape}, one or {len(sizes)} of them, and {path} has "
                f"the shape {tuple(missing.shape)}"
            ) from error
    elif facts.is_image:
        if not path.is_file():
            raise ValueError(f"the mask must be left, right, top, bottom or a file, and there is none at {given!r}")
        mask = _open(path, BLACK).image.convert("L").point([0] * 128 + [255] * 128)
        missing = torch.stack([_fit_mask(mask, size, facts, path) for size in sizes])[:, None].expand(shape)
    else:
        raise ValueError(f"the mask of points must be an .npz with the array mask, got {path}")
    if not missing.any():
        raise ValueError(f"the mask must mark what is missing, white or True, and {path} marks nothing")
    return missing


def _fit_mask(mask: Image.Image, size: Size, facts: DataFacts, path: Path) -> Bool[Tensor, "height width"]:
    target = (facts.shape[2], facts.shape[1])
    if mask.size not in (size, target):
        raise ValueError(
            f"a mask must have the size of its image, {size[0]} x {size[1]}, or of the model's, {target[0]} x "
            f"{target[1]}, and {path} has {mask.size[0]} x {mask.size[1]}; draw it on the image"
        )
    fitted = mask if mask.size == target else ImageOps.fit(mask, target, Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(fitted) > 0)


def _open(path: Path, background: str) -> Decoded:
    if not path.is_file():
        raise ValueError(f"an image must be a file, and there is none at {path}")
    try:
        return decode(path, background)
    except ValueError as error:
        raise ValueError(f"{path} is no image that can be read whole ({error}); give another, or an .npz") from error


def _mode(facts: DataFacts) -> str:
    if facts.shape[0] not in MODES:
        raise ValueError(f"images have 1 or 3 channels, and {facts.name} has {facts.shape[0]}")
    return MODES[facts.shape[0]]


def _change(picture: Decoded, facts: DataFacts) -> str | None:
    """What is changed in the picture, in words; None for nothing. Grey in three channels is as it was."""
    (image, notes), (channels, height, width) = picture, facts.shape
    done = list(notes)
    if channels == 1 and image.mode == "RGB":
        done.append("of colour made grey")
    if image.size != (width, height):
        done.append(f"centre-cropped and resized from {image.width} x {image.height} to {width} x {height}")
    return ", ".join(done) or None


def _arrays(path: Path, required: str = "images") -> dict[str, np.ndarray]:
    try:
        if path.is_file() and not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and advise to open it
            raise ValueError("an .npz is a zip file")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError as error:
        raise ValueError(f"an .npz must be a file, and there is none at {path}") from error
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or no .npz of plain arrays ({error}); make it again") from error
    if required not in arrays:
        raise ValueError(f"{path} must hold the array {required!r}, and it holds {sorted(arrays)}")
    return arrays


def _pictures_of(images: np.ndarray, path: Path) -> list[Decoded]:
    if images.ndim != 4 or images.shape[3] not in MODES or images.dtype != np.uint8 or not images.size:
        raise ValueError(
            f"images in an .npz must be uint8 (count, height, width, 1 or 3 channels), as `fewstep sample` writes "
            f"them, and {path} has {images.dtype} {images.shape}"
        )
    return [flatten(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)) for image in images]


def _labels_of(arrays: dict[str, np.ndarray], path: Path) -> list[int]:
    labels = arrays.get("labels")
    if labels is None or labels.dtype.kind == "U":  # prompts, as `fewstep sample` writes them, are no classes
        return []
    if labels.shape != arrays["images"].shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"{path} must have one whole number per image as label, got {labels.dtype} {labels.shape}")
    return labels.astype(np.int64).tolist()


def _read_points(paths: Sequence[Path], facts: DataFacts) -> LoadedImages:
    points, labels = [], []
    for path in paths:
        arrays = _arrays(path)
        if arrays["images"].shape[1:] != facts.shape or arrays["images"].dtype.kind != "f":
            raise ValueError(
                f"{facts.name} is of points {facts.shape}, float, in an .npz under `images`; {path} has "
                f"{arrays['images'].dtype} {arrays['images'].shape}"
            )
        points.append(torch.from_numpy(arrays["images"]).float())
        labels += _labels_of(arrays, path)
    images = torch.cat(points)
    if not len(images) or not bool(torch.isfinite(images).all()):
        raise ValueError(f"points must be finite and at least one, got {len(images)} from {paths[0]}")
    complete = torch.tensor(labels) if len(labels) == len(images) else None
    return LoadedImages(images, complete, [(0, 0)] * len(images))
