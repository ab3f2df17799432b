"""Feature extractors, from whose features and logits figures are computed: one for each kind of data."""

from abc import ABC, abstractmethod
from importlib import resources
from io import BytesIO
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load
from torch import Tensor, nn

from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.images import EvaluationImages, tensor_digest

Features = Float[Tensor, "batch features"]
Logits = Float[Tensor, "batch classes"]

DIGITS_WEIGHTS = "digits_classifier.safetensors"
PATCHES_WEIGHTS = "patches_classifier.safetensors"
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images or points to features and logits, always in evaluation mode.

    Attributes:
        name: shown in protocols and reports.
        digest: SHA-256 of the tensors that define it; equal digests give equal numbers.
        num_features: width of the features.
        num_classes: number of the data's classes if the logits are theirs; None otherwise, as for Inception's 1,008.
        batch_size: images per call.
    """

    name: str
    digest: str
    num_features: int
    num_classes: int | None
    batch_size: int = 256

    @abstractmethod
    def forward(self, images: EvaluationImages) -> tuple[Features, Logits]:
        """Features for distances and logits for scores, both float32.

        Raises:
            ValueError: `images` are of another dtype or shape than the extractor takes.
        """

    def __call__(self, images: EvaluationImages) -> tuple[Features, Logits]:
        """`forward` with autocast disabled."""
        with torch.autocast(images.device.type, enabled=False):
            return super().__call__(images)

    @property
    def device(self) -> torch.device:
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Stay in evaluation mode."""
        return super().train(False)

    def load_packaged(self, file: str) -> None:
        """Load the weights in a safetensors file of this package, which `digest` then names.

        Layers must be built on the device "meta": random initialisation would change the global random state.
        """
        weights = load(resources.files("fewstep.evaluation").joinpath(file).read_bytes())
        self.load_state_dict(weights, assign=True)
        self.digest = tensor_digest(weights)


def require_uint8(images: Tensor, shapes: str, fits: bool) -> None:
    """Raise a ValueError where images are not uint8, or not of these shapes."""
    if images.dtype != torch.uint8 or not fits:
        raise ValueError(
            f"this feature extractor takes uint8 images {shapes}, got {images.dtype} {tuple(images.shape)}; "
            "make them with to_uint8"
        )


def digits_layers() -> tuple[nn.Sequential, nn.Sequential]:
    """Body, from pixels in [-1, 1] (B, 1, 8, 8) to 64 features; head, from features to 10 logits."""
    body = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(1024, 64),
    )
    return body, nn.Sequential(nn.SiLU(), nn.Linear(64, 10))


def pixels(images: UInt8[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


class DigitsFeatures(FeatureExtractor):
    """The small digits classifier of this package, trained by `train_classifiers`."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.num_features, self.num_classes = "digits classifier", 64, 10
        with torch.device("meta"):
            self.body, self.head = digits_layers()
        self.load_packaged(DIGITS_WEIGHTS)
        self.body.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.requires_grad_(False).eval()

    def forward(self, images: EvaluationImages) -> tuple[Features, Logits]:
        require_uint8(images, "(B, 1, 8, 8)", images.shape[1:] == (1, 8, 8))
        features = self.body(pixels(images))
        return features, self.head(features)


PHOTOGRAPHS, PLACES, STATES = 2, 72, 3  # classes of the patches classifier; states: unchanged, blurred, noisy


def patches_layers() -> tuple[nn.Sequential, nn.Linear]:
    """Body, from RGB in [-1, 1] (B, 3, H, W) of 16 pixels or more to 64 features; head, to the logits of all three."""
    body = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
    )
    return body, nn.Linear(64, PHOTOGRAPHS + PLACES + STATES)


class PatchesFeatures(FeatureExtractor):
    """The small classifier of crops of photographs of this package, trained by `train_classifiers`.

    It classifies the photograph of a crop, its place there, and whether it is unchanged, blurred or noisy, whatever the
    colour of the light. Its features tell colours and coarse textures, but hardly a blur of 3 pixels.

    Args:
        replaces_inception: for images of other data; the logits are then those of the places, not of their classes.
    """

    def __init__(self, *, replaces_inception: bool = False) -> None:
        super().__init__()
        self.replaces_inception = replaces_inception
        self.name = "patches classifier" + (" in place of inception" if replaces_inception else "")
        self.num_features, self.num_classes = 64, None if replaces_inception else PHOTOGRAPHS
        with torch.device("meta"):
            self.body, self.head = patches_layers()
        self.load_packaged(PATCHES_WEIGHTS)
        self.requires_grad_(False).eval()

    def forward(self, images: EvaluationImages) -> tuple[Features, Logits]:
        fits = images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) >= 16
        require_uint8(images, "(B, 1 or 3, H, W) of 16 pixels or more", fits)
        features = self.body(pixels(images).expand(-1, 3, -1, -1))
        logits = self.head(features)
        photographs, places, _ = logits.split((PHOTOGRAPHS, PLACES, STATES), dim=1)
        return features, places if self.replaces_inception else photographs


class InceptionFeatures(FeatureExtractor):
    """torch-fidelity's InceptionV3 of 2015-12-05: 2,048 pool features and 1,008 logits without bias.

    `weights` is a local file; nothing is downloaded. Grey images are repeated to three channels.

    Raises:
        ValueError: the file is missing, or has other weights.
    """

    batch_size = 64

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if not weights.is_file():
            raise ValueError(
                f"Inception figures need torch-fidelity's weight file {INCEPTION_WEIGHTS} (pytorch-fid's "
                f"pt_inception-2015-12-05-6726825d.pth is the same), which is not at {weights}; put it there, or "
                "choose other features: trainer.features=own trains a small extractor on images of pixels, "
                "`fewstep latents` given again keeps one with latents, and trainer.features=FILE.safetensors uses one"
            )
        try:
            # torch-fidelity unpickles its file, so it gets one written here, of tensors loaded safely.
            safe = BytesIO()
            torch.save(dict(torch.load(weights, map_location="cpu", weights_only=True)), safe)
            safe.seek(0)
            with torch.random.fork_rng(devices=()):
                self.net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], safe)
        except Exception as error:  # any other file raises errors of any type
            raise ValueError(
                f"Inception's weight file must hold the tensors of {INCEPTION_WEIGHTS} and nothing else; "
                f"{weights} does not, replace it"
            ) from error
        self.name, self.digest = "inception-v3 2015-12-05", tensor_digest(self.net.state_dict())
        self.num_features, self.num_classes = 2048, None
        self.requires_grad_(False).eval()

    def forward(self, images: EvaluationImages) -> tuple[Features, Logits]:
        require_uint8(images, "(B, 1 or 3, H, W)", images.ndim == 4 and images.shape[1] in (1, 3))
        return tuple(self.net(images.expand(-1, 3, -1, -1)))


class MixtureFeatures(FeatureExtractor):
    """Points of a mixture: the features are the points, the logits the exact class posterior."""

    batch_size = 4096

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.mixture, self.name = mixture, "exact mixture"
        self.digest = tensor_digest(mixture.tensors)
        self.num_features, self.num_classes = mixture.means.shape[1], mixture.num_classes
        self.eval()

    def forward(self, images: EvaluationImages) -> tuple[Features, Logits]:
        if images.ndim != 2 or images.shape[1] != self.num_features or not images.is_floating_point():
            raise ValueError(
                f"this mixture takes float points (B, {self.num_features}), got {images.dtype} {tuple(images.shape)}"
            )
        log_probability = self.mixture.class_log_probability(images.double()).log_softmax(1)
        # The inception score multiplies a probability 0 by its infinite logarithm; e^-30 counts as 0 elsewhere.
        return images.float(), log_probability.clamp(min=-30).float()


class PointFeatures(FeatureExtractor):
    """Points that are their own features; all are of one class, so that the inception score is 1."""

    batch_size = 4096

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.name, self.digest = f"points of {dim} coordinates", tensor_digest({"dim": torch.tensor(dim)})
        self.num_features, self.num_classes = dim, None
        self.eval()

    def forward(self, images: EvaluationImages) -> tuple[Features, Logits]:
        return images.float(), torch.zeros(len(images), 1, device=images.device)
