"""Images and labels in NumPy arrays: a .npz file, a .npy file, or a folder of .npy files."""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from fewstep.data.array_files import (
    HELD_OUT,
    ROWS,
    TRAIN,
    Pair,
    StoredArray,
    arrays_in,
    class_labels,
    in_channels_first,
    layout_of,
    pairs_in,
    range_of,
    to_bytes,
)
from fewstep.data.cache import PART_BYTES, Chunk, Part, Source
from fewstep.data.converted import ConvertedImages, every_nth, key_of, numbered, ranges
from fewstep.data.decode import WHITE, check_background, flatten
from fewstep.data.generate import generate_arrays
from fewstep.data.imagefiles import centre_crop
from fewstep.data.labels import NONE, OWN
from fewstep.system.limits import MOST_SIDE, require_count

Limits = tuple[float, float]


class ArraysData(ConvertedImages):
    """Images of the arrays at `root`, converted to squares of 8 bits; those of x_val or x_test are held out.

    Args:
        root: .npz, .npy, or a folder of .npy. labels: own, of the arrays; a .npy file; or those of `data.labels`.
        cache: folder for the converted images, by default ROOT.cache.
        size: side of the squares in pixels; None keeps that of the arrays, the shorter one.
        hold_out_every: N holds out every N-th image of each class, where there is no such split.
        background: that transparent images are put on: white, black or "#rrggbb".
        value_range: what black and white are stored as; None recognises it.
        The rest: see `ConvertedImages`.

    Raises:
        ValueError: `root` is not there, damaged, or holds nothing that can be images with labels.
    """

    dataset = "arrays"
    advice = "make it with np.savez(FILE, images=..., labels=...), images as N H W, N H W C or N C H W"
    generate = staticmethod(generate_arrays)

    def __init__(
        self,
        *,
        root: str,
        batch_size: int,
        stream: str,
        labels: str = OWN,
        cache: str | None = None,
        size: int | None = None,
        hold_out_every: int = 10,
        background: str = WHITE,
        value_range: tuple[float, ...] | None = None,
        flip: bool = False,
        num_reference: int = 10_000,
        generated: bool = False,
    ) -> None:
        if size is not None:
            require_count(size, "dataset.size", most=MOST_SIDE)
        check_background(background)
        if value_range is not None and (len(value_range) != 2 or value_range[0] >= value_range[1]):
            raise ValueError(f"dataset.value_range must be [BLACK,WHITE], BLACK below WHITE, got {list(value_range)}")
        limits = None if value_range is None else (value_range[0], value_range[1])
        self.reading = partial(ArrayReading.of, labels=labels, size=size, background=background, limits=limits)
        super().__init__(
            root=root,
            source=lambda place: self.reading(place).source(hold_out_every),
            cache=cache,
            suffix=".cache" if size is None else f".{size}.cache",
            is_right=lambda shape: size in (None, shape[1]),
            background=background,
            batch_size=batch_size,
            stream=stream,
            flip=flip,
            num_reference=num_reference,
            generated=generated,
        )

    def in_words(self) -> list[str]:
        return self.reading(self.place).in_words()


class ArrayReading:
    """How the arrays of a place are read.

    Attributes:
        splits: images and labels of train and val; labels are None where there are none. side: of the squares.
    """

    def __init__(
        self,
        splits: dict[str, Pair],
        classes: dict[str, Shaped[np.ndarray, "count"]],
        *,
        side: int,
        background: str,
        limits: Limits | None,
    ) -> None:
        self.splits, self.classes, self.side = splits, classes, side
        self.background, self.given_limits = background, limits

    @cached_property
    def limits(self) -> Limits:
        """The stored values of black and white; recognising them reads the arrays."""
        if self.given_limits is not None:
            return self.given_limits
        found = {images.title: range_of(images) for images, _ in self.splits.values() if images.shape[0]}
        if len({*found.values()}) > 1:
            ranges = " and ".join(f"{title} from {low:g} to {high:g}" for title, (low, high) in found.items())
            raise ValueError(
                f"images must be stored in one range, and {ranges}; store them alike, or say what black and white are "
                "with dataset.value_range=[BLACK,WHITE]"
            )
        return found[self.splits[TRAIN].images.title]

    @classmethod
    def of(
        cls, place: Path, *, labels: str, size: int | None, background: str, limits: Limits | None
    ) -> "ArrayReading":
        """Of the arrays at `place`.

        Raises:
            ValueError: they cannot be images with labels, or the splits do not go together.
        """
        found = pairs_in(arrays_in(place), place)
        splits = {TRAIN: found[TRAIN]}
        if held_out := found.get(HELD_OUT, found.get("test")):
            splits[HELD_OUT] = held_out
        if labels == NONE:
            splits = {split: Pair(images, None) for split, (images, _) in splits.items()}
        if labels.endswith(".npy"):
            (given,) = arrays_in(Path(labels)).values()
            splits[TRAIN] = Pair(found[TRAIN].images, given)
        shapes = {split: layout_of(pair.images.shape, pair.images.title)[1] for split, pair in splits.items()}
        if len({*shapes.values()}) > 1:
            raise ValueError(f"{place} must have images of one shape, and has {shapes}; make them alike")
        classes = {}
        for split, (images, own) in splits.items():
            if own is None and (labels == OWN or labels.endswith(".npy")):
                raise ValueError(
                    f"{place} has no labels beside {images.title}: add an array of them ({split}_labels), say "
                    "dataset.labels=FILE.npy, or dataset.labels=none (guidance is off then)"
                )
            count = images.shape[0]
            classes[split] = np.zeros(count, np.int64) if own is None else class_labels(own, count)
        side = size or min(shapes[TRAIN][1:])
        return cls(splits, classes, side=side, background=background, limits=limits)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the converted images: one channel for grey ones, unless they are put on a background of colour."""
        channels, _, _ = layout_of(self.splits[TRAIN].images.shape, "")[1]
        is_grey = channels == 1 or (channels == 2 and len(set(check_background(self.background))) == 1)
        return 1 if is_grey else 3, self.side, self.side

    def source(self, hold_out_every: int) -> Source:
        """What is converted into the cache."""
        names, train, held_out = numbered(self.classes[TRAIN], self.classes.get(HELD_OUT), "the file of arrays")
        if held_out is None:
            is_held_out, images = every_nth(train, hold_out_every), self.splits[TRAIN].images
            rows = {TRAIN: np.flatnonzero(~is_held_out), HELD_OUT: np.flatnonzero(is_held_out)}
            parts = {split: self.parts(split, images, rows[split], train[rows[split]]) for split in rows}
        else:
            labels = {TRAIN: train, HELD_OUT: held_out}
            parts = {
                split: self.parts(split, pair.images, np.arange(len(labels[split])), labels[split])
                for split, pair in self.splits.items()
            }
        return Source(parts, self.shape, names, self.background)

    def parts(
        self, split: str, images: StoredArray, rows: Int[np.ndarray, "count"], labels: Int[np.ndarray, "count"]
    ) -> list[Part]:
        """The parts of one split, those rows of its array."""
        found = []
        for number, chosen in enumerate(ranges(len(rows), max(1, PART_BYTES // int(np.prod(self.shape))))):
            given = rows[chosen], labels[chosen]
            key = key_of(images.stamp, images.key, self.side, self.background, self.given_limits, *given)
            found.append(Part(f"{split}-{number:05d}", key, len(given[0]), partial(self.chunks, images, *given)))
        return found

    def chunks(
        self, images: StoredArray, rows: Int[np.ndarray, "count"], labels: Int[np.ndarray, "count"]
    ) -> Iterator[Chunk]:
        """Those rows of an array, some at a time."""
        layout, (channels, height, width) = layout_of(images.shape, images.title)
        as_stored = channels in (1, 3) and height == width == self.side
        for chosen in ranges(len(rows), ROWS):
            pixels = to_bytes(in_channels_first(images.values[rows[chosen]], layout), self.limits)
            if as_stored:
                yield Chunk(pixels, labels[chosen])
                continue
            made, notes = zip(*(self.square(each) for each in pixels), strict=True)
            yield Chunk(np.stack(made), labels[chosen], notes=[note for each in notes for note in each])

    def square(self, pixels: UInt8[np.ndarray, "c h w"]) -> tuple[UInt8[np.ndarray, "3 side side"], tuple[str, ...]]:
        """The central square of an image, on the background where it is transparent, and what was changed."""
        image = Image.fromarray(
            pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        )  # of 2 or 4, alpha is last
        flat, notes = flatten(image, self.background)
        return centre_crop(flat, self.side), (*notes, "enlarged") if min(flat.size) < self.side else notes

    def in_words(self) -> list[str]:
        """A line for each array: what it is, and how it was read."""
        low, high = self.limits
        lines = []
        for split, (images, labels) in self.splits.items():
            layout, _ = layout_of(images.shape, images.title)
            own = "no labels" if labels is None else f"labels of {labels.title}"
            name = "training" if split == TRAIN else "held out"
            lines.append(f"{name}: {images.title} read as {layout}, {low:g} is black and {high:g} white; {own}")
        return lines
