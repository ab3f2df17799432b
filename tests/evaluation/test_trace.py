"""Traces of a Gaussian, whose predictions and distances are known in closed form."""

import math

import pytest
import torch

from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.features import MixtureFeatures
from fewstep.evaluation.trace import traces_of, with_several_steps

MEAN, STD, COUNT = 0.5, 0.3, 1500
FACTS = DataFacts(name="points", shape=(1,), num_classes=1, low=-9.0, high=9.0)


@pytest.fixture
def gaussian() -> GaussianMixture:
    one = torch.ones(1, 1)
    return GaussianMixture(means=MEAN * one, stds=STD * one, weights=one[0], classes=torch.tensor([0]))


def candidate(model: str, exact: GaussianMixture, sampling: Sampling, steps: tuple[int, ...]) -> Candidate:
    return Candidate(model, exact.denoise, 1, CosineSchedule(), steps, sampling)


def test_the_first_prediction_is_the_mean_and_the_last_is_the_image(gaussian: GaussianMixture) -> None:
    """From noise x = m, and the end is m + s z: RMSE s; |x - m| over |x - x'| is 1 / sqrt 2 for normal features."""
    teacher = candidate("teacher", gaussian, Sampling(), (64,))
    student = candidate("tract", gaussian, Sampling.uniform(2, guidance="input"), (2, 1))
    labels = torch.zeros(COUNT, dtype=torch.long)
    asked = with_several_steps([teacher, student])
    assert [(each.name, steps) for each, steps in asked] == [("teacher", 64), ("tract", 2)]
    long, short = traces_of(asked, labels, w=1.0, seed=0, facts=FACTS, net=MixtureFeatures(gaussian))
    curve = long.curve
    assert (curve.name, short.curve.times) == ("teacher, 64 steps", [1.0, 0.5])
    assert curve.rmse[0] == pytest.approx(STD, rel=0.06)
    assert curve.features[0] == pytest.approx(1 / math.sqrt(2), rel=0.04)
    assert curve.rmse[-1] == curve.features[-1] == 0.0
    assert curve.rmse == sorted(curve.rmse, reverse=True)
    assert long.frames.shape == (64, COUNT, 1)
    torch.testing.assert_close(long.frames[0], torch.full((COUNT, 1), MEAN), atol=1e-3, rtol=0)


def test_one_image_has_no_unit(gaussian: GaussianMixture) -> None:
    asked = [(candidate("teacher", gaussian, Sampling(), (4,)), 4)]
    one = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="at least two images"):
        traces_of(asked, one, w=1.0, seed=0, facts=FACTS, net=MixtureFeatures(gaussian))
