"""What figures are made of, against the libraries and formulas they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figures import final_figures
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from fewstep.data.digits import DigitsSplit
from fewstep.evaluation import statistics
from fewstep.evaluation.features import DigitsFeatures
from fewstep.evaluation.images import EvaluationImages, Reference
from fewstep.evaluation.protocol import INCEPTION_SPLITS, NEIGHBOURHOOD
from fewstep.evaluation.statistics import (
    Features,
    Moments,
    ReferenceStatistics,
    Spectrum,
    frechet_distance,
    precision_and_recall,
    radii,
    square_root,
)


class Registered(FeatureExtractorBase):
    """The digits classifier as torch-fidelity knows it."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.net = DigitsFeatures()

    @staticmethod
    def get_provided_features_list() -> tuple[str, str]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: EvaluationImages) -> tuple[Tensor, ...]:
        outputs = dict(zip(("features", "logits"), self.net(input), strict=True))
        return tuple(outputs[name] for name in self.features_list)


class Images(Dataset[Tensor]):
    def __init__(self, images: EvaluationImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def noisy(split: DigitsSplit, count: int = 500) -> EvaluationImages:
    images = split.train_images[:count].int()
    noise = torch.randint(-40, 41, images.shape, generator=torch.Generator().manual_seed(0))
    return (images + noise).clamp(0, 255).to(torch.uint8)


def test_every_figure_is_torch_fidelitys(net: DigitsFeatures, split: DigitsSplit, reference: Reference) -> None:
    register_feature_extractor("digits-test", Registered)
    images, labels = noisy(split), split.train_labels[:500]
    ours = final_figures(net, images=images, labels=labels, reference=reference, kid=True)
    theirs = calculate_metrics(
        input1=Images(images),
        input2=Images(reference.images),
        fid=True,
        isc=True,
        prc=True,
        kid=True,
        kid_subsets=10,
        kid_subset_size=len(reference.images),
        feature_extractor="digits-test",
        isc_splits=INCEPTION_SPLITS,
        samples_shuffle=False,
        prc_neighborhood=NEIGHBOURHOOD,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert ours.fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours.inception_score == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def covered_alone(ours: Tensor, real: Tensor) -> Tensor:
    """What recall counts no more without a sample, while the neighbourhoods of the others stay."""
    inside = torch.cdist(real, ours) <= radii(ours)
    kept = [(inside[:, torch.arange(len(ours)) != j]).any(1).sum() for j in range(len(ours))]
    return inside.any(1).sum() - torch.stack(kept)


def test_precision_and_recall_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, real = torch.randn(230, 8, generator=generator), 1.2 * torch.randn(170, 8, generator=generator) + 0.3
    expected = calculate_precision_recall_full(ours, real, NEIGHBOURHOOD)
    for rows in (1024, 64):
        monkeypatch.setattr(statistics, "ROWS", rows)
        precision, recall, alone = precision_and_recall(ours, real, radii(real))
        assert (precision, recall) == pytest.approx(expected)
        assert torch.equal(alone, covered_alone(ours, real))
    assert expected[0] != expected[1]


def test_moments_are_float64_sums_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from zero, where a sum of squares in float32 has no digit left."""
    features = 1e4 + torch.randn(3000, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(statistics, "ROWS", 700)
    moments = Moments.of(features)
    exact = features.double().numpy()
    assert np.allclose(moments.mean, exact.mean(0), rtol=1e-12)
    assert np.allclose(moments.covariance, np.cov(exact, rowvar=False), rtol=1e-9)


def test_the_distance_of_gaussians_that_share_axes_is_the_closed_form() -> None:
    def moments(mean: float, stds: list[float]) -> Moments:
        return Moments(torch.full((3,), mean).double(), torch.diag(torch.tensor(stds).double().square()))

    ours, real = moments(1.0, [1.0, 2.0, 0.0]), moments(3.0, [2.0, 2.0, 1.0])  # one has no extent along an axis
    assert frechet_distance(ours, real, Spectrum.of(ours, square_root(real.covariance))) == pytest.approx(
        3 * 4 + 1 + 0 + 1
    )


def test_features_do_not_depend_on_the_batches(net: DigitsFeatures, split: DigitsSplit) -> None:
    images = split.train_images[:300]
    whole, parts = Features.of(net, images), Features.concatenated(Features.of(net, part) for part in images.split(110))
    assert torch.allclose(whole.features, parts.features, atol=1e-5)
    assert torch.allclose(whole.logits, parts.logits, atol=1e-5)


def test_features_of_a_reference_are_cached_by_extractor(
    net: DigitsFeatures, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(tmp_path.iterdir())
    ReferenceStatistics.of(net, reference, tmp_path)
    assert not list(tmp_path.iterdir())  # it was quick
    monkeypatch.setattr(statistics, "MIN_CACHED_SECONDS", -1.0)
    first = ReferenceStatistics.of(net, reference, tmp_path)
    (file,) = tmp_path.iterdir()
    calls = []
    monkeypatch.setattr(DigitsFeatures, "forward", lambda self, images: calls.append(1))
    assert torch.equal(ReferenceStatistics.of(net, reference, tmp_path).features, first.features)
    assert not calls
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:-100])  # cut short: made anew
    assert torch.equal(ReferenceStatistics.of(net, reference, tmp_path).features, first.features)
    other = Reference("test", reference.images[:50], reference.labels[:50])
    assert len(ReferenceStatistics.of(net, other, tmp_path).features) == 50
