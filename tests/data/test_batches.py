from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fewstep.data.batches import Batch, Data, ImagesInMemory, from_uint8
from fewstep.data.digits import DigitsData, load_digits_split
from fewstep.data.mixture import MixtureData, ring_mixture


def numbered(count: int = 10, batch_size: int = 4, stream: str = "0/teacher") -> ImagesInMemory:
    """Images that say which they are: number i is filled with i and labelled i % 3."""
    index = torch.arange(count)
    images = index[:, None, None, None].expand(count, 1, 2, 2).to(torch.uint8)
    return ImagesInMemory(images=images, labels=index % 3, batch_size=batch_size, stream=stream)


def mixture(batch_size: int = 64, stream: str = "0/teacher", dim: int = 2) -> MixtureData:
    return MixtureData(num_classes=3, dim=dim, std=0.1, num_reference=50, batch_size=batch_size, stream=stream)


def numbers(batch: Batch) -> Tensor:
    return ((batch.x[:, 0, 0, 0] + 1) * 127.5).round().long()


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.x, second.x) and torch.equal(first.label, second.label)


@pytest.mark.parametrize("make", [numbered, mixture, lambda: DigitsData(batch_size=700, stream="0/teacher")])
def test_a_batch_depends_on_its_step_alone(make: type[Data]) -> None:
    forward = make()
    in_turn = [forward.batch(step) for step in range(6)]
    fresh = make()
    torch.manual_seed(99)
    for step in (5, 0, 3, 3, 1):
        assert same(fresh.batch(step), in_turn[step])
        torch.rand(7)
    assert not same(in_turn[0], in_turn[1])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
def test_every_epoch_covers_every_image_once_in_a_new_order(batch_size: int) -> None:
    data = numbered(10, batch_size)
    walked = torch.cat([numbers(data.batch(step)) for step in range(40 // batch_size + 1)])
    orders = walked[: 10 * (len(walked) // 10)].reshape(-1, 10)
    assert all(sorted(order.tolist()) == list(range(10)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_all_batches_are_full_and_labels_belong_to_their_images() -> None:
    data = numbered(10, 4)
    for step in range(9):
        batch = data.batch(step)
        assert len(batch.x) == len(batch.label) == 4
        assert torch.equal(batch.label, numbers(batch) % 3)


@pytest.mark.parametrize("make", [numbered, mixture])
def test_streams_differ(make: type[Data]) -> None:
    first, second = make(stream="0/guidance"), make(stream="1/guidance")
    assert not same(first.batch(0), second.batch(0))


@pytest.mark.parametrize("make", [numbered, mixture])
@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(make: type[Data], batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        make(batch_size=batch_size)


def test_the_loader_resumes_at_the_trainers_step() -> None:
    data = numbered()
    data.trainer = SimpleNamespace(global_step=5, max_steps=8, accumulate_grad_batches=1)  # pyright: ignore[reportAttributeAccessIssue]
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    assert same(batches[0], data.batch(5))


def test_pixels_fill_the_range() -> None:
    assert from_uint8(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_the_digits_are_split_by_rule_and_never_meet() -> None:
    split = load_digits_split()
    assert (len(split.train_labels), len(split.test_labels)) == (1433, 364)
    train, test = ({image.numpy().tobytes() for image in images} for images in (split.train_images, split.test_images))
    assert not train & test
    for label in range(10):
        held_out, all_of_it = (split.test_labels == label).sum(), ((split.train_labels == label).sum())
        assert int(held_out) == -(-int(held_out + all_of_it) // 5)


def test_digit_batches_are_real_digits_with_their_labels() -> None:
    data, split = DigitsData(batch_size=1433, stream="0/teacher"), load_digits_split()
    batch = data.batch(0)
    assert batch.x.shape == (1433, *data.facts.shape)
    assert (float(batch.x.min()), float(batch.x.max())) == (data.facts.low, data.facts.high) == (-1, 1)
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(*split[:2], strict=True)}
    drawn = ((batch.x + 1) * 127.5).round().to(torch.uint8)
    assert [label_of[image.numpy().tobytes()] for image in drawn] == batch.label.tolist()
    assert set(batch.label.tolist()) == set(range(data.facts.num_classes))


def test_the_reference_of_the_digits_is_the_held_out_part() -> None:
    x, label = DigitsData(batch_size=1, stream="0").reference()
    split = load_digits_split()
    assert torch.equal(x, from_uint8(split.test_images))
    assert torch.equal(label, split.test_labels)


@pytest.mark.parametrize("dim", [2, 4])
def test_mixture_batches_have_the_moments_of_the_exact_mixture(dim: int) -> None:
    data, count = mixture(60_000, dim=dim), 60_000
    x, label = data.batch(0)
    assert x.dtype == torch.float32
    assert data.facts.shape == (dim,)
    exact = data.exact
    assert exact is not None
    for c in range(3):
        own = exact.classes == c
        weight = (exact.weights[own] / exact.weights[own].sum())[:, None]
        mean = (weight * exact.means[own]).sum(0)
        variance = (weight * (exact.means[own].square() + exact.stds[own].square())).sum(0) - mean.square()
        drawn = x[label == c].double()
        assert len(drawn) == pytest.approx(count / 3, rel=0.03)
        assert ((drawn.mean(0) - mean).abs() < 4 * (variance / len(drawn)).sqrt()).all()
        torch.testing.assert_close(drawn.var(0), variance, rtol=0.03, atol=1e-3)
    assert (x.abs() <= data.facts.high).float().mean() > 0.999


def test_the_mixtures_reference_is_fixed_and_not_a_training_batch() -> None:
    first, second = mixture(stream="0").reference(), mixture(stream="1", batch_size=3).reference()
    assert same(first, second)
    assert len(first.x) == 50
    assert not same(first, mixture(batch_size=50, stream="0").batch(0))


def test_the_ring_has_two_components_a_class_and_mean_zero() -> None:
    ring = ring_mixture(num_classes=4, dim=3, std=0.1)
    assert ring.num_classes == 4
    assert ring.weights.sum().item() == pytest.approx(1)
    assert ring.means.norm(dim=1).tolist() == pytest.approx([0.8] * 4 + [0.4] * 4)
    assert not ring.means[:, 2].any()
    assert (ring.weights[:, None] * ring.means).sum(0).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({"num_classes": 3, "dim": 1, "std": 0.1}, "dim must be at least 2 .* got 1, 3"),
        ({"num_classes": 0, "dim": 2, "std": 0.1}, "num_classes at least 1, got 2, 0"),
        ({"num_classes": 3, "dim": 2, "std": 0.0}, "stds and weights must be positive"),
    ],
)
def test_bad_rings_are_refused(sizes: dict[str, float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        ring_mixture(**sizes)  # pyright: ignore[reportArgumentType]
