"""The facts of a data set, the one place of its shape, range, classes and encoders."""

from dataclasses import dataclass, field, replace
from math import prod

from fewstep.diffusion.styles import Styles

MOST_VALUES = 2**26  # of one example: a file cannot make us allocate more
LARGEST = 1e6  # of a value, beyond which float32 networks and pictures make no sense


@dataclass(frozen=True)
class LatentFacts:
    """Latents z = (encoded - shift_factor) * scaling_factor of images of `image_shape`.

    `autoencoder` is the folder of the AutoencoderKL that decodes them, `sha256` the digest of its weights. Facts with
    the same digest are equal, wherever the folder lies.
    """

    image_shape: tuple[int, ...]
    scaling_factor: float
    shift_factor: float
    sha256: str
    autoencoder: str = field(compare=False)


@dataclass(frozen=True)
class TextFacts:
    """Prompts as embeddings (tokens, features) of the text encoder in the folder `encoder`, of digest `sha256`."""

    tokens: int
    features: int
    sha256: str
    encoder: str = field(compare=False)


@dataclass(frozen=True)
class DegradedFacts:
    """Conditions that are degraded images: blurred, `scale` times smaller, noisy, JPEG; enlarged to the data's size.

    Args:
        scale: how many times smaller each side is.
        blur: largest standard deviation of the Gaussian blur, in pixels of the original; 0 is none.
        noise: largest standard deviation of the noise, where the data's range is [-1, 1]; 0 is none.
        jpeg: lowest JPEG quality, 1 to 95, of which 95 is the highest that is drawn; None is no JPEG.

    Raises:
        ValueError: a value outside its range.
    """

    scale: int
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int | None = None

    def __post_init__(self) -> None:
        good = self.scale >= 1 and self.blur >= 0 and self.noise >= 0 and (self.jpeg is None or 1 <= self.jpeg <= 95)
        if not good:
            raise ValueError(
                "degraded images need scale >= 1, blur >= 0, noise >= 0 and a jpeg quality of 1 to 95 or null, got "
                f"{self.scale}, {self.blur:g}, {self.noise:g} and {self.jpeg}"
            )


@dataclass(frozen=True)
class DataFacts:
    """The facts of one data set.

    `shape` is (channels, height, width) for images and latents and (dim,) for points. Labels run from 0 to num_classes
    - 1; or num_classes is 0 and they are embeddings of prompts where there is `text`, images of the data's shape where
    there is `degraded`, or states of `state` numbers, given as one token (1, state), of which all zeros are none. `low`
    and `high` bound the values a network sees, -1 and 1 for images. With `styles` a label is of a class and a style, or
    of a class of any style, and num_classes is the number of all labels. `labels` is None where they are the data's
    own; "none", or the digest of those that were made (`data.labels`), where they are others. `background` is what
    transparent images are put on: white, black or #rrggbb.

    Raises:
        ValueError: a shape, a number of classes or a range that no data have.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    low: float
    high: float
    latent: LatentFacts | None = None
    text: TextFacts | None = None
    styles: Styles | None = None
    labels: str | None = None
    degraded: DegradedFacts | None = None
    state: int | None = None
    background: str = "white"

    def __post_init__(self) -> None:
        sizes_are_good = len(self.shape) in (1, 3) and min(self.shape) >= 1 and prod(self.shape) <= MOST_VALUES
        if not (sizes_are_good and 0 <= self.num_classes <= MOST_VALUES):
            raise ValueError(
                f"data have a shape (dim,) or (channels, height, width) of at most {MOST_VALUES:,} values, and 0 to as "
                f"many classes, got {self.shape} and {self.num_classes}"
            )
        if not -LARGEST <= self.low < self.high <= LARGEST:
            raise ValueError(
                f"data lie between low < high, neither beyond {LARGEST:g}, got {self.low:g} and {self.high:g}"
            )

    @property
    def embedding(self) -> tuple[int, int] | None:
        """(tokens, features) of a condition that is an embedding of a prompt or a state; None where it is another."""
        if self.text is not None:
            return self.text.tokens, self.text.features
        return None if self.state is None else (1, self.state)

    @property
    def title(self) -> str:
        """Name, shape, background and whose labels, as messages say them."""
        background = "" if self.background == "white" else f" on {self.background}"
        labels = "" if self.labels is None else f" with labels {self.labels[:12]}"
        return f"{self.name} {self.shape}{background}{labels}"

    @property
    def is_image(self) -> bool:
        """Whether examples are images, or latents of images."""
        return len(self.shape) == 3

    @property
    def num_conditions(self) -> int:
        """Labels that samples are made for in turn: all classes, with each style where there are styles."""
        return self.num_classes if self.styles is None else self.styles.num_pairs

    @property
    def in_a_row(self) -> int:
        """Examples per row of a picture: one of each class, if there are at most 20."""
        classes = self.num_classes if self.styles is None else self.styles.num_classes
        return classes if 0 < classes <= 20 else 8

    @property
    def pixels(self) -> "DataFacts":
        """The facts of what is shown and evaluated: of the decoded images for latents, else of the data itself."""
        if self.latent is None:
            return self
        return replace(self, shape=self.latent.image_shape, low=-1.0, high=1.0, latent=None)
