"""eps teachers whose schedule ends above zero SNR: the exact mixture seen through Stable Diffusion's betas.

What is done with them (`runs.build.schedule_of`), each against a closed form: the sampler on the teacher's own
schedule solves the guided ODE; starting it from pure noise biases mean and variance by what is derived below; on the
cosine schedule the bias is gone; and a v student of such a teacher learns it.
"""

from collections.abc import Callable
from itertools import pairwise
from math import log, sqrt

import pytest
import torch
from exact import ExactNetwork
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import PredictionKind, diffuse
from fewstep.diffusion.sampler import integrate, sample
from fewstep.diffusion.schedule import CosineSchedule, Schedule, alpha, sigma, uniform_times
from fewstep.methods import Guidance, Networks, Training
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser, Frozen, ResidualMLP
from fewstep.system.seeds import seed_for

NATIVE = BetaSchedule()  # Stable Diffusion's: alpha = 0.068 at its last timestep
RESCALED = BetaSchedule(rescale_zero_snr=True)
MakeMixture = Callable[..., GaussianMixture]


def teacher_of(mixture: GaussianMixture, native_schedule: BetaSchedule = NATIVE) -> Frozen:
    return Frozen(Denoiser(ExactNetwork(mixture, "eps", native_schedule), "eps", native_schedule))


def test_ddim_on_its_own_schedule_converges_to_the_exact_guided_ode(make_mixture: MakeMixture) -> None:
    mixture = make_mixture()
    teacher = teacher_of(mixture)
    guided, exact = Guided(teacher, teacher.null), Guided(mixture.denoise, mixture.num_classes)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, w = torch.arange(64) % 3, torch.full((64,), 1.5, dtype=torch.float64)
    ends = NATIVE.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64))
    truth = integrate(exact, noise, log_snr=ends[0], log_snr_next=ends[1], num_steps=200, label=label, w=w)

    def distance(num_steps: int) -> float:
        x = sample(guided, noise, schedule=NATIVE, times=uniform_times(num_steps), label=label, w=w)
        return float((x - truth).square().mean().sqrt())

    errors = [distance(num_steps) for num_steps in (25, 50, 100, 200)]  # each a divisor of the thousand timesteps
    orders = [log(coarse / fine, 2) for coarse, fine in pairwise(errors)]
    assert all(0.8 < order < 1.25 for order in orders), (errors, orders)
    assert errors[-1] < 0.01


MEAN, STD = 0.7, 0.5


def gaussian() -> GaussianMixture:
    """One Gaussian, whose ODE is an affine map: x = m + s (z - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    return GaussianMixture(
        means=torch.tensor([[MEAN]], dtype=torch.float64),
        stds=torch.tensor([[STD]], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
        classes=torch.zeros(1, dtype=torch.long),
    )


TWO_POINTS = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # of mean 0 and variance 1: all that an affine map sees


def biases(teacher: Frozen, schedule: Schedule, num_steps: int = 125) -> tuple[float, float]:
    """Mean and standard deviation of samples from pure noise, less those of the data."""
    x = sample(
        teacher,
        TWO_POINTS,
        schedule=schedule,
        times=uniform_times(num_steps),
        label=torch.zeros(2, dtype=torch.long),
        w=None,
    )
    return float(x.mean()) - MEAN, float(x.std(correction=0)) - STD


def test_the_bias_of_starting_from_pure_noise_is_what_the_ode_says() -> None:
    end = NATIVE.log_snr(torch.tensor(1.0, dtype=torch.float64))
    a, s = float(alpha(end)), float(sigma(end))
    assert a == pytest.approx(0.0683, abs=1e-4)
    spread = sqrt(a**2 * STD**2 + s**2)
    expected_mean, expected_std = -STD * a * MEAN / spread, STD / spread - STD
    label = torch.zeros(2, dtype=torch.long)
    top = NATIVE.log_snr(torch.tensor(0.0, dtype=torch.float64))
    solved = integrate(
        gaussian().denoise, TWO_POINTS, log_snr=end, log_snr_next=top, num_steps=200, label=label, w=None
    )
    assert float(solved.mean()) - MEAN == pytest.approx(expected_mean, abs=1e-4)
    assert float(solved.std(correction=0)) - STD == pytest.approx(expected_std, abs=1e-4)
    mean, std = biases(teacher_of(gaussian()), NATIVE, num_steps=500)
    assert mean == pytest.approx(expected_mean, rel=0.03)
    assert mean == pytest.approx(-0.0239, abs=5e-4)  # a thirtieth of the mean is lost
    assert std == pytest.approx(expected_std, abs=8e-3)  # DDIM's own error, of 500 steps, is the larger part
    # zero_terminal_snr=true: its x at the last timestep, for a z without signal, is the mean up to alpha.
    cosine_mean, cosine_std = biases(teacher_of(gaussian()), CosineSchedule())
    assert abs(cosine_mean) < 0.02 * abs(mean)
    assert abs(cosine_std) < 0.025  # of 125 steps
    # A teacher that was itself trained on rescaled betas has no bias to begin with (in v; eps divides by alpha there).
    network = ExactNetwork(gaussian(), "v", RESCALED)
    rescaled_mean, rescaled_std = biases(Frozen(Denoiser(network, "v", RESCALED)), RESCALED)
    assert abs(rescaled_mean) < 0.002
    assert abs(rescaled_std) < 0.025


@pytest.mark.slow
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_v_student_learns_the_guided_eps_teacher(make_mixture: MakeMixture, zero_terminal_snr: bool) -> None:
    mixture = make_mixture()
    schedule = CosineSchedule() if zero_terminal_snr else NATIVE
    torch.manual_seed(0)
    network = ResidualMLP(shape=(2,), num_classes=3, width=64, num_blocks=2, embedding_dim=32, guidance_input=True)
    teacher = teacher_of(mixture)
    steps = 200
    student = Denoiser(network, "v", NATIVE)
    method = Guidance(
        name="guidance",
        training=Training(
            images=256 * steps,
            batch_size=256,
            learning_rate=3e-3,
            warmup_images=0,
            gradient_clip=1.0,
            ema_decay=0.0,
            weight="snr_plus_one",
        ),
        w_min=0.0,
        w_max=2.0,
    )
    nets = Networks(student, Guided(teacher, teacher.null), schedule, method.guidance(None))
    (phase,) = method.phases()

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_for("terminal", step))
        label = torch.randint(3, (256,), generator=generator)
        return Batch(mixture.draw(label, generator).float(), label)

    @torch.no_grad()
    def error() -> float:
        """Of the student's v to the exact guided denoiser's, on the student's schedule."""
        x, label = batch(-1)
        generator = torch.Generator().manual_seed(1)
        log_snr = schedule.log_snr(torch.rand(256, generator=generator))
        z = diffuse(x=x, eps=torch.randn(x.shape, generator=generator), log_snr=log_snr).z
        w = 2 * torch.rand(256, generator=generator)
        exact = Guided(mixture.denoise, 3)(z, log_snr, label, w).v
        return float((student(z, log_snr, label, w).v - exact).square().mean())

    before = error()
    optimiser = torch.optim.AdamW(student.parameters(), 3e-3, weight_decay=0.0)
    for step in range(steps):
        examples = batch(step)
        draws = Draws.begin(examples.x, "terminal", step)
        loss = method.losses(examples, nets, draws, step=step, phase=phase)["student"].error.mean()
        assert bool(loss.isfinite())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - (step + 1) / steps)
    assert error() < before / 20, (before, error())


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_error_of_an_eps_teacher_does_not_explode_at_zero_snr(make_mixture: MakeMixture, kind: str) -> None:
    """ADM's cosine schedule ends at alpha = 5e-5: an eps that errs by 0.01 would there say an x of 200."""
    mixture, native_schedule = make_mixture(), BetaSchedule("squaredcos_cap_v2")
    assert native_schedule.has_zero_terminal_snr

    class Erring(ExactNetwork):
        def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
            return super().forward(z, time, label, w) + 0.01

    noise, label = torch.randn(64, 2, dtype=torch.float64), torch.arange(64) % 3
    prediction: PredictionKind = "eps" if kind == "eps" else "v"

    def sampled(network: ExactNetwork) -> Tensor:
        teacher = Frozen(Denoiser(network, prediction, native_schedule))
        return sample(teacher, noise, schedule=native_schedule, times=uniform_times(50), label=label, w=None)

    good, erring = (sampled(kind(mixture, prediction, native_schedule)) for kind in (ExactNetwork, Erring))
    assert (good - erring).abs().max() < 0.15
    exact = sample(mixture.denoise, noise, schedule=native_schedule, times=uniform_times(50), label=label, w=None)
    assert (good - exact).abs().max() < 0.05


def test_below_its_last_timestep_the_teachers_eps_is_not_asked_again(make_mixture: MakeMixture) -> None:
    """On the cosine schedule at t = 1, where reading eps anew would divide by 4.5e-5, the teacher's x stays bounded."""
    mixture = make_mixture()
    teacher = teacher_of(mixture)
    z, label = torch.randn(64, 2), torch.arange(64) % 3
    nothing = torch.full((64,), -20.0, dtype=torch.float64)

    def spread(x: Tensor) -> float:
        return float(x.abs().max())

    assert spread(teacher(z, nothing, label, None).x) < 3
    assert spread(mixture.denoise(z, nothing, label).x) < 3
