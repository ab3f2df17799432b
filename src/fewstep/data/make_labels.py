"""Make labels of images: clusters of a frozen network's features, by trained prototypes or by k-means."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fewstep.data.batches import ImagesInMemory, from_uint8
from fewstep.data.labels import HELD_OUT, TRAINING
from fewstep.diffusion.prediction import diffuse
from fewstep.diffusion.schedule import Images, log_snr_of_share
from fewstep.networks import Denoiser
from fewstep.networks.clusters import Prototypes, cluster_error
from fewstep.networks.features import MiddleFeatures
from fewstep.system.seeds import reseed, seed_for

SHARE = 0.85  # of data in the noised image whose features decide the cluster
LOWEST, HIGHEST = 0.8, 0.9  # between these the prototypes are trained
LEARNING_RATE, DECAY = 1e-3, 0.99  # ours, for a head alone
ROWS = 500

Assign = Callable[[Float[Tensor, "batch channels"]], Int[Tensor, "batch"]]
"""Features -> the cluster of each."""


@dataclass(frozen=True)
class Features:
    """The features of noised images in the middle of a network that is told no class; the mean over places.

    Args:
        stream: names the noise.
    """

    denoiser: Denoiser
    middle: MiddleFeatures
    stream: str

    @classmethod
    def of(cls, denoiser: Denoiser, stream: str, device: str = "cpu") -> "Features":
        """Those of a teacher of classes.

        Raises:
            ValueError: the model is a student, of several networks, or takes prompts.
        """
        if denoiser.has_guidance_input or denoiser.extra_inputs or isinstance(denoiser.null, Tensor):
            raise ValueError(
                "labels are made of the features of a teacher of classes, and this model is a student or takes "
                "prompts; make one with `python train.py stage=teacher dataset.labels=none`"
            )
        denoiser.to(device).eval().requires_grad_(False)
        return cls(denoiser, MiddleFeatures(denoiser), stream)

    @torch.no_grad()
    def __call__(self, x: Images, share: Float[Tensor, "batch"], *key: int | str) -> Float[Tensor, "batch channels"]:
        """Of images noised to these shares of data; the noise follows from (stream, key)."""
        device, null = next(self.denoiser.parameters()).device, self.denoiser.null
        eps = torch.randn(x.shape, generator=self.generator("noise", *key))
        noised = diffuse(x=x, eps=eps, log_snr=log_snr_of_share(share.double()))
        label = torch.full((len(x),), int(null), device=device)
        self.denoiser(noised.z.to(device), noised.log_snr.to(device), label)
        return self.middle.pooled().float()

    def in_parts(self, x: Images, *key: int | str) -> Iterator[Float[Tensor, "rows channels"]]:
        """Of images noised to SHARE, some at a time."""
        for number, part in enumerate(x.split(ROWS)):
            yield self(part, torch.full((len(part),), SHARE), *key, number)

    def generator(self, *key: int | str) -> torch.Generator:
        """Random numbers that follow from (stream, key)."""
        return torch.Generator().manual_seed(seed_for(self.stream, *key))


def prototypes_of(
    data: ImagesInMemory, features: Features, clusters: int, images: int, advance: Callable[[int], None]
) -> Assign:
    """Train prototypes on `images` images, in batches of `data`; an average of them assigns.

    Args:
        advance: is called with the number of images of each step.
    """
    device = next(features.denoiser.parameters()).device
    reseed(seed_for(features.stream, "prototypes"), torch.device("cpu"))
    prototypes = Prototypes(features.middle.channels, clusters).to(device)
    average = AveragedModel(prototypes, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    optimizer = torch.optim.AdamW(prototypes.parameters(), LEARNING_RATE, weight_decay=0.0)
    for step in range(max(1, images // data.batch_size)):
        x, _ = data.batch(step)
        share = LOWEST + (HIGHEST - LOWEST) * torch.rand(len(x), generator=features.generator("share", step))
        optimizer.zero_grad()
        cluster_error(prototypes(features(x, share, step))).mean().backward()
        optimizer.step()
        average.update_parameters(prototypes)
        advance(len(x))
    average.eval()
    return lambda found: nearest(average, found)


@torch.no_grad()
def nearest(prototypes: nn.Module, features: Float[Tensor, "batch channels"]) -> Int[Tensor, "batch"]:
    """The prototype of the largest score."""
    return prototypes(features).argmax(1).cpu()


def kmeans_of(data: ImagesInMemory, features: Features, clusters: int, images: int) -> Assign:
    """scikit-learn's k-means, the best of ten starts, of the features of at most `images` images, evenly spaced."""
    total = len(data.labels)
    count = min(images, total)
    x = from_uint8(data.images[torch.arange(count) * total // count])
    found = torch.cat([*features.in_parts(x, "kmeans")]).cpu().numpy()
    seed = seed_for(features.stream, "kmeans") % 2**32
    fitted = KMeans(clusters, n_init=10, random_state=seed).fit(found)  # pyright: ignore[reportArgumentType]
    return lambda features: torch.from_numpy(fitted.predict(features.cpu().numpy())).long()


def labels_of(data: ImagesInMemory, features: Features, assign: Assign) -> dict[str, Int[Tensor, "images"]]:
    """The cluster of each training and each held-out image of `data`, as a file of labels has them."""
    rows = torch.arange(len(data.labels)).split(ROWS)
    training = (features.in_parts(from_uint8(data.images[each]), TRAINING, int(each[0])) for each in rows)
    held_out = features.in_parts(data.reference().x, HELD_OUT)
    return {
        TRAINING: torch.cat([assign(part) for parts in training for part in parts]),
        HELD_OUT: torch.cat([assign(part) for part in held_out]),
    }


def agreement(labels: Int[Tensor, "images"], own: Int[Tensor, "images"]) -> tuple[float, float]:
    """Purity, the share of images in a cluster that are of its commonest class, and normalised mutual information."""
    purity = contingency_matrix(own, labels).max(axis=0).sum() / len(own)
    return float(purity), float(normalized_mutual_info_score(own, labels))
