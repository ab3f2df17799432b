from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from figures import final_figures
from scipy.linalg import sqrtm
from torch import Tensor

from fewstep.data.digits import DigitsSplit
from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.features import DigitsFeatures, FeatureExtractor, MixtureFeatures
from fewstep.evaluation.images import Reference, to_uint8
from fewstep.evaluation.metrics import Figures, RunningFigures, diversity
from fewstep.evaluation.statistics import ReferenceStatistics, class_distances

DIGITS = DataFacts("digits", (1, 8, 8), 10, -1.0, 1.0)


def frechet(a: Tensor, b: Tensor) -> float:
    """The textbook formula, by a matrix square root instead of eigenvalues."""
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = sqrtm(cov_x @ cov_y).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * cross))


def noisy(split: DigitsSplit) -> Tensor:
    """A stand-in for a model's output: noised training digits, in [-1, 1] and beyond."""
    x = split.train_images[:600].float() / 127.5 - 1
    return x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def figures(net: DigitsFeatures, split: DigitsSplit, reference: Reference) -> Figures:
    return final_figures(
        net, images=to_uint8(noisy(split), DIGITS), labels=split.train_labels[:600], reference=reference
    )


def running(net: FeatureExtractor, images: Tensor, reference: Reference) -> dict[str, float]:
    measure = RunningFigures(net, ReferenceStatistics.of(net, reference))
    for batch in images.split(250):
        measure.update(batch)
    return measure.compute()


def agree(figures: Figures, others: dict[str, float]) -> bool:
    ours = {"fid": figures.fid, "inception_score": figures.inception_score}
    return others == pytest.approx(ours, rel=1e-4)  # 1e-3 is promised; this much finer even a cut pixel shows


def test_torchmetrics_and_torch_fidelity_agree(
    figures: Figures, net: DigitsFeatures, split: DigitsSplit, reference: Reference
) -> None:
    assert agree(figures, running(net, to_uint8(noisy(split), DIGITS), reference))


def test_the_agreement_notices_other_images_and_other_nets(
    figures: Figures, net: DigitsFeatures, split: DigitsSplit, reference: Reference
) -> None:
    cut_not_rounded = ((noisy(split).clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
    assert not agree(figures, running(net, cut_not_rounded, reference))
    other = DigitsFeatures()
    other.body[0].bias += 0.01
    assert not agree(figures, running(other, to_uint8(noisy(split), DIGITS), reference))


def test_fid_is_the_frechet_distance_of_the_nets_features(
    figures: Figures, net: DigitsFeatures, split: DigitsSplit, reference: Reference
) -> None:
    expected = frechet(net(to_uint8(noisy(split), DIGITS))[0], net(reference.images)[0])
    assert figures.fid == pytest.approx(expected, rel=1e-4)


def test_fid_of_two_gaussians_is_the_closed_form(mixture: GaussianMixture) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, real = torch.zeros(4000, dtype=torch.long), torch.ones(4000, dtype=torch.long)
    points, reference = mixture.draw(ours, generator), mixture.draw(real, generator)
    net = MixtureFeatures(mixture)
    labels = torch.arange(4000) % 2
    figures = final_figures(net, images=points, labels=labels, reference=Reference("exact", reference, labels))
    assert figures.fid == pytest.approx(frechet(points, reference), rel=1e-5)
    means, stds = mixture.means, mixture.stds
    truth = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
    assert figures.fid == pytest.approx(truth.item(), rel=0.03)
    assert agree(figures, running(net, points, Reference("exact", reference, labels)))


def test_exact_samples_of_a_mixture_score_as_the_data(mixture: GaussianMixture) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    reference = Reference("exact", mixture.draw(labels, generator), labels)
    figures = final_figures(
        MixtureFeatures(mixture), images=mixture.draw(labels, generator), labels=labels, reference=reference
    )
    assert figures.fid < 0.01
    assert figures.diversity == pytest.approx(1, abs=0.05)
    assert figures.accuracy == pytest.approx(0.98, abs=0.03)
    assert min(figures.precision, figures.recall) > 0.95
    absent = figures.inception_score
    far = final_figures(
        MixtureFeatures(mixture),
        images=mixture.draw(0 * labels, generator) - 50,
        labels=labels,
        reference=reference,
    )
    assert 1 <= far.inception_score < absent <= 2


def test_the_reference_is_perfect_by_its_own_measure(net: DigitsFeatures, reference: Reference) -> None:
    figures = final_figures(net, images=reference.images, labels=reference.labels, reference=reference)
    assert figures.fid == pytest.approx(0, abs=1e-3)
    assert figures.diversity == pytest.approx(1)
    assert figures.precision == figures.recall == 1
    assert figures.accuracy is not None
    assert figures.accuracy > 0.98


def test_precision_and_recall_are_not_exchanged(net: DigitsFeatures, split: DigitsSplit, reference: Reference) -> None:
    few = split.train_labels < 3
    figures = final_figures(net, images=split.train_images[few], labels=split.train_labels[few], reference=reference)
    assert figures.precision > 0.8
    assert figures.recall < 0.4


def test_accuracy_counts_the_wanted_class(net: DigitsFeatures, split: DigitsSplit, reference: Reference) -> None:
    labels = split.train_labels[:200].clone()
    labels[:50] = (labels[:50] + 1) % 10
    figures = final_figures(net, images=split.train_images[:200], labels=labels, reference=reference)
    assert figures.accuracy == pytest.approx(0.75, abs=0.01)


def test_accuracy_is_unknown_to_a_net_of_other_classes(
    net: DigitsFeatures, split: DigitsSplit, reference: Reference
) -> None:
    stranger = DigitsFeatures()
    stranger.num_classes = None
    figures = final_figures(
        stranger, images=split.train_images[:50], labels=split.train_labels[:50], reference=reference
    )
    assert figures.accuracy is None


def test_diversity_is_a_ratio_of_distances_within_classes() -> None:
    reference = torch.tensor([[0.0], [1.0], [10.0], [13.0], [99.0]])
    reference_labels = torch.tensor([0, 0, 1, 1, 2])
    features = torch.tensor([[5.0], [5.5], [-7.0], [-7.0], [0.0], [1.0]])
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    real = class_distances(reference, reference_labels)
    assert real == {0: 1.0, 1: 3.0}  # a class of one has no distance

    def measure(features: Tensor) -> float | None:
        return diversity(class_distances(features, labels), real)

    assert measure(features) == pytest.approx((0.5 + 0) / (1 + 3))
    assert measure(torch.cat([reference[:4] + 8, features[4:]])) == pytest.approx(1)
    assert diversity(class_distances(features[::2], labels[::2]), real) is None  # no class has two images


def test_too_few_images_are_refused(net: DigitsFeatures, split: DigitsSplit, reference: Reference) -> None:
    for images, labels in ((3, 3), (10, 9)):
        with pytest.raises(ValueError, match="one label per image and at least 4 images"):
            final_figures(
                net,
                images=split.train_images[:images],
                labels=split.train_labels[:labels],
                reference=reference,
            )


def test_figures_leave_no_trace(
    net: DigitsFeatures,
    split: DigitsSplit,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    images, labels = split.train_images[:100], split.train_labels[:100]
    state = torch.get_rng_state()
    first = final_figures(net, images=images, labels=labels, reference=reference)
    running(net, images, reference)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(tmp_path.iterdir())
    torch.manual_seed(123)
    assert final_figures(net, images=images, labels=labels, reference=reference) == first


def test_running_figures_are_reset_and_keep_the_reference(
    net: DigitsFeatures, split: DigitsSplit, reference: Reference
) -> None:
    measure = RunningFigures(net, ReferenceStatistics.of(net, reference))
    measure.update(split.train_images[:300])
    first = measure.compute()
    measure.update(split.train_images[300:600])
    assert measure.compute() != first
    measure.update(split.train_images[:300])
    assert measure.compute() == first


def test_figures_are_values(figures: Figures) -> None:
    assert replace(figures) == figures
    assert all(isinstance(value, float) for name, value in vars(figures).items() if name not in ("kid", "intervals"))
