"""Distribution matching: where its own losses stop, in closed form; the walk to a level; who learns from what."""

from collections.abc import Callable, Iterator
from math import log
from typing import Any
from unittest.mock import patch

import pytest
import torch
from small_methods import ROLES, SCHEDULE, batch, module, small
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.distribution import matching_direction
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Denoise, Prediction, interpret
from fewstep.diffusion.sampler import renoise, sample
from fewstep.diffusion.schedule import alpha, expand, sigma
from fewstep.methods import DMD2, GuidanceRange, Networks, dmd2
from fewstep.methods.dmd2 import CRITIC, Critic
from fewstep.methods.draws import Draws
from fewstep.methods.fake_score import FAKE
from fewstep.networks import Denoiser

# The tilted Gaussian --------------------------------------------------------------------------------------------------
#
# Conditional N(m, c^2), unconditional N(0, C^2), one level: with A = alpha^2 c^2 + sigma^2, B the same of C, and
# P = omega / A - (omega - 1) / B an affine generator stops at the mean omega m / (A P) and the variance
# max(0, (1 / P - sigma^2) / alpha^2); omega = 1 + w.

MEAN, CONDITIONAL, UNCONDITIONAL = 1.0, 0.5, 1.4
LEVEL = float(SCHEDULE.time(torch.tensor(2 * log(0.8 / 0.6), dtype=torch.float64)))  # where alpha = 0.8, sigma = 0.6
STOPS = {1.0: (1.0, 0.5), 1.25: (1.069, 0.364), 1.5: (1.120, 0.211)}  # omega -> mean and std
DIM = 32  # independent values of an example, over which its direction is normalised
ARGUMENTS = {"shape": [DIM], "num_classes": 1, "guidance_input": True}


def denoised(z: Tensor, log_snr: Tensor, mean: Tensor, std: Tensor) -> Prediction:
    """The exact denoiser of N(mean, std^2), both per example."""
    a, s = alpha(log_snr), sigma(log_snr)
    gain = expand(a * std.square() / ((a * std).square() + s.square()), z)
    return interpret("x", expand(mean, z) + gain * (z - expand(a * mean, z)), z=z, log_snr=log_snr)


def data(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
    """The exact denoiser of the conditional and, for the null label 1, of the unconditional distribution."""
    mean, std = torch.where(label == 1, 0.0, MEAN), torch.where(label == 1, UNCONDITIONAL, CONDITIONAL)
    return denoised(z, log_snr, mean.double(), std.double())


class Affine(Denoiser):
    """A generator x = mean + std z, whatever the level."""

    def __init__(self) -> None:
        network = nn.Module()
        network.arguments = ARGUMENTS  # pyright: ignore[reportArgumentType]
        super().__init__(network)
        self.mean, self.std = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (0.0, 0.8))

    def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
        return interpret("x", self.mean + self.std * z, z=z, log_snr=log_snr)


class ExactFake(nn.Module):
    """The exact denoiser of what the generator makes now."""

    def __init__(self, generator: Affine) -> None:
        super().__init__()
        self.generator = [generator]  # no part of this module

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        (generator,) = self.generator
        mean, std = (value.detach().expand(len(z)) for value in (generator.mean, generator.std))
        return denoised(z, log_snr, mean, std)


@pytest.fixture
def double() -> Iterator[None]:
    """All random numbers in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(w: float, teacher: Denoise, steps: int = 500, **changes: Any) -> tuple[float, float]:
    """Mean and std of the generator after descent along DMD2's own loss for the student."""
    method = small("dmd2", levels=[1.0], fake_updates=1, t_min=LEVEL, t_max=LEVEL + 1e-9, **changes)
    generator = Affine()
    nets = Networks(generator, teacher, SCHEDULE, GuidanceRange(w, w), trained={FAKE: ExactFake(generator)})
    (phase,) = method.phases()
    weights = [generator.mean, generator.std]
    optimiser = torch.optim.SGD(weights, lr=0.5)
    given = Batch(torch.zeros(32, DIM), torch.zeros(32, dtype=torch.long))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.5 * (1 - step / steps)
        draws = Draws.begin(given.x, "0/dmd2", step)
        optimiser.zero_grad()
        method.losses(given, nets, draws, step=step, phase=phase)["student"].error.mean().backward()
        optimiser.step()
    return float(generator.mean.detach()), abs(float(generator.std.detach()))


@pytest.mark.parametrize("omega", STOPS)
@pytest.mark.usefixtures("double", "unchecked")
def test_the_students_loss_stops_at_the_tilted_gaussian(omega: float) -> None:
    a, b = 0.64 * CONDITIONAL**2 + 0.36, 0.64 * UNCONDITIONAL**2 + 0.36
    precision = omega / a - (omega - 1) / b
    expected = omega * MEAN / (a * precision), ((1 / precision - 0.36) / 0.64) ** 0.5
    assert expected == pytest.approx(STOPS[omega], abs=6e-4)
    assert trained(omega - 1, Guided(data, 1)) == pytest.approx(expected, abs=1e-3)


def wrong_sign(x: Tensor, fake: Prediction, real: Prediction) -> Tensor:
    return -matching_direction(x=x, fake=fake, real=real)


def swapped(x: Tensor, fake: Prediction, real: Prediction) -> Tensor:
    return matching_direction(x=x, fake=real, real=fake)


def scale_for_w(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
    """A teacher that takes w for omega."""
    assert w is not None
    return Guided(data, 1)(z, log_snr, label, w + 1)


def unguided(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
    return data(z, log_snr, label, w)


@pytest.mark.parametrize(
    ("direction", "teacher"),
    [(wrong_sign, None), (swapped, None), (matching_direction, scale_for_w), (matching_direction, unguided)],
)
@pytest.mark.usefixtures("double", "unchecked")
def test_other_losses_stop_elsewhere(direction: Callable[..., Tensor], teacher: Denoise | None) -> None:
    with patch.object(dmd2, "matching_direction", direction):
        mean, std = trained(0.25, teacher or Guided(data, 1), steps=150)
    expected_mean, expected_std = STOPS[1.25]
    assert abs(mean - expected_mean) > 0.02
    assert abs(std - expected_std) > 0.02


# Backward simulation --------------------------------------------------------------------------------------------------


def method_of(name: str = "dmd2", plan: dict[str, Any] | None = None, **changes: Any) -> DMD2:
    method = small(name, plan, **changes)
    assert isinstance(method, DMD2)
    return method


@pytest.mark.parametrize("last", range(4))
def test_the_walk_to_a_level_is_the_samplers(last: int) -> None:
    """With the same noise, the sampler's x after as many evaluations."""
    method = method_of()
    made, (phase,) = module(method), method.phases()
    label, w = batch().label, torch.linspace(0, 4, 32)

    def draws() -> Draws:
        return Draws.begin(batch().x, "0/walk", 3)

    with patch.object(Draws, "choice", lambda self, count: last):
        generated = method.generate(batch().x, made.nets, draws(), label, w, step=0, phase=phase)
    same = draws()
    expected = sample(
        made.student,
        same.normal(),
        schedule=SCHEDULE,
        times=phase.sampling.grid()[: last + 1],
        label=label,
        w=w,
        sampler=renoise,
        fresh=lambda step: same.normal(),
    )
    assert torch.equal(generated.x, expected)
    torch.testing.assert_close(generated.log_snr, SCHEDULE.log_snr(phase.sampling.grid()[last]).expand(32))


def test_only_the_last_evaluation_of_a_walk_has_a_gradient() -> None:
    method = method_of()
    made = module(method)
    with patch.object(Draws, "choice", lambda self, count: 3):
        x, label = batch()
        generated = method.generate(
            x, made.nets, Draws.begin(x, "s", 0), label, torch.zeros(32), step=0, phase=made.phase
        )
    assert generated.v.requires_grad
    assert not generated.z.requires_grad
    assert made.student.evaluated == 3 * 32 + 3 * 32


def test_the_level_is_one_for_the_whole_batch_and_each_is_chosen() -> None:
    choices = [Draws.begin(batch().x, "s", step).choice(4) for step in range(200)]
    counts = torch.tensor(choices).bincount()
    assert len(counts) == 4
    assert int(counts.min()) > 30


@pytest.mark.parametrize(("t_min", "t_max"), [(0.02, 0.98), (0.4, 0.5), (0.0, 1.0)])
def test_samples_are_noised_to_times_of_the_range(t_min: float, t_max: float) -> None:
    method = method_of(t_min=t_min, t_max=t_max)
    made, x = module(method), batch(4000).x
    noised, t = method.noised(x, made.nets, Draws.begin(x, "s", 0))
    assert t_min <= float(t.min()) < t_min + 0.01
    assert t_max - 0.01 < float(t.max()) <= t_max
    torch.testing.assert_close(noised.log_snr, SCHEDULE.log_snr(t))
    torch.testing.assert_close(noised.x, x, rtol=0, atol=1e-4)
    assert float(noised.eps.mean().abs()) < 0.05
    assert float(noised.eps.std()) == pytest.approx(1, abs=0.05)


# Who learns from what -------------------------------------------------------------------------------------------------


def losses_of(made: Any, step: int = 2, given: Batch | None = None) -> dict[str, Any]:
    given = given or batch()
    draws = Draws.begin(given.x, made.stream, step)
    return made.method.losses(given, made.nets, draws, step=step, phase=made.phase)


def gradients(part: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in part.parameters() if weight.grad is not None]


def apart(name: str, **changes: Any) -> Any:
    """A module whose fake score differs from its student, as after some steps."""
    made = module(method_of(name, **changes))
    with torch.no_grad():
        for weight in made.trained.parameters():
            weight.add_(0.1)
    return made


@pytest.mark.parametrize("name", ["dmd2", "dmd2 with critic"])
def test_the_students_loss_moves_the_student_alone(name: str) -> None:
    made = apart(name)
    losses_of(made)["student"].error.mean().backward()
    assert len(gradients(made.student)) == len([*made.student.parameters()])
    assert gradients(made.trained) == []
    assert all(weight.requires_grad for weight in made.trained.parameters())  # frozen in that term alone


@pytest.mark.parametrize("role", [FAKE, CRITIC])
def test_the_others_losses_do_not_move_the_student(role: str) -> None:
    made = apart("dmd2 with critic")
    losses_of(made)[role].error.mean().backward()
    assert gradients(made.student) == []
    assert len(gradients(made.trained[FAKE])) > 0  # the critic's features are the fake score's
    assert (len(gradients(made.trained[CRITIC])) > 0) == (role == CRITIC)


def test_the_critic_pulls_the_student_where_it_has_a_weight() -> None:
    without, with_critic = apart("dmd2 with critic", gan_weight=1e-9), apart("dmd2 with critic", gan_weight=1.0)
    for made in (without, with_critic):
        losses_of(made)["student"].error.mean().backward()
    one, other = (torch.cat([g.flatten() for g in gradients(made.student)]) for made in (without, with_critic))
    assert float((one - other).norm()) > 1e-3 * float(one.norm())


def test_the_gradient_of_a_sample_is_the_direction_over_the_number_of_values() -> None:
    made = apart("dmd2")
    method, x = made.method, batch().x.requires_grad_()
    draws, w = Draws.begin(x, "s", 0), torch.ones(32)
    method.student_loss(x, made.nets, draws, batch().label, w, level=torch.ones(32)).error.mean().backward()
    noised, _ = method.noised(x.detach(), made.nets, Draws.begin(x, "s", 0))
    with torch.no_grad():
        fake = made.trained[FAKE](noised.z, noised.log_snr, batch().label, w)
        real = made.nets.teacher(noised.z, noised.log_snr, batch().label, w)
        direction = matching_direction(x=x, fake=fake, real=real)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, direction / x.numel(), rtol=1e-5, atol=1e-7)


def test_the_fake_score_learns_to_denoise_the_samples() -> None:
    """At the exact denoiser of what the generator makes its loss cannot be lowered; see also the oracle of all."""
    made = apart("dmd2")
    found = losses_of(made, step=1)[FAKE]
    same = Draws.begin(batch().x, made.stream, 1)
    with torch.no_grad():
        w = made.nets.guidance.quantile(same.uniform())
        x = made.method.generate(batch().x, made.nets, same, batch().label, w, step=1, phase=made.phase).x
        noised, t = made.method.noised(x, made.nets, same)
        v = made.trained[FAKE](noised.z, noised.log_snr, batch().label, w).v
    torch.testing.assert_close(found.error, (v - noised.v).square().mean(1))
    torch.testing.assert_close(found.t, t)


@pytest.mark.parametrize("step", [2, 1])
def test_a_critic_that_cannot_tell_has_a_loss_of_log_4_and_one_that_can_has_less(step: int) -> None:
    made = module(method_of("dmd2 with critic", critic_weight=0.5, gan_weight=2.0))
    critic = made.trained[CRITIC]
    assert isinstance(critic, Critic)
    nn.init.zeros_(critic.heads[0][2].weight)
    nn.init.zeros_(critic.heads[0][2].bias)
    found = losses_of(made, step)
    torch.testing.assert_close(found[CRITIC].error, torch.full((32,), 0.5 * log(4)))
    if step == 2:  # where the student moves too, and the pull is 0: fake score and teacher are the same
        torch.testing.assert_close(found["student"].error, torch.full((32,), 2.0 * log(2)))


def test_the_critic_learns_to_tell_data_from_samples() -> None:
    made = module(method_of("dmd2 with critic", critic_weight=1.0))
    far = Batch(batch().x + 3, batch().label)
    weights = [*made.trained[CRITIC].parameters(), *made.trained[FAKE].parameters()]
    optimiser = torch.optim.Adam(weights, lr=1e-2)
    for step in range(60):
        optimiser.zero_grad()
        error = losses_of(made, 3 * step + 1, far)[CRITIC].error.mean()
        error.backward()
        optimiser.step()
    assert float(error) < 0.7 * log(4)


def test_data_and_samples_are_judged_at_the_same_levels_with_the_same_condition() -> None:
    made, calls = apart("dmd2 with critic"), []
    forward = Denoiser.forward

    def spy(self: Denoiser, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None = None, **named: Any) -> Any:
        if self is made.trained[FAKE]:
            calls.append((z, log_snr, label, w))
        return forward(self, z, log_snr, label, w, **named)

    with patch.object(Denoiser, "forward", spy):
        losses_of(made, step=1)
    generated, real = calls
    assert all(torch.equal(one, other) for one, other in zip(generated[1:], real[1:], strict=True))
    assert torch.equal(real[2], batch().label)
    noise = (real[0] - expand(alpha(real[1]), real[0]) * batch().x) / expand(sigma(real[1]), real[0])
    assert float(noise.std()) == pytest.approx(1, abs=0.25)


def test_the_fake_score_begins_as_a_copy_of_the_student() -> None:
    made = module(method_of())
    for one, other in zip(made.student.parameters(), made.trained[FAKE].parameters(), strict=True):
        assert torch.equal(one, other)
        assert one is not other


# Settings -------------------------------------------------------------------------------------------------------------


def test_five_updates_of_the_fake_score_for_one_of_the_student() -> None:
    method = method_of("dmd2 with critic", fake_updates=5)
    moving = [method.moving(step) for step in range(11)]
    assert [step for step, roles in enumerate(moving) if "student" in roles] == [4, 9]
    assert all(FAKE in roles and CRITIC in roles for roles in moving)
    assert method_of(fake_updates=1).moving(7) == ("student", FAKE)
    assert DMD2.__dataclass_fields__["fake_updates"].default == 5


def test_roles_have_learning_rates_of_their_own() -> None:
    plan = {"roles": {FAKE: {"learning_rate": 0.25}, CRITIC: {"learning_rate": 0.5, "gradient_clip": 10.0}}}
    method = method_of("dmd2 with critic", plan | {"warmup_images": 0})
    configured: Any = module(method).configure_optimizers()
    assert [group["lr"] for group in configured["optimizer"].param_groups] == [3e-3, 0.25, 0.5]
    assert method.training.of_role(CRITIC).gradient_clip == 10.0


@pytest.mark.parametrize(
    ("name", "missing"), [("dmd2", FAKE), ("dmd2 with critic", FAKE), ("dmd2 with critic", CRITIC)]
)
def test_a_missing_learning_rate_is_one_clear_line(name: str, missing: str) -> None:
    roles = {role: settings for role, settings in ROLES.items() if role != missing}
    with pytest.raises(ValueError, match=rf"^stage\.training\.roles\.{missing}\.learning_rate must be given") as caught:
        method_of("dmd2 with critic", {"roles": roles})
    assert method_of("dmd2", {"roles": {FAKE: ROLES[FAKE]}}).roles == ("student", FAKE)
    assert "\n" not in str(caught.value)


def test_without_a_critic_no_data_are_needed() -> None:
    assert (method_of().inputs, method_of().roles) == ("noise", ("student", FAKE))
    with_critic = method_of("dmd2 with critic")
    assert (with_critic.inputs, with_critic.roles) == ("data", ("student", FAKE, CRITIC))
    noise = losses_of(module(method_of()), 0, Batch(torch.full((32, 2), torch.nan), batch().label))
    assert all(bool(torch.isfinite(each.error).all()) for each in noise.values())  # what a batch holds is not looked at


def test_the_card_says_renoise_with_the_levels_and_the_w_input() -> None:
    (phase,) = method_of(levels=[1.0, 0.6]).phases()
    assert phase.sampling.sampler == "renoise"
    assert phase.sampling.times == (1.0, 0.6)
    assert phase.sampling.guidance == "input"
    assert phase.sampling.steps == (1, 2)
    parent = method_of().parent()
    assert parent.guidance == ("input", "two_evaluations")
    assert parent.continues is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levels": []}, "stage.levels are no levels to sample at"),
        ({"levels": [0.5, 1.0]}, "stage.levels are no levels to sample at"),
        ({"levels": [1.5]}, "stage.levels are no levels to sample at"),
        ({"fake_updates": 0}, "stage.fake_updates must be a whole number of at least 1, got 0"),
        ({"gan_weight": -0.1}, "stage.gan_weight must be a number of at least 0, got -0.1"),
        ({"critic_weight": 0.0}, "stage.critic_weight must be a number above 0, got 0.0"),
        ({"t_min": 0.5, "t_max": 0.5}, "0 <= t_min < t_max <= 1, got 0.5 and 0.5"),
        ({"t_max": 1.5}, "0 <= t_min < t_max <= 1"),
        ({"t_min": float("nan")}, "stage.t_min must be finite"),
        ({"fake_updates": 2.5}, "stage.fake_updates must be a whole number of at least 1, got 2.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^stage") as caught:
        method_of(**change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
