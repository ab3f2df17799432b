"""Small generated files in the published formats of the data sets, to try a pipeline and for tests."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

SEED = 0
NUM_CLASSES = 4  # of 1000, so that a toy budget has several images of each


def pictures(labels: Int[np.ndarray, "count"], size: int, seed: int) -> UInt8[np.ndarray, "count 3 size size"]:
    """Sine waves; colour and direction depend on the class, phase and noise on the image."""
    random = np.random.default_rng([SEED, seed])
    y, x = np.mgrid[0:size, 0:size] * (2 * np.pi / size)
    angle = labels * 2.4  # about the golden angle in radians, so that consecutive classes differ
    phase = random.uniform(0, 2 * np.pi, len(labels))
    waves = np.sin(np.cos(angle)[:, None, None] * 3 * x + np.sin(angle)[:, None, None] * 3 * y + phase[:, None, None])
    colour = 0.5 + 0.4 * np.sin(angle[:, None] + np.arange(3) * 2.1)
    images = 255 * colour[:, :, None, None] * (0.6 + 0.4 * waves[:, None])
    return np.clip(images + random.normal(0, 8, images.shape), 0, 255).astype(np.uint8)


def generate_cifar10(folder: Path, *, per_batch: int = 60) -> None:
    """The official binary version, shortened: records of a label and 3 x 32 x 32 values."""
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        labels = np.arange(per_batch) % 10
        images = pictures(labels, 32, number).reshape(per_batch, -1)
        np.concatenate([labels.astype(np.uint8)[:, None], images], axis=1).tofile(batches / name)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    (batches / "batches.meta.txt").write_text("\n".join(names.split()) + "\n")


def generate_imagenet64(folder: Path, *, per_batch: int = 64, num_batches: int = 10, compress: bool = False) -> None:
    """The official npz batches, shortened: data uint8 (N, 12288), labels 1..1000, and in training batches the mean."""
    folder.mkdir(parents=True)
    save = np.savez_compressed if compress else np.savez
    for number in range(num_batches + 1):
        labels = np.arange(per_batch) % NUM_CLASSES + 1
        data = pictures(labels, 64, number).reshape(per_batch, -1)
        if number == num_batches:
            save(folder / "val_data.npz", data=data, labels=labels)
        else:
            path = folder / f"train_data_batch_{number + 1}.npz"
            save(path, data=data, labels=labels, mean=data.mean(0, dtype=np.float64))


def generate_imagefolder(folder: Path, *, num_classes: int = 4, per_class: int = 40) -> None:
    """A folder per class of PNG files of several sizes."""
    random = np.random.default_rng(SEED)
    for label in range(num_classes):
        class_folder = folder / f"class-{label}"
        class_folder.mkdir(parents=True)
        for number, image in enumerate(pictures(np.full(per_class, label), 96, label)):
            width, height = (int(size) for size in random.integers(64, 97, 2))
            Image.fromarray(image.transpose(1, 2, 0)[:height, :width]).save(class_folder / f"{number:03d}.png")


def generate_arrays(folder: Path, *, num_classes: int = 4, per_class: int = 40) -> None:
    """images.npy, uint8 N H W C of 32 pixels, and labels.npy."""
    folder.mkdir(parents=True)
    labels = np.arange(num_classes * per_class) % num_classes
    np.save(folder / "images.npy", pictures(labels, 32, SEED).transpose(0, 2, 3, 1))
    np.save(folder / "labels.npy", labels)


def generate_huggingface(folder: Path, *, num_classes: int = 4, per_class: int = 40) -> None:
    """What Dataset.save_to_disk makes, of images and classes."""
    from datasets import ClassLabel, Dataset, Features  # pyright: ignore[reportMissingImports]
    from datasets import Image as ImageFeature  # pyright: ignore[reportMissingImports]

    labels = np.arange(num_classes * per_class) % num_classes
    images = [Image.fromarray(image) for image in pictures(labels, 80, SEED).transpose(0, 2, 3, 1)]
    features = Features(image=ImageFeature(), label=ClassLabel(num_classes=num_classes))
    Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(folder)


@cache
def generated_folder(root: Path, name: str, generate: Callable[[Path], None]) -> Path:
    """The folder ROOT.generated, filled by `generate` if it does not exist; prints once per process that it is used."""
    folder = root.with_name(f"{root.name}.generated")
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            generate(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{root} is not there, so dataset={name} is tried on a few generated files: {folder}", flush=True)
    return folder


def generate_idx(folder: Path, *, num_train: int = 300, num_test: int = 60) -> None:
    """The four files of Fashion-MNIST, shortened: a header, then bytes."""
    folder.mkdir(parents=True)
    for number, (split, count) in enumerate({"train": num_train, "t10k": num_test}.items()):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = pictures(labels.astype(np.int64), 28, number)[:, 0]
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes())
