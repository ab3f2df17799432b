import pytest
import torch
from torch import Tensor

from fewstep.diffusion.prediction import KINDS, Clipped, Prediction, PredictionKind, diffuse, interpret
from fewstep.diffusion.schedule import CosineSchedule, alpha, expand, sigma


def drawn(shape: tuple[int, ...] = (6, 2)) -> tuple[Tensor, Tensor, Tensor]:
    """x, eps and a log-SNR in the interior of time, where all three readings have a meaning."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, eps, CosineSchedule().log_snr(torch.linspace(0.05, 0.95, shape[0]))


@pytest.mark.parametrize("shape", [(6, 1), (6, 2), (6, 3, 4, 4)])
def test_diffuse_gives_the_noised_data_and_the_truth(shape: tuple[int, ...]) -> None:
    x, eps, log_snr = drawn(shape)
    truth = diffuse(x=x, eps=eps, log_snr=log_snr)
    a, s = expand(alpha(log_snr), x), expand(sigma(log_snr), x)
    torch.testing.assert_close(truth.z, a * x + s * eps)
    torch.testing.assert_close(truth.v, a * eps - s * x)
    torch.testing.assert_close(truth.x, x)
    torch.testing.assert_close(truth.eps, eps)


@pytest.mark.parametrize("shape", [(6, 2), (6, 3, 4, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_reading_gives_the_other_two_and_itself_back(kind: PredictionKind, shape: tuple[int, ...]) -> None:
    x, eps, log_snr = drawn(shape)
    truth = diffuse(x=x, eps=eps, log_snr=log_snr)
    read = interpret(kind, getattr(truth, kind), z=truth.z, log_snr=log_snr)
    for name in KINDS:
        torch.testing.assert_close(getattr(read, name), getattr(truth, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_arbitrary_output_is_kept_as_what_it_was_said_to_be(kind: PredictionKind) -> None:
    z, output, log_snr = drawn()
    prediction = interpret(kind, output, z=z, log_snr=log_snr)
    torch.testing.assert_close(getattr(prediction, kind), output, rtol=0, atol=1e-12)
    a, s = expand(alpha(log_snr), z), expand(sigma(log_snr), z)
    torch.testing.assert_close(a * prediction.x + s * prediction.eps, z, rtol=0, atol=1e-12)


def test_v_is_stable_at_both_ends_in_float32() -> None:
    x, eps = torch.randn(2, 8), torch.randn(2, 8)
    truth = diffuse(x=x, eps=eps, log_snr=CosineSchedule().log_snr(torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(truth.x, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(truth.eps, eps, rtol=0, atol=1e-6)


def test_clip_holds_x_and_lets_eps_follow() -> None:
    x, eps, log_snr = drawn()
    truth = diffuse(x=3 * x, eps=eps, log_snr=log_snr)
    clipped = truth.clip(-1.0, 1.0)
    torch.testing.assert_close(clipped.x, (3 * x).clamp(-1, 1))
    a, s = expand(alpha(log_snr), x), expand(sigma(log_snr), x)
    torch.testing.assert_close(clipped.eps, (truth.z - a * clipped.x) / s)
    inside = diffuse(x=x.clamp(-1, 1), eps=eps, log_snr=log_snr)
    torch.testing.assert_close(inside.clip(-1.0, 1.0).v, inside.v)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused() -> None:
    z, output, log_snr = drawn()
    with pytest.raises(ValueError, match="one of x, eps, v, got 'score'"):
        interpret("score", output, z=z, log_snr=log_snr)  # pyright: ignore[reportArgumentType]


def test_predictions_cannot_be_changed() -> None:
    z, v, log_snr = drawn()
    with pytest.raises(AttributeError):
        Prediction(z=z, v=v, log_snr=log_snr).v = z  # pyright: ignore[reportAttributeAccessIssue]


def test_a_clipped_teacher_clips_its_predictions_alone() -> None:
    z, v, log_snr = drawn()

    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return Prediction(z=z, v=v, log_snr=log_snr)

    held = Clipped(teacher, -0.5, 0.5)(z, log_snr, torch.zeros(6).long(), None)
    torch.testing.assert_close(held.x, Prediction(z=z, v=v, log_snr=log_snr).x.clamp(-0.5, 0.5))
    assert torch.equal(held.z, z)
