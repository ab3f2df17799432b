"""Any folder or zip of images, a sub-folder for each class."""

from pathlib import Path

from fewstep.data.cache import MANIFEST, OUTDATED, Source, cached, stored_key
from fewstep.data.decode import WHITE, check_background
from fewstep.data.facts import DataFacts
from fewstep.data.generate import generate_imagefolder, generated_folder
from fewstep.data.imagefiles import HELD_OUT, image_source
from fewstep.data.split import SplitImages, missing_data_error


class ImageFolderData(SplitImages):
    """Images of `root`, cropped to squares as in ADM and cached; `split_by_class` chooses those held out.

    Args:
        root: a folder or a zip. cache: folder for the converted images, by default ROOT.SIZE.cache.
        size: of the squares, in pixels.
        hold_out_every: N holds out every N-th image of each class, where there is no folder val.
        strict: refuse a damaged image instead of skipping it with a warning.
        background: that transparent images are put on: white, black or "#rrggbb".
        channels: 1 (grey) or 3; auto: 1 where all training images are grey.
        flip: mirror training images at random.
        num_reference: the most held-out images in the reference.
        generated: use generated files if `root` does not exist.

    Raises:
        ValueError: `root` does not exist, or is not such a folder or zip; or a setting outside its range.
    """

    dataset = "imagefolder"
    advice = "make it a folder or a zip with a sub-folder of images for each class"
    cache_suffix = ".{size}.cache"
    generate = staticmethod(generate_imagefolder)

    def __init__(
        self,
        *,
        root: str,
        size: int,
        batch_size: int,
        stream: str,
        cache: str | None = None,
        hold_out_every: int = 10,
        strict: bool = False,
        background: str = WHITE,
        channels: str | int = "auto",
        flip: bool = False,
        num_reference: int = 10_000,
        generated: bool = False,
    ) -> None:
        check_background(background)
        place = Path(root)
        if generated and not place.exists():
            place = generated_folder(place, self.dataset, self.generate)
        folder = Path(cache) if cache else place.with_name(place.name + self.cache_suffix.format(size=size))
        if not place.exists() and stored_key(folder) is None:
            if (folder / MANIFEST).is_file():
                raise ValueError(f"the cache {folder} {OUTDATED}, and {place} is not there to make it again; bring it")
            raise missing_data_error(self.dataset, place, self.advice)
        source = self.source(place, size, hold_out_every, strict, background, channels) if place.exists() else None
        self.cache = cached(folder, source)
        if self.cache.shape not in [(c, size, size) for c in (1, 3) if channels in ("auto", c)] or (
            self.cache.background != background
        ):
            raise ValueError(
                f"the cache {folder} has images {self.cache.shape} on {self.cache.background}, not as the settings "
                f"say, and {place} is not there to make it again; put it back, or change dataset.size, channels and "
                "background"
            )
        self.hold_out_every = hold_out_every
        num_classes = len(self.cache.classes)
        super().__init__(
            facts=DataFacts(self.dataset, self.cache.shape, num_classes, -1.0, 1.0, background=background),
            train=self.cache.examples("train"),
            held_out=self.cache.examples(HELD_OUT),
            batch_size=batch_size,
            stream=stream,
            flip=flip,
            num_reference=num_reference,
            class_names=self.cache.classes,
        )

    def source(
        self, root: Path, size: int, hold_out_every: int, strict: bool, background: str, channels: str | int
    ) -> Source:
        """What is converted into the cache."""
        return image_source(
            root, size=size, hold_out_every=hold_out_every, strict=strict, background=background, channels=channels
        )

    def check(self) -> list[str]:
        changes = f"{len(self.cache.skipped)} damaged images left out, {self.cache.changes or 'none changed'}"
        lines = [*super().check(), *self.cache.verify(), changes, f"classes: {', '.join(self.cache.classes[:10])}"]
        if missing := self.facts.num_classes - len(self.held_out.labels.unique()):
            lines.append(
                f"held out: none of {missing} class(es), which figures leave out; without a folder {HELD_OUT}/CLASS a "
                f"class needs {self.hold_out_every} images (dataset.hold_out_every)"
            )
        return lines
