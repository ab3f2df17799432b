"""Any folder or zip of images, a sub-folder for each class."""

from pathlib import Path
from typing import Literal

from fewstep.data.cache import Source
from fewstep.data.converted import ConvertedImages
from fewstep.data.decode import WHITE
from fewstep.data.generate import generate_imagefolder
from fewstep.data.image_sizes import AUTO, fitting_size
from fewstep.data.imagefiles import Decoding, ImageFiles, image_source
from fewstep.data.labels import OWN
from fewstep.data.split import missing_data_error


class ImageFolderData(ConvertedImages):
    """Images of `root`, cropped to squares as in ADM and cached; `split_by_class` chooses those held out.

    Args:
        root: a folder or a zip. cache: folder for the converted images, by default ROOT.SIZE.cache.
        size: of the squares, in pixels; auto: see `fitting_size`.
        labels: own, of the folders; a table of files and classes, .csv or .tsv; or those of `data.labels`.
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
        size: int | Literal["auto"],
        batch_size: int,
        stream: str,
        labels: str = OWN,
        cache: str | None = None,
        hold_out_every: int = 10,
        strict: bool = False,
        background: str = WHITE,
        channels: str | int = "auto",
        flip: bool = False,
        num_reference: int = 10_000,
        generated: bool = False,
    ) -> None:
        if size == AUTO:
            place = self.located(root, generated)
            if not place.exists():
                raise missing_data_error(self.dataset, place, self.advice)
            files = ImageFiles(place)
            size = fitting_size(len(files.files), lambda number: files.read(files.files[number].name), place)
        decoding = Decoding(size, strict, background, channels)
        super().__init__(
            root=root,
            source=lambda place: self.source(place, decoding, hold_out_every, labels),
            cache=cache,
            suffix=self.cache_suffix.format(size=size),
            is_right=decoding.made,
            background=background,
            batch_size=batch_size,
            stream=stream,
            flip=flip,
            num_reference=num_reference,
            generated=generated,
        )

    def source(self, place: Path, decoding: Decoding, hold_out_every: int, labels: str) -> Source:
        """What is converted into the cache."""
        return image_source(place, decoding, hold_out_every=hold_out_every, labels=labels)
