"""Generators with a fake score, in closed form: decoupled guidance, other divergences, score identity, DP-DMD."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from small_methods import NULL, SCHEDULE, Exact, batch, flow, gaussian, module, network, small
from test_dmd2 import CONDITIONAL, DIM, LEVEL, MEAN, STOPS, UNCONDITIONAL, Affine, ExactFake, data, denoised, trained
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.distribution import divergence_weight, score_identity
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.hop import folded
from fewstep.diffusion.prediction import Clipped, Denoise, Prediction, diffuse
from fewstep.diffusion.sampler import ddim_step, sample
from fewstep.diffusion.schedule import alpha, network_time, sigma
from fewstep.methods import DMD2, DPDMD, GuidanceRange, Networks, SiD
from fewstep.methods.dmd2 import CRITIC, balanced
from fewstep.methods.draws import Draws
from fewstep.methods.fake_score import FAKE
from fewstep.methods.losses import pull
from fewstep.networks.denoiser import Denoiser, Frozen, differentiable

AT_LEVEL = {"guidance_t_max": LEVEL + 1e-9}


@pytest.fixture
def double() -> Iterator[None]:
    """All random numbers in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def method_of(name: str, **changes: Any) -> Any:
    return small(name, **changes)


def affine(mean: float, std: float) -> Affine:
    generator = Affine()
    generator.mean.data.fill_(mean)
    generator.std.data.fill_(std)
    return generator


# Decoupled guidance ---------------------------------------------------------------------------------------------------


def tilted(omega: float) -> tuple[float, float]:
    """Mean and std at which DMD stops at the one level; see test_dmd2.py."""
    a, b = 0.64 * CONDITIONAL**2 + 0.36, 0.64 * UNCONDITIONAL**2 + 0.36
    precision = omega / a - (omega - 1) / b
    return omega * MEAN / (a * precision), ((1 / precision - 0.36) / 0.64) ** 0.5


@pytest.mark.usefixtures("double", "unchecked")
def test_decoupled_at_one_level_stops_at_the_gaussian_tilted_by_the_ratio_of_the_normalisers() -> None:
    """Each direction is divided by its own mean error, so that guidance counts n / n_w times w."""
    guided, w = Guided(data, 1), 0.25
    mean, std = trained(w, guided, steps=400, **AT_LEVEL)
    draws = Draws.begin(torch.zeros(4000, DIM), "0/errors", 0)
    x = mean + std * draws.normal()
    at = SCHEDULE.log_snr(torch.full((4000,), LEVEL))
    z, label = diffuse(x=x, eps=draws.normal(), log_snr=at).z, torch.zeros(4000, dtype=torch.long)
    plain, with_w = (float((x - guided(z, at, label, torch.full((4000,), g)).x).abs().mean()) for g in (0.0, w))
    assert (mean, std) == pytest.approx(tilted(1 + w * plain / with_w), abs=6e-3)


@pytest.mark.usefixtures("double", "unchecked")
def test_matching_alone_stops_at_the_conditional_whatever_w() -> None:
    nothing = patch.object(DMD2, "guidance_direction", lambda self, x, *_, **__: torch.zeros_like(x))
    with nothing:
        found = trained(3.0, Guided(data, 1), steps=300, **AT_LEVEL)
    assert found == pytest.approx(STOPS[1.0], abs=1e-3)


@pytest.mark.usefixtures("double", "unchecked")
def test_guidance_alone_collapses_to_a_point_beyond_the_mean() -> None:
    """At mB / (B - A), where conditional and unconditional predictions agree: no spread, and too far."""
    a, b = 0.64 * CONDITIONAL**2 + 0.36, 0.64 * UNCONDITIONAL**2 + 0.36
    method, generator = method_of("dmd2", levels=[1.0], t_min=LEVEL, t_max=LEVEL + 1e-9, **AT_LEVEL), Affine()
    nets = Networks(generator, Guided(data, 1), SCHEDULE, GuidanceRange(2.0, 2.0))
    optimiser = torch.optim.SGD([generator.mean, generator.std], lr=0.3)
    one, label = torch.ones(4), torch.zeros(4, dtype=torch.long)
    for step in range(100):
        draws = Draws.begin(torch.zeros(4, 2000), "0/guidance", step)
        x = generator.mean + generator.std * draws.normal()
        direction = method.guidance_direction(x, nets, draws, label, 2 * one, level=one)
        optimiser.zero_grad()
        pull(x, direction, t=one, w=one).error.mean().backward()
        optimiser.step()
    assert MEAN * b / (b - a) == pytest.approx(1.475, abs=5e-4)
    assert float(generator.mean.detach()) == pytest.approx(1.475, abs=0.01)
    assert abs(float(generator.std.detach())) < 0.01


@pytest.mark.parametrize(("level", "highest"), [(1.0, 0.6), (0.25, 0.25), (0.01, 0.02)])
def test_guidance_is_cleaner_than_the_students_level_and_matching_is_anywhere(level: float, highest: float) -> None:
    method = method_of("dmd2, decoupled", t_min=0.02, t_max=0.98)
    made = module(method)
    x, w = torch.zeros(4000, 2), torch.full((4000,), 1.5)
    calls: list[tuple[Tensor, Tensor]] = []

    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        assert w is not None
        calls.append((SCHEDULE.time(log_snr), w))
        return Prediction(z=z, v=z, log_snr=log_snr)

    nets = Networks(made.student, teacher, SCHEDULE, made.nets.guidance, trained=made.nets.trained)
    label = torch.zeros(4000, dtype=torch.long)
    method.student_loss(x, nets, Draws.begin(x, "s", 0), label, w, level=torch.full((4000,), level))
    matching, *guidance = calls
    assert not bool(matching[1].any())
    assert float(matching[0].min()) == pytest.approx(0.02, abs=5e-3)
    assert float(matching[0].max()) == pytest.approx(0.98, abs=5e-3)
    assert [float(of_w.mean()) for _, of_w in guidance] == [0.0, 1.5]
    for t, _ in guidance:
        assert float(t.min()) == pytest.approx(0.02, abs=5e-3)
        assert float(t.max()) == pytest.approx(highest, abs=5e-3)


# Level by level -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dmd2, level by level", "sid"])
def test_the_fake_score_sees_the_level_that_its_samples_were_predicted_at(name: str) -> None:
    made = module(method_of(name, fake_sees_level=True))
    fake = made.nets.trained[FAKE]
    assert isinstance(fake, Denoiser)
    assert fake.extra_inputs == ("level",)
    seen: list[Tensor] = []
    forward = Denoiser.forward

    def spy(self: Denoiser, *others: Any, **named: Any) -> Prediction:
        if self is fake:
            seen.append(named["extra"]["level"])
        return forward(self, *others, **named)

    given = batch()
    with patch.object(Denoiser, "forward", spy), patch.object(Draws, "choice", lambda self, count: 1):
        draws = Draws.begin(given.x, "s", 2)
        made.method.losses(given, made.nets, draws, step=2, phase=made.phase)
    assert len(seen) == (4 if "dmd2" in name else 2)  # of the student, of its own, and the critic's of each
    for level in seen:
        torch.testing.assert_close(level, network_time(SCHEDULE.log_snr(torch.full((32,), 0.75))))


# Divergences ----------------------------------------------------------------------------------------------------------


DIVERGENCES: dict[Any, Any] = {
    "kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "rkl": lambda r: -r.log(),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.usefixtures("double")
def test_the_weighted_direction_is_the_gradient_of_the_divergence(divergence: Any) -> None:
    """By quadrature: dD_f(p || q) / dmean = -E_q[h(r) (score of p - score of q)], q a Gaussian and p of two modes."""
    z = torch.linspace(-12, 12, 20001)

    def log_q(mean: Tensor) -> Tensor:
        return torch.distributions.Normal(mean, 1.3).log_prob(z)

    modes = torch.distributions.Normal(torch.tensor([[-0.6], [0.9]]), torch.tensor([[1.0], [0.8]]))
    at = z.clone().requires_grad_()
    log_p = (modes.log_prob(at) + torch.tensor([[0.6], [0.4]]).log()).logsumexp(0)
    (score_p,) = torch.autograd.grad(log_p.sum(), at)
    mean = torch.tensor(0.3, requires_grad=True)
    ratio = (log_p.detach() - log_q(mean)).exp()
    divergence_of = torch.trapezoid(log_q(mean).exp() * DIVERGENCES[divergence](ratio), z)
    (expected,) = torch.autograd.grad(divergence_of, mean)
    q, score_q = log_q(mean).exp().detach(), -(z - 0.3) / 1.3**2
    weight = divergence_weight(divergence, ratio.detach().log())
    found = -torch.trapezoid(q * weight * (score_p - score_q), z)
    assert float(found) == pytest.approx(float(expected), rel=0.02)
    assert abs(float(expected)) > 0.01


def test_a_ratio_of_densities_is_held_in_its_bounds() -> None:
    logit = torch.tensor([-1e4, 0.0, 1e4])
    torch.testing.assert_close(divergence_weight("kl", logit), torch.tensor([0.1, 1.0, 20.0]))
    torch.testing.assert_close(divergence_weight("js", logit), torch.tensor([0.1 / 1.1, 0.5, 20 / 21]))


def test_balanced_weights_have_the_mean_1_in_each_tenth_of_t() -> None:
    t, weight = torch.rand(500, dtype=torch.float64), torch.rand(500) + 0.1
    t[0], t[t > 0.9] = 1.0, 0.95
    found = balanced(weight, t)
    for tenth in range(9):
        inside = (t >= tenth / 10) & (t < (tenth + 1) / 10)
        assert float(found[inside].mean()) == pytest.approx(1, abs=1e-5)
        ratios = found[inside] / weight[inside]
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


def test_a_critic_that_cannot_tell_makes_all_divergences_the_same_and_another_does_not() -> None:
    def student(divergence: str, *, blind: bool) -> Tensor:
        made = module(method_of("dmd2 of another divergence", divergence=divergence))
        with torch.no_grad():
            for weight in made.trained.parameters():
                weight.add_(0.1)
        if blind:
            nn.init.zeros_(made.trained[CRITIC].heads[0][2].weight)  # pyright: ignore
        given = batch()
        draws = Draws.begin(given.x, made.stream, 2)
        return made.method.losses(given, made.nets, draws, step=2, phase=made.phase)["student"].error

    torch.testing.assert_close(student("js", blind=True), student("rkl", blind=True))
    for divergence in ("js", "kl"):
        assert float((student(divergence, blind=False) - student("rkl", blind=False)).abs().max()) > 1e-3


# Score identity -------------------------------------------------------------------------------------------------------


def sid_gradient(alpha_: float, mean: float, std: float) -> tuple[float, float]:
    """The gradient of SiD's loss in the generator's mean and std; teacher N(MEAN, CONDITIONAL^2), fake score exact."""
    method, generator = method_of("sid", levels=[1.0], fake_updates=1, alpha=alpha_), affine(mean, std)
    assert isinstance(method, SiD)
    nets = Networks(generator, data, SCHEDULE, GuidanceRange(0.0, 0.0), trained={FAKE: ExactFake(generator)})
    given = Batch(torch.zeros(3000, DIM), torch.zeros(3000, dtype=torch.long))
    (phase,) = method.phases()
    draws = Draws.begin(given.x, "0/sid", 0)
    loss = method.losses(given, nets, draws, step=0, phase=phase)["student"].error.mean()
    found = torch.autograd.grad(loss, [generator.mean, generator.std])
    return float(found[0]), float(found[1])


@pytest.mark.parametrize("alpha_", [0.5, 1.0, 1.2, 1.5])
@pytest.mark.usefixtures("double", "unchecked")
def test_score_identity_lowers_errors_of_mean_and_scale(alpha_: float) -> None:
    right = sid_gradient(alpha_, MEAN, CONDITIONAL)
    assert right == pytest.approx((0, 0), abs=1e-9)
    assert sid_gradient(alpha_, MEAN + 0.3, CONDITIONAL)[0] > 0.01
    assert sid_gradient(alpha_, MEAN - 0.3, CONDITIONAL)[0] < -0.01
    assert sid_gradient(alpha_, MEAN, CONDITIONAL + 0.2)[1] > 0.01
    assert sid_gradient(alpha_, MEAN, CONDITIONAL - 0.2)[1] < -0.01


@pytest.mark.usefixtures("double", "unchecked")
def test_the_gradient_of_score_identity_runs_through_both_predictions() -> None:
    """dL/dx, by the product rule with the slopes of the two exact denoisers."""
    x = torch.randn(5, DIM).requires_grad_()
    at = SCHEDULE.log_snr(torch.full((5,), 0.4))
    noised = diffuse(x=x, eps=torch.randn(5, DIM), log_snr=at)
    one = torch.ones(5)
    real = denoised(noised.z, at, MEAN * one, CONDITIONAL * one)
    fake = denoised(noised.z, at, 0.2 * one, 0.9 * one)
    found = score_identity(x=x, fake=fake, real=real, alpha=1.2)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    a2 = float(alpha(at)[0]) ** 2
    k_real, k_fake = (a2 * std**2 / (a2 * std**2 + float(sigma(at)[0]) ** 2) for std in (CONDITIONAL, 0.9))
    d, e = (real.x - fake.x).detach(), (real.x - x).detach()
    slope_d, slope_e = k_real - k_fake, k_real - 1
    size = e.abs().mean(1, keepdim=True)
    expected = (slope_d * (e - 1.2 * d) + d * (slope_e - 1.2 * slope_d)) / size / DIM
    torch.testing.assert_close(gradient, expected)


@pytest.mark.usefixtures("double")
def test_the_value_of_score_identity_is_one_minus_alpha_times_the_squared_difference() -> None:
    at = SCHEDULE.log_snr(torch.full((20000,), 0.5))
    one = torch.ones(20000)
    x = 0.2 + 0.9 * torch.randn(20000, DIM)
    z = diffuse(x=x, eps=torch.randn_like(x), log_snr=at).z
    real, fake = denoised(z, at, MEAN * one, CONDITIONAL * one), denoised(z, at, 0.2 * one, 0.9 * one)
    size = (x - real.x).abs().mean(1)
    for a in (0.5, 1.2):
        found = (score_identity(x=x, fake=fake, real=real, alpha=a) * size).mean()
        assert float(found) == pytest.approx((1 - a) * float((real.x - fake.x).square().mean()), rel=0.03)


def test_gradients_pass_a_differentiable_teacher_and_not_into_it() -> None:
    denoiser = network()
    label, at = batch().label, SCHEDULE.log_snr(torch.full((32,), 0.5))

    def gradient(teacher: Denoise) -> Tensor:
        z = batch().x.requires_grad_()
        (found,) = torch.autograd.grad(teacher(z, at, label, torch.ones(32)).x.square().sum(), z)
        return found

    wrappers: list[Callable[[Denoise], Denoise]] = [
        lambda each: each,
        lambda each: Guided(each, NULL),
        lambda each: Clipped(Guided(each, NULL), -0.5, 0.5),
    ]
    expected = [gradient(wrapped(denoiser)) for wrapped in wrappers]
    teacher = Frozen(denoiser)
    for wrapped, right in zip(wrappers, expected, strict=True):
        torch.testing.assert_close(gradient(differentiable(wrapped(teacher))), right)
        assert not torch.allclose(gradient(wrapped(teacher)), right)
    assert not any(weight.requires_grad for weight in denoiser.parameters())


@pytest.mark.parametrize("name", ["sid", "dp_dmd", "dmd2, decoupled", "dmd2 of another divergence"])
def test_the_students_loss_moves_the_student_alone(name: str) -> None:
    made = module(method_of(name))
    with torch.no_grad():
        for weight in made.trained.parameters():
            weight.add_(0.1)
    given = batch()
    draws = Draws.begin(given.x, made.stream, 2)
    losses = made.method.losses(given, made.nets, draws, step=2, phase=made.phase)
    losses["student"].error.mean().backward()
    assert all(weight.grad is not None for weight in made.student.parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in made.trained.parameters())


# The first step of DP-DMD ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[1.0, 0.5], [1.0, 0.9, 0.3]])
@pytest.mark.usefixtures("double", "unchecked")
def test_the_first_step_of_an_exact_student_has_no_error_where_the_teachers_steps_are_the_flow(
    levels: list[float],
) -> None:
    """On Gaussians; the teacher ends at the student's own second level, whatever the number of its steps."""
    method = method_of("dp_dmd", levels=levels, teacher_steps=3)
    assert isinstance(method, DPDMD)
    length = (1 - levels[1]) / 3
    guided = Guided(gaussian, NULL)
    teacher = Exact(guided, lambda t: t - length)
    student = Exact(guided, lambda t: torch.where(t > 0.99, torch.full_like(t, levels[1]), t))
    label, w, given = batch().label, torch.linspace(0, 2, 32), torch.zeros(32, 2)
    nets = Networks(student, teacher, SCHEDULE, GuidanceRange(0.0, 2.0))
    exact = method.first_step(nets, Draws.begin(given, "s", 0), label, w).error
    assert float(exact.detach().max()) < 1e-12
    t, t_end = torch.ones(32), torch.full((32,), levels[1])
    target = folded(teacher, given + 1, t=t, t_end=t_end, num_steps=3, schedule=SCHEDULE, label=label, w=w)
    ends = SCHEDULE.log_snr(torch.full((32,), levels[1]))
    landed = flow(guided, given + 1, log_snr=target.log_snr, log_snr_next=ends, label=label, w=w)
    torch.testing.assert_close(ddim_step(target, ends), landed, rtol=0, atol=1e-8)


def test_the_state_after_the_first_step_is_a_constant_and_all_others_have_a_gradient() -> None:
    method = method_of("dp_dmd")
    made = module(method)
    seen: list[tuple[float, bool, bool]] = []
    forward = Denoiser.forward

    def spy(self: Denoiser, z: Tensor, log_snr: Tensor, *others: Any, **named: Any) -> Prediction:
        prediction = forward(self, z, log_snr, *others, **named)
        seen.append((round(float(SCHEDULE.time(log_snr)[0]), 6), z.requires_grad, prediction.v.requires_grad))
        return prediction

    given = batch()
    with patch.object(Denoiser, "forward", spy):
        draws = Draws.begin(given.x, "s", 0)
        method.generate(given.x, made.nets, draws, given.label, torch.ones(32), step=0, phase=made.phase)
    assert seen == [(1.0, False, False), (0.75, False, True), (0.5, True, True), (0.25, True, True)]


def test_dp_dmd_samples_as_its_card_says() -> None:
    """The last predicted x is what the sampler returns from the same noise."""
    method = method_of("dp_dmd")
    made = module(method)
    given, w = batch(), torch.linspace(0, 4, 32)
    draws = Draws.begin(given.x, "s", 0)
    x = method.generate(given.x, made.nets, draws, given.label, w, step=0, phase=made.phase).x
    noise = Draws.begin(given.x, "s", 0).normal()
    sampling = made.phase.sampling
    assert (sampling.sampler, sampling.steps, made.phase.num_steps) == ("deterministic", (4,), 4)
    times, label = sampling.grid(), given.label
    expected = sample(made.student, noise, schedule=SCHEDULE, times=times, label=label, w=w)
    torch.testing.assert_close(x, expected)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "dmd2",
            {"divergence": "js"},
            "stage.divergence=js is weighted by what the critic says, and stage.gan_weight=0",
        ),
        ("dmd2", {"divergence": "tv", "gan_weight": 0.1}, "stage.divergence"),
        ("dmd2", {"guidance_t_max": 0.02}, "stage.guidance_t_max must be null or above stage.t_min (0.02)"),
        ("dmd2", {"guidance_t_max": 1.5}, "at most 1, got 1.5"),
        ("sid", {"alpha": -1.0}, "stage.alpha must be a number of at least 0, got -1"),
        ("sid", {"fake_updates": 0}, "stage.fake_updates must be a whole number of at least 1, got 0"),
        ("dp_dmd", {"levels": [1.0]}, "stage.levels must begin at 1 and have at least two"),
        ("dp_dmd", {"levels": [0.9, 0.5]}, "stage.levels must begin at 1"),
        ("dp_dmd", {"teacher_steps": 0}, "stage.teacher_steps must be a whole number of at least 1, got 0"),
        ("dp_dmd", {"fake_sees_level": True}, "stage.fake_sees_level false where all samples"),
        ("sid", {"fake_sees_level": True, "adapter": "lora"}, "stage.fake_sees_level adds an input"),
        ("dp_dmd", {"first_weight": 0.0}, "stage.first_weight must be a number above 0, got 0.0"),
        (
            "dp_dmd",
            {"states": {"data": 1, "teacher": 0, "student": 0}},
            "stage.states must be null and",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, change: dict[str, Any], words: str) -> None:
    settings = {"teacher_steps": 4} if name == "dp_dmd" else {}
    with pytest.raises(ValueError, match=r"^stage") as caught:
        method_of(name, **settings | change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_guidance_of_its_own_levels_needs_a_parent_that_knows_w_0() -> None:
    with pytest.raises(ValueError, match=r"^stage.guidance_t_max needs a parent that was made for w = 0 too") as caught:
        method_of("dmd2, decoupled").guidance(GuidanceRange(1.0, 4.0))
    assert "[1, 4]" in str(caught.value)
    assert method_of("dmd2, decoupled").guidance(GuidanceRange(0.0, 4.0)) == GuidanceRange(0.0, 4.0)
