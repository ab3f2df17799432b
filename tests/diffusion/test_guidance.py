from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided, guide, log_snr_interval, steer, weight_in_words
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import KINDS, Prediction, PredictionKind
from fewstep.diffusion.schedule import CosineSchedule

Call = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Counting:
    """A Denoise that remembers what it was asked."""

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        self.calls: list[Call] = []

    def __call__(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        self.calls.append((z, log_snr, label, w))
        return self.mixture.denoise(z, log_snr, label, w)


@pytest.fixture
def denoise(make_mixture: Callable[..., GaussianMixture]) -> Counting:
    return Counting(make_mixture(num_classes=3, dim=2))


def question(count: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return z, CosineSchedule().log_snr(torch.linspace(0.1, 0.9, count)), torch.arange(count) % 3


@pytest.mark.parametrize("kind", KINDS)
def test_guiding_x_eps_or_v_is_the_same(denoise: Counting, kind: PredictionKind) -> None:
    z, log_snr, label = question()
    w = torch.linspace(0, 8, 7, dtype=torch.float64)
    conditional = denoise(z, log_snr, label, None)
    unconditional = denoise(z, log_snr, torch.full_like(label, 3), None)
    expected = (1 + w[:, None]) * getattr(conditional, kind) - w[:, None] * getattr(unconditional, kind)
    by_hand = guide(conditional=getattr(conditional, kind), unconditional=getattr(unconditional, kind), w=w)
    torch.testing.assert_close(by_hand, expected)
    torch.testing.assert_close(getattr(Guided(denoise, 3)(z, log_snr, label, w), kind), expected)


def test_no_guidance_is_the_conditional_prediction(denoise: Counting) -> None:
    z, log_snr, label = question()
    guided = Guided(denoise, 3)(z, log_snr, label, torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(guided.v, denoise(z, log_snr, label, None).v, rtol=0, atol=1e-15)


def test_both_branches_are_one_call_on_a_doubled_batch(denoise: Counting) -> None:
    z, log_snr, label = question()
    Guided(denoise, 3)(z, log_snr, label, torch.ones(7))
    ((z_asked, log_snr_asked, label_asked, w_asked),) = denoise.calls
    assert torch.equal(z_asked, torch.cat([z, z]))
    assert torch.equal(log_snr_asked, torch.cat([log_snr, log_snr]))
    assert label_asked.tolist() == [*label.tolist(), *[3] * 7]
    assert w_asked is None
    assert Guided.evaluations == 2


def test_w_is_per_example_and_must_be_given(denoise: Counting) -> None:
    z, log_snr, label = question(2)
    guided = Guided(denoise, 3)
    mixed = guided(z, log_snr, label, torch.tensor([0.0, 5.0])).v
    for index, w in enumerate((0.0, 5.0)):
        torch.testing.assert_close(mixed[index], guided(z, log_snr, label, torch.full((2,), w)).v[index])
    with pytest.raises(AssertionError, match="needs w"):
        guided(z, log_snr, label, None)


def test_outside_the_interval_there_is_no_guidance(denoise: Counting) -> None:
    z, log_snr, label = question()
    w = torch.full((7,), 3.0, dtype=torch.float64)
    low, high = float(log_snr[4]), float(log_snr[2])  # log-SNR falls with time
    limited = Guided(denoise, 3, interval=(low, high))(z, log_snr, label, w)
    inside = torch.tensor([False, False, True, True, True, False, False])
    expected = Guided(denoise, 3)(z, log_snr, label, w * inside)
    assert torch.equal(limited.v, expected.v)
    assert not torch.allclose(limited.v, Guided(denoise, 3)(z, log_snr, label, w).v)


def test_a_prompts_null_is_the_embedding_of_the_empty_prompt() -> None:
    """The condition of the guided branch is each prompt's own, that of the other the empty prompt's, in one call."""
    prompts, empty = torch.randn(4, 3, 5), torch.randn(3, 5)
    asked: list[Tensor] = []

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        asked.append(label)
        return Prediction(z=z, v=label.mean((1, 2))[:, None] * z, log_snr=log_snr)

    z, log_snr = torch.ones(4, 2), torch.zeros(4)
    v = Guided(denoise, empty)(z, log_snr, prompts, torch.full((4,), 2.0)).v
    assert torch.equal(asked[0], torch.cat([prompts, empty.expand(4, 3, 5)]))
    torch.testing.assert_close(v[:, 0], 3 * prompts.mean((1, 2)) - 2 * empty.mean())


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_guided_mixture_is_the_closed_form(make_mixture: Callable[..., GaussianMixture], dim: int) -> None:
    mixture, label = make_mixture(dim=dim), torch.arange(16) % 3
    z, w = torch.randn(16, dim, dtype=torch.float64), torch.linspace(0, 4, 16, dtype=torch.float64)
    log_snr = CosineSchedule().log_snr(torch.linspace(0.02, 1, 16))
    guided = Guided(mixture.denoise, 3)(z, log_snr, label, w)
    conditional = mixture.denoise(z, log_snr, label).x
    unconditional = mixture.denoise(z, log_snr, torch.full_like(label, 3)).x
    torch.testing.assert_close(guided.x, (1 + w[:, None]) * conditional - w[:, None] * unconditional)


def test_a_slider_steers_along_the_difference_of_two_concepts() -> None:
    """With an amount of 1 from `away` it arrives at `towards`, and with 1 + w it is guidance."""
    neutral, towards, away = torch.randn(3, 4, 2, dtype=torch.float64)
    amount = torch.tensor([0.0, 1.0, -1.0, 2.5], dtype=torch.float64)
    expected = neutral + amount[:, None] * (towards - away)
    torch.testing.assert_close(steer(neutral=neutral, towards=towards, away=away, amount=amount), expected)
    torch.testing.assert_close(steer(neutral=away, towards=towards, away=away, amount=amount.new_ones(4)), towards)
    w = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    guided = guide(conditional=towards, unconditional=away, w=w)
    torch.testing.assert_close(steer(neutral=away, towards=towards, away=away, amount=1 + w), guided)


def test_weights_in_words() -> None:
    assert weight_in_words(1.5) == "w = 1.5"
    assert weight_in_words((1.0, 2.0)) == "w = 1 and w2 = 2"


def test_an_interval_in_time_is_one_in_log_snr_in_float64() -> None:
    schedule = CosineSchedule()
    highest, lowest = schedule.log_snr(torch.tensor([0.2, 0.7], dtype=torch.float64)).tolist()
    assert log_snr_interval(schedule, (0.2, 0.7)) == (lowest, highest)
    assert log_snr_interval(schedule, None) is None
    assert log_snr_interval(schedule, [0.0, 1.0]) is not None
    for times in ([0.2], [0.7, 0.2], [0.2, 0.2], [-0.1, 0.5], [0.5, 1.1]):
        words = r"^stage.guidance_interval must be null or two times \[low, high\] with 0 <= low < high <= 1, got "
        with pytest.raises(ValueError, match=words):
            log_snr_interval(schedule, times)
