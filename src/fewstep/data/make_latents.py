"""Encode an image data set once: float16 shards of mean and variance, each whole or not there, then the manifest."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.data.batches import ImagesInMemory, from_uint8
from fewstep.data.latents import FORMAT, LABELS, MANIFEST, REFERENCE, REFERENCE_LABELS
from fewstep.networks.frozen.autoencoder import Autoencoder
from fewstep.system.files import atomic_write, sha256_of, tensor_digest

PER_FILE = 8192  # rows: 64 MiB a file at 4 x 32 x 32
UNFINISHED = "unfinished.json"
LARGEST = float(np.finfo(np.float16).max)


def make_latents(
    source: ImagesInMemory,
    autoencoder: Autoencoder,
    out: Path,
    *,
    batch_size: int = 64,
    per_file: int = PER_FILE,
    num: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[int]:
    """Write the latents of the training images of `source`, in their order, and its held-out images, into `out`.

    Of all of them, or of `num`, evenly spaced.

    Yields how many images are encoded so far, after each batch. Interrupted, the same call goes on at the first file
    that is not there; of finished latents it makes those files anew that have changed since. The manifest comes last:
    without it nothing in the folder is read as data.

    Raises:
        ValueError: `out` holds or is becoming something else, or the autoencoder does not take these images.
        OSError: the disk is full; what is there stays good.
    """
    facts = source.facts
    count = min(num or len(source.labels), len(source.labels))
    chosen = torch.arange(count) * len(source.labels) // count
    about = {
        "format": FORMAT,
        "source": facts.name,
        "source_sha256": fingerprint(source),
        "image_shape": list(facts.shape),
        "num_classes": facts.num_classes,
        "shape": list(autoencoder.latent_shape(facts.shape)),
        "scaling_factor": autoencoder.scaling_factor,
        "shift_factor": autoencoder.shift_factor,
        "autoencoder_sha256": autoencoder.digest,
        "count": count,
        "per_file": per_file,
    }
    claim(out, about)
    names = [f"latents-{number:05d}.npy" for number in range(-(-count // per_file))]
    for number, name in enumerate(names):
        start, stop = number * per_file, min(count, (number + 1) * per_file)
        if not (out / name).is_file():
            rows = []
            for first in range(start, stop, batch_size):
                index = chosen[first : min(stop, first + batch_size)]
                mean, variance = autoencoder.encode(from_uint8(source.images[index]).to(device))
                rows.append(torch.stack([mean, variance], 1).clamp(-LARGEST, LARGEST).half().cpu().numpy())
                yield first + len(index)
            save_array(out / name, np.concatenate(rows))
        yield stop
    held_out = source.reference()
    save_array(out / LABELS, source.labels[chosen].numpy())
    save_array(out / REFERENCE, ((held_out.x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())
    save_array(out / REFERENCE_LABELS, held_out.label.numpy())
    files = [*names, LABELS, REFERENCE, REFERENCE_LABELS]
    folder, here = autoencoder.folder.resolve(), out.resolve()
    about |= {
        "autoencoder": str(folder.relative_to(here) if folder.is_relative_to(here) else folder),
        "files": {name: sha256_of(out / name) for name in files},
    }
    write_json(out / MANIFEST, about)
    (out / UNFINISHED).unlink(missing_ok=True)


def claim(out: Path, about: dict[str, Any]) -> None:
    """Write down what the folder is to become, or check that it was to become that; remove what is damaged in it.

    Raises:
        ValueError: it was to become something else, or holds something else.
    """
    for left in out.glob(".latents-*.tmp"):  # of one that was killed
        left.unlink()
    for name in (MANIFEST, UNFINISHED):
        if (out / name).is_file():
            try:
                before = dict(json.loads((out / name).read_text()))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{out / name} cannot be read ({error}); choose another --out") from error
            other = [key for key, value in about.items() if before.get(key) != value]
            if other:
                raise ValueError(
                    f"{out} holds latents of another kind: their {other[0]} is {before.get(other[0])}, now it is "
                    f"{about[other[0]]}; choose another --out"
                )
            for file, digest in before.get("files", {}).items():
                if (out / file).is_file() and sha256_of(out / file) != digest:
                    warnings.warn(f"{out / file} has changed since it was made, and is made anew", stacklevel=2)
                    (out / file).unlink()
            return
    if out.is_dir() and any(out.glob("latents-*.npy")):
        raise ValueError(f"{out} holds latents of unknown origin; choose another --out")
    write_json(out / UNFINISHED, about)


def fingerprint(source: ImagesInMemory) -> str:
    """Digest of the labels and of 64 images, evenly spaced: enough to see that the data are others."""
    index = torch.arange(min(64, len(source.labels))) * len(source.labels) // min(64, len(source.labels))
    return tensor_digest({"images": source.images[index], "labels": source.labels})


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
