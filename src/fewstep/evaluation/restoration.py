"""How near restored images are to their originals: PSNR, SSIM, and a distance of features.

LPIPS and DISTS are distances of features too, but of AlexNet or VGG, whose weights torchmetrics downloads; in their
place stands LPIPS's formula on the classifier that the other figures of the data set come from.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from fewstep.evaluation.features import PatchesFeatures, pixels
from fewstep.evaluation.intervals import Interval, interval

Pictures = UInt8[Tensor, "count channels height width"]
PerImage = Float[Tensor, "count"]
WHITE = 255.0
HIGHEST_PSNR = 100.0  # dB; of equal images it is infinite, and a mean needs numbers


def restoration_figures(images: Pictures, originals: Pictures) -> dict[str, tuple[float, Interval]]:
    """The means over images of `psnr`, `ssim` and `feature_distance`, with their intervals."""
    found = {
        "psnr": psnr(images, originals),
        "ssim": ssim(images, originals),
        "feature_distance": feature_distance(images, originals, PatchesFeatures()),
    }
    return {name: (each.mean().item(), interval(each.mean().item(), each)) for name, each in found.items()}


def psnr(images: Pictures, originals: Pictures) -> PerImage:
    """10 log10(255^2 / mean squared error) of each image in dB, over all of its values; at most HIGHEST_PSNR."""
    whole = (1, 2, 3)
    found = peak_signal_noise_ratio(images.double(), originals.double(), WHITE, dim=whole, reduction="none")
    return found.clamp(max=HIGHEST_PSNR)


def ssim(images: Pictures, originals: Pictures) -> PerImage:
    """Structural similarity of each image, the mean over its channels (Wang et al. 2004: Gaussian of 11 pixels)."""
    found = structural_similarity_index_measure(images.double(), originals.double(), data_range=WHITE, reduction="none")
    assert isinstance(found, Tensor), "no full image was asked for"
    return found


@torch.no_grad()
def feature_distance(images: Pictures, originals: Pictures, net: PatchesFeatures) -> PerImage:
    """Sum over layers of the mean over places of |f / |f| - g / |g||^2: LPIPS (Zhang et al. 2018) with unit weights.

    The layers are those of the patches classifier, `net`, after each of its non-linearities.
    """
    both, count, distance = pixels(torch.cat([images, originals])), len(images), torch.zeros(len(images))
    for layer in net.body[: list(map(type, net.body)).index(nn.AdaptiveAvgPool2d)]:
        both = layer(both)
        if isinstance(layer, nn.SiLU):
            unit = normalize(both, dim=1)
            distance += (unit[:count] - unit[count:]).square().sum(1).mean((1, 2))
    return distance
