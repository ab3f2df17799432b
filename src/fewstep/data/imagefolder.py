"""Any folder or zip of images, a sub-folder for each class."""

from pathlib import Path
from typing import Literal

from fewstep.data.cache import Source, cached, stored_key
from fewstep.data.facts import DataFacts
from fewstep.data.generate import generate_imagefolder, generated_folder
from fewstep.data.image_sizes import AUTO, fitting_size
from fewstep.data.imagefiles import HELD_OUT, ImageFiles, image_source
from fewstep.data.split import SplitImages, missing_data_error


class ImageFolderData(SplitImages):
    """Images of `root`, cropped to squares as in ADM and cached; `split_by_class` chooses those held out.

    Args:
        root: a folder or a zip. cache: folder for the converted images, by default ROOT.SIZE.cache.
        size: of the squares, in pixels; auto: see `fitting_size`.
        hold_out_every: N holds out every N-th image of each class, where there is no folder val.
        strict: refuse a damaged image instead of skipping it with a warning.
        flip: mirror training images at random.
        num_reference: the most held-out images in the reference.
        generated: use generated files if `root` does not exist.

    Raises:
        ValueError: `root` does not exist, or is not such a folder or zip.
    """

    dataset = "imagefolder"
    advice = "make it a folder or a zip with a sub-folder of images for each class"
    cache_suffix = ".{size}.cache"
    generate = staticmethod(generate_imagefolder)

    def __init__(
        self,
        *,
        root: str,
        size: int | Literal["auto"],
        batch_size: int,
        stream: str,
        cache: str | None = None,
        hold_out_every: int = 10,
        strict: bool = False,
        flip: bool = False,
        num_reference: int = 10_000,
        generated: bool = False,
    ) -> None:
        place = Path(root)
        if generated and not place.exists():
            place = generated_folder(place, self.dataset, self.generate)
        if size == AUTO:
            if not place.exists():
                raise missing_data_error(self.dataset, place, self.advice)
            size = fitting_size(ImageFiles(place))
        folder = Path(cache) if cache else place.with_name(place.name + self.cache_suffix.format(size=size))
        if not place.exists() and stored_key(folder) is None:
            raise missing_data_error(self.dataset, place, self.advice)
        source = self.source(place, size, hold_out_every, strict) if place.exists() else None
        self.cache = cached(folder, source)
        super().__init__(
            facts=DataFacts(self.dataset, self.cache.shape, len(self.cache.classes), -1.0, 1.0),
            train=self.cache.examples("train"),
            held_out=self.cache.examples(HELD_OUT),
            batch_size=batch_size,
            stream=stream,
            flip=flip,
            num_reference=num_reference,
        )

    def source(self, root: Path, size: int, hold_out_every: int, strict: bool) -> Source:
        """What is converted into the cache."""
        return image_source(root, size=size, hold_out_every=hold_out_every, strict=strict)

    def check(self) -> list[str]:
        skipped = f"{len(self.cache.skipped)} damaged images left out, {self.cache.conversions} converted"
        return [*super().check(), *self.cache.verify(), skipped, f"classes: {', '.join(self.cache.classes[:10])}"]
