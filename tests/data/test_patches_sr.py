"""Degraded images: what a degradation keeps, and that each is a function of its number alone."""

import pytest
import torch

from fewstep.data.degradation import Degradation, blur_matrices, degrade, draw_degradation, enlarge, gaussian_blur
from fewstep.data.facts import DegradedFacts
from fewstep.data.patches_sr import PatchesSRData
from fewstep.distributed import collectives

pytestmark = pytest.mark.usefixtures("unchecked")
SETTINGS = {"size": 32, "scale": 2, "blur": 0.8, "noise": 0.04, "jpeg": 60, "num_reference": 20}


def data(stream: str = "0", batch_size: int = 6, **changes) -> PatchesSRData:
    return PatchesSRData(**SETTINGS | changes, batch_size=batch_size, stream=stream)


def pixels(count: int = 3) -> torch.Tensor:
    """8-bit images in [-1, 1]."""
    return torch.randint(256, (count, 3, 16, 12), generator=torch.Generator().manual_seed(0)) / 127.5 - 1


def none(scale: int, count: int = 3) -> list[Degradation]:
    return [Degradation(0.0, torch.zeros(3, 16 // scale, 12 // scale), None)] * count


def test_nothing_done_at_scale_one_is_the_identity() -> None:
    assert torch.allclose(degrade(pixels(), 1, none(1)), pixels(), rtol=0, atol=1e-6)
    assert torch.allclose(enlarge(pixels(), 1), pixels(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_mean_of_every_image_is_kept(scale: int) -> None:
    """By averages and a blur that mirrors at the edges exactly, up to the rounding to 8 bits."""
    x = pixels().double()
    blurred = gaussian_blur(x, torch.tensor([0.0, 0.7, 2.5]).double())
    assert torch.allclose(blurred.mean((2, 3)), x.mean((2, 3)), rtol=0, atol=1e-9)
    assert torch.equal(blurred[0], x[0])
    assert not torch.allclose(blurred[1:], x[1:], atol=0.1)
    small = degrade(x, scale, none(scale))
    assert small.shape == (3, 3, 16 // scale, 12 // scale)
    assert float((small.mean((2, 3)) - x.mean((2, 3))).abs().max()) < 1 / 255 / 2


def test_the_blur_of_a_point_far_from_edges_is_the_gaussian() -> None:
    row = blur_matrices(41, torch.tensor([1.5]).double())[0, 20]
    places = torch.arange(-20, 21).double()
    gaussian = torch.exp(-0.5 * (places / 1.5) ** 2)
    torch.testing.assert_close(row, gaussian / gaussian.sum())


def test_noise_has_the_deviation_that_is_said_and_jpeg_changes_more_at_low_quality() -> None:
    flat, facts = torch.zeros(1, 3, 64, 64), DegradedFacts(scale=2, noise=0.2)
    drawn = [draw_degradation(facts, (3, 64, 64), "0", number) for number in range(200)]
    stds = torch.stack([each.noise.std() for each in drawn])
    assert 0.19 < float(stds.max()) < 0.21  # uniform from 0 to the largest
    assert float(stds.mean()) == pytest.approx(0.1, abs=0.01)
    out = degrade(flat, 2, drawn[:1])
    assert float(out.std()) == pytest.approx(float(drawn[0].noise.std()), rel=0.05)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    plain, high, low = (
        degrade(x, 1, [Degradation(0.0, torch.zeros(3, 64, 64), quality)]) for quality in (None, 95, 10)
    )
    assert 0 < float((high - plain).abs().mean()) < float((low - plain).abs().mean())


def test_qualities_are_drawn_from_the_whole_range() -> None:
    drawn = {draw_degradation(DegradedFacts(2, jpeg=90), (1, 8, 8), "0", n).jpeg for n in range(200)}
    assert drawn == {90, 91, 92, 93, 94, 95}


def test_an_example_depends_on_its_number_and_the_stream_alone(monkeypatch) -> None:
    whole = data().batch(2)
    assert torch.equal(data().batch(2).label, whole.label)
    assert not torch.equal(data("1").batch(2).label, whole.label)
    for place in (collectives,):
        monkeypatch.setattr(place, "world_size", lambda: 2)
    monkeypatch.setattr("fewstep.data.batches.world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        own = data().rows(2)
        assert torch.equal(own.label, whole.label[3 * rank : 3 * rank + 3])
        assert torch.equal(own.x, whole.x[3 * rank : 3 * rank + 3])


def test_held_out_conditions_are_of_the_reference_and_the_same_in_every_run() -> None:
    one, other = data(), data("another", 3)
    assert torch.equal(one.conditions(20), other.conditions(20))
    assert torch.equal(one.conditions(25)[20:], one.conditions(5))
    original, error = one.reference().x, []
    for shift in (0, 1):
        error.append(float((one.conditions(20) - original.roll(shift, 0)).square().mean()))
    assert error[0] < 0.1 * error[1]
    assert "306,504 images to train on" in one.check()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 3}, "multiples of dataset.scale=3"),
        ({"scale": 0}, "scale >= 1"),
        ({"jpeg": 96}, "jpeg quality of 1 to 95"),
        ({"noise": -0.1}, "noise >= 0"),
        ({"size": 48}, r"one of \(32, 64\)"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(**changes)
