"""Encode an image data set: float16 files of mean and variance, each written atomically, and last the manifest."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from fewstep.data.batches import ImagesInMemory, from_uint8, source_digest
from fewstep.data.latents import FORMAT, LABELS, MANIFEST, REFERENCE, REFERENCE_LABELS
from fewstep.networks.frozen.autoencoder import Autoencoder
from fewstep.system.files import atomic_write, remove, sha256_of, write_json
from fewstep.system.stored import read_json
from fewstep.system.validation import checked

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
    """Write the latents of the training images of `source` and its held-out images into `out`; yield the progress.

    Yields the number of images encoded so far, after each batch. After an interruption the same call resumes with the
    first missing file, and rewrites files that have changed since. The manifest is written last; a folder without it
    is not read as data.

    Args:
        num: of the training images, evenly spaced; None for all.

    Raises:
        ValueError: `out` holds other latents, finished or not, or the autoencoder does not take these images.
        OSError: the disk is full; finished files are kept.
    """
    count = min(num or len(source.labels), len(source.labels))
    chosen = torch.arange(count) * len(source.labels) // count
    manifest = manifest_of(source, autoencoder) | {"count": count, "per_file": per_file}
    prepare_folder(out, manifest)
    names = [f"latents-{number:05d}.npy" for number in range(-(-count // per_file))]
    for number, name in enumerate(names):
        start, stop = number * per_file, min(count, (number + 1) * per_file)
        if not (out / name).is_file():
            rows = []
            for index in chosen[start:stop].split(batch_size):
                mean, variance = autoencoder.encode(from_uint8(source.images[index]).to(device))
                rows.append(torch.stack([mean, variance], 1).clamp(-LARGEST, LARGEST).half().cpu().numpy())
                yield start + sum(map(len, rows))
            save_array(out / name, np.concatenate(rows))
        yield stop
    held_out = source.reference()
    save_array(out / LABELS, source.labels[chosen].numpy())
    save_array(out / REFERENCE, ((held_out.x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())
    save_array(out / REFERENCE_LABELS, held_out.label.numpy())
    files = [*names, LABELS, REFERENCE, REFERENCE_LABELS]
    folder, base = autoencoder.folder.resolve(), out.resolve()
    manifest |= {
        "autoencoder": str(folder.relative_to(base) if folder.is_relative_to(base) else folder),
        "files": {name: sha256_of(out / name) for name in files},
    }
    write_json(out / MANIFEST, manifest)
    (out / UNFINISHED).unlink(missing_ok=True)


def manifest_of(source: ImagesInMemory, autoencoder: Autoencoder) -> dict[str, Any]:
    """The manifest's description of the images and of the autoencoder."""
    facts = source.facts
    return {
        "format": FORMAT,
        "source": facts.name,
        "source_sha256": source_digest(source),
        "image_shape": list(facts.shape),
        "num_classes": facts.num_classes,
        "shape": list(autoencoder.latent_shape(facts.shape)),
        "scaling_factor": autoencoder.scaling_factor,
        "shift_factor": autoencoder.shift_factor,
        "autoencoder_sha256": autoencoder.digest,
    }


def prepare_folder(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest as unfinished, or compare it with the one there; remove damaged and temporary files.

    Raises:
        ValueError: the folder holds other latents, finished or not.
    """
    for temporary in out.glob(".latents-*.tmp"):  # of a killed process
        remove(temporary)
    for name in (MANIFEST, UNFINISHED):
        if (out / name).is_file():
            previous: dict[str, Any] = read_json(out / name, dict[str, JsonValue], "choose another --out")
            changed = [key for key, value in manifest.items() if previous.get(key) != value]
            if changed:
                raise ValueError(
                    f"{out} holds latents of another kind: their {changed[0]} is {previous.get(changed[0])}, now it is "
                    f"{manifest[changed[0]]}; choose another --out"
                )
            for file, digest in checked(previous.get("files", {}), dict[str, str], f"files of {out / name}").items():
                if (out / file).is_file() and sha256_of(out / file) != digest:
                    warnings.warn(f"{out / file} has changed since it was made, and is made anew", stacklevel=2)
                    (out / file).unlink()
            return
    if out.is_dir() and any(out.glob("latents-*.npy")):
        raise ValueError(f"{out} holds latents of unknown origin; choose another --out")
    write_json(out / UNFINISHED, manifest)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
