import pytest
import torch

from fewstep.data.facts import DataFacts
from fewstep.evaluation.images import Reference, evaluation_tensor, image_path, tensor_digest, to_uint8

DIGITS = DataFacts("digits", (1, 8, 8), 10, -1.0, 1.0)
POINTS = DataFacts("mixture", (2,), 2, -3.0, 3.0)


def test_every_level_survives_scaling_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1, DIGITS), levels)


def test_rounds_to_the_nearest_level_and_clamps() -> None:
    level = torch.tensor([0.4, 0.6, 254.4, 254.6, -50.0, 300.0]).reshape(6, 1, 1, 1)
    assert to_uint8(level / 127.5 - 1, DIGITS).flatten().tolist() == [0, 1, 254, 255, 0, 255]


def test_another_range_is_scaled_by_its_own_facts() -> None:
    facts = DataFacts("other", (1, 1, 3), 1, 0.0, 2.0)
    assert to_uint8(torch.tensor([[[[0.0, 1.0, 2.0]]]]), facts).flatten().tolist() == [0, 128, 255]


def test_points_are_clamped_and_never_rounded() -> None:
    points = torch.randn(5, 2, dtype=torch.float64) * 10
    assert torch.equal(evaluation_tensor(points, POINTS), points.float().clamp(-3, 3))
    assert evaluation_tensor(points, POINTS).dtype == torch.float32
    assert image_path(DIGITS) == "clamp to [-1, 1], round to uint8"
    assert image_path(POINTS) == "clamp to [-3, 3], float32"


@pytest.mark.parametrize(("facts", "shape"), [(DIGITS, (3, 1, 8, 8)), (POINTS, (3, 2))])
def test_non_finite_samples_are_refused(facts: DataFacts, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    x[1].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 are not"):
        evaluation_tensor(x, facts)


def test_a_reference_has_one_label_per_image() -> None:
    with pytest.raises(ValueError, match="3 images, 2 labels"):
        Reference("test", torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))


def test_the_digest_covers_values_names_dtypes_and_shapes() -> None:
    base = torch.arange(6, dtype=torch.int32)
    variants = [{"a": base}, {"b": base}, {"a": base + 1}, {"a": base.float()}, {"a": base.reshape(2, 3)}]
    assert len({tensor_digest(tensors) for tensors in variants}) == len(variants)
    assert tensor_digest({"a": base, "b": base}) == tensor_digest({"b": base.clone(), "a": base.clone()})
