import pytest
import torch

from fewstep.data.digits import DigitsSplit, load_digits_split
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.features import DigitsFeatures
from fewstep.evaluation.images import Reference


@pytest.fixture(scope="session")
def split() -> DigitsSplit:
    return load_digits_split()


@pytest.fixture(scope="session")
def net() -> DigitsFeatures:
    return DigitsFeatures()


@pytest.fixture(scope="session")
def reference(split: DigitsSplit) -> Reference:
    return Reference("test", split.test_images, split.test_labels)


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    return GaussianMixture(
        means=torch.tensor([[-1.0, 0.0], [1.0, 0.5]]),
        stds=torch.tensor([[0.5, 0.3], [0.2, 0.6]]),
        weights=torch.tensor([0.5, 0.5]),
        classes=torch.tensor([0, 1]),
    )
