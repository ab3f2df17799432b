"""A base's first steps before a student's: the weights of two modes come back, and where they are decided."""

import pytest
import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.hybrid import FirstSteps
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise, Prediction, interpret
from fewstep.diffusion.sampler import SAMPLERS, ddim_step, integrate, invert_ddim, renoise, sample, trajectory
from fewstep.diffusion.schedule import CosineSchedule, append_zero, uniform_times
from fewstep.system.seeds import fresh_noise

SCHEDULE = CosineSchedule()
TIMES = uniform_times(4)
COUNT = 1001
NOISE = torch.from_numpy(ndtri((torch.arange(COUNT).double().numpy() + 0.5) / COUNT))[:, None]  # quantiles: no chance
LABEL = torch.zeros(COUNT, dtype=torch.long)


@pytest.fixture
def modes() -> GaussianMixture:
    """Modes at -1 and 1 of weights 0.3 and 0.7."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return GaussianMixture(
        means=means, stds=torch.full_like(means, 0.25), weights=weights, classes=torch.zeros(2, dtype=torch.long)
    )


def flow(exact: Denoise, z: Tensor, t: float, s: float) -> Tensor:
    """Where the probability flow takes z from time t to s."""
    now, then = SCHEDULE.log_snr(torch.tensor([t, s], dtype=torch.float64))
    return integrate(exact, z, log_snr=now, log_snr_next=then, num_steps=24, label=LABEL, w=None)


def student(exact: Denoise, pull: float) -> Denoise:
    """Four steps that each follow the flow, but for the first, whose x is moved by `pull` towards the mode at 1.

    Built by us so that it collapses: it shows what a base repairs, and not that students of any method do collapse.
    """

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        step = int((TIMES - SCHEDULE.time(log_snr[:1])).abs().argmin())
        now, then = append_zero(TIMES)[step : step + 2].tolist()
        landed = flow(exact, z, now, then)
        log_snr_next = SCHEDULE.log_snr(torch.full_like(log_snr, then))
        prediction = invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=log_snr_next)
        moved = interpret("x", prediction.x + pull, z=z, log_snr=log_snr)
        return moved if step == 0 else prediction

    return denoise


def weight(x: Float[Tensor, "count 1"]) -> float:
    """Of the mode at 1."""
    return (x > 0).double().mean().item()


def hybrid(first: FirstSteps, denoise: Denoise) -> Tensor:
    z, times = first.take(NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL)
    return sample(denoise, z, schedule=SCHEDULE, times=times, label=LABEL, w=None)


def test_a_base_gives_the_weights_of_modes_back(modes: GaussianMixture) -> None:
    collapsed = student(modes.denoise, pull=0.7)
    alone = sample(collapsed, NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL, w=None)
    assert weight(flow(modes.denoise, NOISE, 1.0, 0.0)) == pytest.approx(0.7, abs=0.002)
    assert weight(alone) == pytest.approx(0.79, abs=0.01)
    one, eight = (weight(hybrid(FirstSteps(modes.denoise, steps=n), collapsed)) for n in (1, 8))
    assert one == pytest.approx(0.712, abs=0.002)
    assert eight == pytest.approx(0.701, abs=0.002)
    # A student that does not collapse needs no repair.
    sound = sample(student(modes.denoise, pull=0.0), NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL, w=None)
    assert weight(sound) == pytest.approx(0.7, abs=0.002)


@pytest.mark.parametrize(("t", "share"), [(0.75, 0.84), (0.5, 0.97), (0.25, 0.999)])
def test_the_sign_of_x_foretells_the_final_mode(modes: GaussianMixture, t: float, share: float) -> None:
    times = torch.linspace(1, 0, 65, dtype=torch.float64)[:-1]
    predictions = [*trajectory(modes.denoise, NOISE, schedule=SCHEDULE, times=times, label=LABEL, w=None)]
    step = int((times - t).abs().argmin())
    right = (predictions[step].x > 0) == (predictions[-1].x > 0)
    assert right.double().mean().item() == pytest.approx(share, abs=0.011)


def test_many_steps_of_the_base_are_its_flow_and_one_is_one_ddim_step(modes: GaussianMixture) -> None:
    for level, until in ((1, 0.75), (2, 0.5)):
        many, times = FirstSteps(modes.denoise, steps=100, level=level).take(
            NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL
        )
        assert times.tolist() == TIMES[level:].tolist()
        assert (many - flow(modes.denoise, NOISE, 1.0, until)).abs().mean() < 5e-3
    now, then = (SCHEDULE.log_snr(torch.full((COUNT,), t, dtype=torch.float64)) for t in (1.0, 0.75))
    one, _ = FirstSteps(modes.denoise).take(NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL)
    torch.testing.assert_close(one, ddim_step(modes.denoise(NOISE, now, LABEL), then))


@pytest.mark.parametrize("sampler", ["deterministic", "flow_map"])
def test_a_hybrid_of_a_model_with_itself_is_the_model(modes: GaussianMixture, sampler: str) -> None:
    """A step of the base is a step of DDIM; the rest is sampled as ever, told where its steps end or not."""

    def told(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: object = None) -> Prediction:
        assert (extra is not None) == (sampler == "flow_map")
        return modes.denoise(z, log_snr, label, w)

    z, times = FirstSteps(modes.denoise).take(NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL)
    rest = {"schedule": SCHEDULE, "label": LABEL, "w": None, "sampler": SAMPLERS[sampler]}
    torch.testing.assert_close(sample(told, z, times=times, **rest), sample(told, NOISE, times=TIMES, **rest))


def test_a_student_that_renoises_goes_on_from_the_bases_state(modes: GaussianMixture) -> None:
    """The perfect consistency model: from any level to the end of the flow."""

    def end(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        x = flow(modes.denoise, z, SCHEDULE.time(log_snr[:1]).item(), 0.0)
        return interpret("x", x, z=z, log_snr=log_snr)

    first, fresh = FirstSteps(modes.denoise, steps=8), fresh_noise(0, 0, COUNT, (1,))
    z, times = first.take(NOISE, schedule=SCHEDULE, times=uniform_times(2), label=LABEL)
    x = sample(end, z, schedule=SCHEDULE, times=times, label=LABEL, w=None, sampler=renoise, fresh=fresh)
    torch.testing.assert_close(x, flow(modes.denoise, z, 0.5, 0.0), atol=1e-6, rtol=0)  # one step: nothing is noised
    assert weight(x) == pytest.approx(0.705, abs=0.002)
    z, times = first.take(NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL)
    x = sample(end, z, schedule=SCHEDULE, times=times, label=LABEL, w=None, sampler=renoise, fresh=fresh)
    assert weight(x) == pytest.approx(0.7, abs=3 * (0.21 / COUNT) ** 0.5)


def test_without_guidance_the_base_costs_one_evaluation_a_step(modes: GaussianMixture) -> None:
    guided = Guided(modes.denoise, modes.num_classes)
    free, strong = FirstSteps(guided, steps=3), FirstSteps(guided, steps=3, w=2.0)
    assert (free.evaluations, strong.evaluations, FirstSteps(modes.denoise, w=2.0).evaluations) == (3, 6, 1)
    plain, _ = free.take(NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL)
    both, _ = FirstSteps(lambda *given: guided(*given), steps=3).take(
        NOISE, schedule=SCHEDULE, times=TIMES, label=LABEL
    )
    torch.testing.assert_close(plain, both)


def test_what_cannot_be_a_hybrid(modes: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="more steps than 1, got 1; a student made for one step takes no base"):
        FirstSteps(modes.denoise).take(NOISE, schedule=SCHEDULE, times=uniform_times(1), label=LABEL)
    for steps, w, level in ((0, 0.0, 1), (1, 0.0, 0), (1, -1.0, 1), (1, float("nan"), 1)):
        with pytest.raises(ValueError, match="at least 1 step to at least level 1, at w >= 0"):
            FirstSteps(modes.denoise, steps, w, level)
