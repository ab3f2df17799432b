"""Latents of images, made by `fewstep latents`: mean and variance, memory-mapped, sampled anew in every batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import ImagesInMemory, check_examples, class_balance, from_uint8
from fewstep.data.facts import DataFacts, LatentFacts
from fewstep.data.generate import generated_folder
from fewstep.data.mapped import MappedRows
from fewstep.data.split import missing_data_error
from fewstep.system.files import sha256_of
from fewstep.system.seeds import seed_for
from fewstep.system.stored import read_json
from fewstep.system.validation import Count, checked

if TYPE_CHECKING:
    from fewstep.networks.frozen.autoencoder import Autoencoder

MANIFEST = "latents.json"
LABELS, REFERENCE, REFERENCE_LABELS = "labels.npy", "reference.npy", "reference-labels.npy"
FEATURES = "features.safetensors"  # an extractor for the figures, where the images have no other
FORMAT = 1
REMEDY = "make the latents again with `fewstep latents`"
KEYS: dict[str, Any] = {
    "source": str,
    "source_sha256": str,
    "autoencoder": str,
    "autoencoder_sha256": str,
    "files": dict[str, str],
    "image_shape": tuple[int, ...],
    "shape": tuple[int, ...],
    "num_classes": Count,
    "per_file": Count,
    "scaling_factor": float,
    "shift_factor": float,
}


def read_moments(files: list[Path], per_file: int, shape: tuple[int, ...]) -> MappedRows:
    """Mean and variance of each latent, float16 (2, channels, height, width), in .npy files of `per_file` rows.

    Raises:
        ValueError: a file is truncated, or of another shape or dtype.
    """
    arrays = [read_array(file, mapped=True) for file in files]
    for file, array in zip(files, arrays, strict=True):
        count = len(array) if file == files[-1] and array.ndim else per_file
        if array.dtype != np.float16 or array.shape != (count, 2, *shape):
            raise ValueError(
                f"{file} must be float16 ({per_file}, 2, {', '.join(map(str, shape))}), and is {array.dtype} "
                f"{array.shape}; make the latents again"
            )
    return MappedRows(arrays)


class LatentsData(ImagesInMemory):
    """Latents as training data, sampled from N(mean, variance) in each batch, by the random numbers of its step.

    latents = (mean + sqrt(variance) eps - shift_factor) scaling_factor (Rombach et al. 2022, section 3.1). Samples are
    decoded and compared with the held-out *images*, so that figures include the error of the autoencoder.

    Args:
        root: the folder that `fewstep latents` made.
        autoencoder: its folder, if it has been moved since.
        generated: use latents of some patches by a random autoencoder if `root` does not exist.

    Raises:
        ValueError: a file is missing, truncated, or of another format.
    """

    dataset = "latents"
    reference_split = "held out images, before any encoding"

    def __init__(
        self, *, root: str, batch_size: int, stream: str, autoencoder: str | None = None, generated: bool = False
    ) -> None:
        self.root = Path(root)
        if generated and not self.root.exists():
            from fewstep.data.generate_text import generate_latents

            self.root = generated_folder(self.root, "latents", generate_latents)
        manifest = read_manifest(self.root, self.dataset)
        self.files: dict[str, str] = manifest["files"]
        for name in self.files:
            if not (self.root / name).is_file():
                raise ValueError(f"{self.root / name} is missing; make the latents again with `fewstep latents`")
        shards = [self.root / name for name in self.files if name.startswith("latents-")]
        moments = read_moments(shards, manifest["per_file"], tuple(manifest["shape"]))
        labels = torch.from_numpy(read_array(self.root / LABELS))
        if labels.dtype != torch.int64 or labels.shape != (len(moments),) or not len(labels):
            raise ValueError(
                f"{self.root} has {len(moments)} latents, and {labels.dtype} {tuple(labels.shape)} for their labels; "
                "make it again"
            )
        super().__init__(images=moments, labels=labels, batch_size=batch_size, stream=stream)
        latent = LatentFacts(
            tuple(manifest["image_shape"]),
            manifest["scaling_factor"],
            manifest["shift_factor"],
            manifest["autoencoder_sha256"],
            str(Path(self.root / manifest["autoencoder"] if autoencoder is None else autoencoder).resolve()),
        )
        self.facts = DataFacts(
            self.dataset, tuple(manifest["shape"]), manifest["num_classes"], low=-1000.0, high=1000.0, latent=latent
        )
        class_balance(self.facts, "training", self.labels)  # refuses labels out of range
        self.source: str = manifest["source"]
        self.source_sha256: str = manifest["source_sha256"]
        self._autoencoder: Autoencoder | None = None

    def selected(self, step: int, select: Callable[[Tensor], Tensor] = lambda batch: batch) -> Batch:
        moments, labels = self.pixels(step, select)
        mean, variance = moments.float().unbind(1)
        generator = torch.Generator().manual_seed(seed_for(self.stream, "latents", step))
        eps = select(torch.randn(self.batch_size, *mean.shape[1:], generator=generator))
        latent = self.facts.latent
        assert latent is not None
        return Batch((mean + variance.sqrt() * eps - latent.shift_factor) * latent.scaling_factor, labels)

    def reference(self) -> Batch:
        images = torch.from_numpy(read_array(self.root / REFERENCE))
        return Batch(from_uint8(images), torch.from_numpy(read_array(self.root / REFERENCE_LABELS)))

    @property
    def evaluation_facts(self) -> DataFacts:
        return replace(self.facts.pixels, name=self.source)  # the source's name, so that its feature net is used

    @property
    def features(self) -> Path | None:
        """The file of an extractor for the figures, if `fewstep latents` has kept one."""
        return self.root / FEATURES if (self.root / FEATURES).is_file() else None

    def decode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *image"]:
        if self._autoencoder is None:
            from fewstep.networks.frozen.autoencoder import Autoencoder

            assert self.facts.latent is not None
            self._autoencoder = Autoencoder.of(self.facts.latent)
        return self._autoencoder.decode(x).clamp(-1.0, 1.0)

    def preview(self) -> Batch:
        x, labels = self.batch(0)
        return Batch(self.decode(x), labels)

    def check(self) -> list[str]:
        for name, digest in self.files.items():
            if sha256_of(self.root / name) != digest:
                raise ValueError(
                    f"{self.root / name} has changed since it was made; make it again with `fewstep latents`"
                )
        first = self.batch(0)
        spread = f"standard deviation {first.x.std():.2f} (about 1 is right)"
        return [
            f"{len(self.files)} files with the checksums of {MANIFEST}, latents of {self.source}",
            class_balance(self.facts, "training", self.labels),
            *check_examples(self.facts, f"a training batch, {spread}", first),
            *check_examples(self.facts.pixels, "a training batch, decoded", self.preview()),
            *check_examples(self.facts.pixels, self.reference_split, self.reference()),
        ]


class OwnLatentsData(LatentsData):
    """Latents by an autoencoder of one's own, for which networks and budgets follow from their shape."""

    dataset = "own_latents"


def read_manifest(root: Path, name: str) -> dict[str, Any]:
    """The manifest of a folder of latents, for the data set of that name.

    Raises:
        ValueError: it is missing, since the folder is unfinished or not there; it is damaged, or of another version.
    """
    path = root / MANIFEST
    if not path.is_file():
        command = f"fewstep latents patches --autoencoder FOLDER --out {root}"
        maker = "`fewstep data autoencoder` makes FOLDER"
        advice = f"make it with `{command}`, which resumes after an interruption ({maker})"
        raise missing_data_error(name, root, advice)
    try:
        manifest: dict[str, Any] = read_json(path, dict[str, JsonValue], REMEDY)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
        for key, hint in KEYS.items():
            if key not in manifest:
                raise ValueError(f"it has no {key}")
            checked(manifest[key], hint, key)
        if not any(name.startswith("latents-") for name in manifest["files"]):
            raise ValueError("it names no latents")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}") from error
    return manifest


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, memory-mapped if `mapped`.

    Raises:
        ValueError: the file is missing, truncated or damaged.
    """
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is missing, truncated or damaged ({error}); make the latents again") from error
