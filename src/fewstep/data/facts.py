"""The facts of a data set, the one place of its shape, range, classes and encoders."""

from dataclasses import dataclass, field, replace


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
class DataFacts:
    """The facts of one data set.

    `shape` is (channels, height, width) for images and latents and (dim,) for points; labels run from 0 to
    num_classes - 1, or num_classes is 0 and they are embeddings of prompts where there is `text`, or states of `state`
    numbers, given as one token (1, state), of which all zeros are none; `low` and `high` bound the values a network
    sees, -1 and 1 for images.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    low: float
    high: float
    latent: LatentFacts | None = None
    text: TextFacts | None = None
    state: int | None = None

    @property
    def embedding(self) -> tuple[int, int] | None:
        """(tokens, features) of a condition that is an embedding of a prompt or a state; None where it is a class."""
        if self.text is not None:
            return self.text.tokens, self.text.features
        return None if self.state is None else (1, self.state)

    @property
    def is_image(self) -> bool:
        """Whether examples are images, or latents of images."""
        return len(self.shape) == 3

    @property
    def in_a_row(self) -> int:
        """Examples per row of a picture: one of each class, if there are at most 20."""
        return self.num_classes if 0 < self.num_classes <= 20 else 8

    @property
    def pixels(self) -> "DataFacts":
        """The facts of what is shown and evaluated: of the decoded images for latents, else of the data itself."""
        if self.latent is None:
            return self
        return replace(self, shape=self.latent.image_shape, low=-1.0, high=1.0, latent=None)
