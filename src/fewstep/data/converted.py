"""Images of one's own, of any source, converted once into a cache."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int, Shaped

from fewstep.data.cache import OUTDATED, TRAIN, Source, cached, stored_key
from fewstep.data.cache_files import MANIFEST
from fewstep.data.facts import DataFacts
from fewstep.data.generate import generated_folder
from fewstep.data.imagefiles import HELD_OUT
from fewstep.data.split import SplitImages, missing_data_error
from fewstep.system.terminal import printable


class ConvertedImages(SplitImages):
    """The base of data sets that differ in what is converted.

    Args:
        root: the files. source: what is converted, of the place where they are.
        cache: folder for the converted images; None for the root's name with `suffix`.
        is_right: whether converted images of that shape are as the settings say.
        background: that transparent images are put on. flip: mirror training images at random.
        num_reference: the most held-out images in the reference.
        generated: use generated files if `root` does not exist.

    Raises:
        ValueError: `root` does not exist, and no cache of these settings does; or see `source`.
    """

    dataset: ClassVar[str]
    advice: ClassVar[str]
    generate: ClassVar[Callable[[Path], None]]

    def __init__(
        self,
        *,
        root: str,
        source: Callable[[Path], Source],
        cache: str | None,
        suffix: str,
        is_right: Callable[[tuple[int, ...]], bool],
        background: str,
        batch_size: int,
        stream: str,
        flip: bool,
        num_reference: int,
        generated: bool,
    ) -> None:
        place = self.located(root, generated)
        folder = Path(cache).expanduser() if cache else place.with_name(place.name + suffix)
        if not place.exists() and stored_key(folder) is None:
            if (folder / MANIFEST).is_file():
                raise ValueError(f"the cache {folder} {OUTDATED}, and {place} is not there to make it again; bring it")
            raise missing_data_error(self.dataset, place, self.advice)
        self.place = place
        self.cache = cached(folder, source(place) if place.exists() else None)
        if not is_right(self.cache.shape) or self.cache.background != background:
            raise ValueError(
                f"the cache {folder} has images {self.cache.shape} on {self.cache.background}, not as the settings "
                f"say, and {place} is not there to make it again; put it back, or change dataset.size, channels and "
                "background"
            )
        num_classes = len(self.cache.classes)
        super().__init__(
            facts=DataFacts(self.dataset, self.cache.shape, num_classes, -1.0, 1.0, background=background),
            train=self.cache.examples(TRAIN),
            held_out=self.cache.examples(HELD_OUT),
            batch_size=batch_size,
            stream=stream,
            flip=flip,
            num_reference=num_reference,
            class_names=self.cache.classes,
        )

    @classmethod
    def located(cls, root: str, generated: bool) -> Path:
        """Where the files are, or those generated in the place of missing ones."""
        place = Path(root).expanduser()
        return generated_folder(place, cls.dataset, cls.generate) if generated and not place.exists() else place

    def in_words(self) -> list[str]:
        """How the files at `place` were read, a line each."""
        return []

    def check(self) -> list[str]:
        read = self.in_words() if self.place.exists() else []
        changes = f"{len(self.cache.skipped)} damaged images left out, {self.cache.changes or 'none changed'}"
        classes = f"classes: {', '.join(self.cache.classes[:10])}"
        lines = [*read, *super().check(), *self.cache.verify(), changes, classes]
        if missing := self.facts.num_classes - len(self.held_out.labels.unique()):
            lines.append(
                f"held out: none of {missing} class(es), which figures leave out; without a part of its own that is "
                "held out, a class needs as many images as dataset.hold_out_every"
            )
        return lines


def every_nth(labels: Int[np.ndarray, "count"], every: int) -> Bool[np.ndarray, "count"]:
    """Whether an image is held out: the `every`-th, 2 `every`-th, ... of its class.

    Raises:
        ValueError: `every` is below 2, or there are images and none is held out.
    """
    if every < 2:
        raise ValueError(f"dataset.hold_out_every must be at least 2, got {every}")
    order = labels.argsort(kind="stable")
    ordered = labels[order]
    number = np.empty_like(order)
    number[order] = np.arange(len(labels)) - ordered.searchsorted(ordered)
    most = int(number.max(initial=-1)) + 1
    if 0 < most < every:
        fewer = f"set dataset.hold_out_every to at most {most}" if most > 1 else "add images"
        raise ValueError(
            f"there are at most {most} image(s) of a class, so that none is number {every} of its class, held out for "
            f"figures; {fewer}, or give a part that is held out"
        )
    return (number + 1) % every == 0


def numbered(
    train: Shaped[np.ndarray, "train"], held_out: Shaped[np.ndarray, "held"] | None, what: str
) -> tuple[list[str], Int[np.ndarray, "train"], Int[np.ndarray, "held"] | None]:
    """The sorted names of the classes of the training labels, and the number of each label among them.

    Args:
        held_out: labels of a split of its own, None where there is none. what: names the data in messages.

    Raises:
        ValueError: a class is held out and not trained on.
    """
    classes, labels = np.unique(train, return_inverse=True)
    names = [printable(each) for each in classes]
    if held_out is None:
        return names, labels, None
    unknown = np.setdiff1d(held_out, classes)
    if len(unknown):
        raise ValueError(f"{what} holds out the class {unknown[0]}, which is not among those to train on; add it")
    return names, labels, classes.searchsorted(held_out)


def key_of(*parts: object) -> str:
    """Hex SHA-256 of what a part of a cache is made of; arrays count with their bytes."""
    found = sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else f"{part}\n".encode())
    return found.hexdigest()


def ranges(count: int, size: int) -> Sequence[slice]:
    """Consecutive slices of at most `size` of `count` things."""
    return [slice(start, start + size) for start in range(0, count, size)]
