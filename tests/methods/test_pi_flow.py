"""Policies: Bayes' rule on exact ones, the way along them, networks that give them, and their imitation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_methods import SCHEDULE, batch, module, network, small
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.policy import Policy
from fewstep.diffusion.prediction import diffuse
from fewstep.diffusion.sampler import END, SAMPLERS, ddim_step, integrate, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import alpha, network_time, sigma
from fewstep.methods import GuidanceRange, Networks
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser
from fewstep.networks.denoiser import with_components

COUNT = 40
LABEL = torch.zeros(COUNT, dtype=torch.long)


def at_time(t: float | Tensor) -> Tensor:
    return SCHEDULE.log_snr(torch.as_tensor(t, dtype=torch.float64).expand(COUNT))


def mixture_of(components: int) -> GaussianMixture:
    """Isotropic, all of one class."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(components, 2, generator=generator, dtype=torch.float64) / 2
    stds = torch.linspace(0.2, 0.5, components, dtype=torch.float64)[:, None].expand(-1, 2)
    weights = torch.linspace(1, 2, components, dtype=torch.float64)
    return GaussianMixture(means, stds, weights / weights.sum(), torch.zeros(components, dtype=torch.long))


def exact_policy(mixture: GaussianMixture, z: Tensor, log_snr: Tensor) -> Policy:
    """p(x | z), component by component (Bishop 2006, section 2.3.3)."""
    a, s = alpha(log_snr)[:, None, None], sigma(log_snr)[:, None, None]
    log_joint, variance = mixture._log_joint(z, log_snr, torch.zeros(len(z), dtype=torch.long))
    means = mixture.means + a * mixture.stds.square() / variance * (z[:, None] - a * mixture.means)
    stds = mixture.stds * s / variance.sqrt()
    return Policy(z, log_snr, means=means, stds=stds[..., :1], log_weights=log_joint[..., None])


def source(t: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(COUNT, 2, generator=generator, dtype=torch.float64), at_time(t)


# Bayes' rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 2, 5])
@pytest.mark.parametrize(("start", "t"), [(1.0, 0.99), (1.0, 0.5), (0.75, 0.5), (0.75, 0.05), (0.5, 0.5), (0.5, 0.001)])
def test_an_exact_policy_is_the_exact_denoiser_at_every_later_time(components: int, start: float, t: float) -> None:
    """At any z, not only on its own way; up to a precision 4e5 times that of the source."""
    mixture, (z, log_snr) = mixture_of(components), source(start)
    later = z if t == start else z.flip(0)
    found = exact_policy(mixture, z, log_snr).at(later, at_time(t)).x
    torch.testing.assert_close(found, mixture.denoise(later, at_time(t), LABEL).x, rtol=0, atol=1e-12)


def test_another_policy_is_not() -> None:
    mixture, (z, log_snr) = mixture_of(3), source(0.75)
    exact, later = exact_policy(mixture, z, log_snr), at_time(0.5)
    right = mixture.denoise(z, later, LABEL).x
    for wrong in (
        replace(exact, means=exact.means + 0.1),
        replace(exact, stds=exact.stds * 1.2),
        replace(exact, log_weights=exact.log_weights.flip(1)),
    ):
        assert float((wrong.at(z, later).x - right).abs().max()) > 1e-2


def test_locations_do_not_meet() -> None:
    """An image's policy is that of each pixel, its channels together."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image = Policy(
        normal(2, 3, 4, 4), at_time(0.8)[:2], normal(2, 5, 3, 4, 4), normal(2, 5, 1, 4, 4).exp(), normal(2, 5, 1, 4, 4)
    )

    def pixels(each: Tensor) -> Tensor:
        return each.movedim((-2, -1), (1, 2)).flatten(0, 2)

    parts = (pixels(each) for each in (image.means, image.stds, image.log_weights))
    alone = Policy(pixels(image.z), at_time(0.8)[:32], *parts)
    later = normal(2, 3, 4, 4)
    expected = alone.at(pixels(later), at_time(0.6)[:32]).x
    torch.testing.assert_close(pixels(image.at(later, at_time(0.6)[:2]).x), expected)


# The way along a policy -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_the_way_along_an_exact_policy_is_the_flow_to_second_order() -> None:
    mixture, (z, log_snr) = mixture_of(3), source(1.0)
    exact, end = exact_policy(mixture, z, log_snr), at_time(0.2)
    flow = integrate(mixture.denoise, z, log_snr=log_snr[0], log_snr_next=end[0], num_steps=400, label=LABEL, w=None)
    coarse, fine = (float((exact.follow(end, steps=n) - flow).square().mean().sqrt()) for n in (20, 40))
    assert coarse / fine == pytest.approx(4, rel=0.1)
    assert float((exact.follow(end) - flow).square().mean().sqrt()) < 0.01
    half = exact.follow(at_time(0.6), steps=20)
    torch.testing.assert_close(exact.follow(end, (half, at_time(0.6)), 20), exact.follow(end, steps=40))


@pytest.mark.usefixtures("unchecked")
def test_any_number_of_exact_policies_samples_the_flow() -> None:
    mixture, noise = mixture_of(3), source(1.0)[0]
    end = SCHEDULE.log_snr(torch.zeros(1, dtype=torch.float64))[0]
    start = at_time(1.0)[0]
    flow = integrate(mixture.denoise, noise, log_snr=start, log_snr_next=end, num_steps=400, label=LABEL, w=None)
    for num_steps in (1, 4):
        sampling = Sampling.uniform(num_steps, sampler="policy")
        x = sample(
            ExactStudent(mixture),
            noise,
            schedule=SCHEDULE,
            times=sampling.grid(),
            label=LABEL,
            w=None,
            sampler=SAMPLERS["policy"],
        )
        assert float((x - flow).square().mean().sqrt()) < 0.02 / num_steps


class ExactStudent(Denoiser):
    """Gives the exact policy of a mixture; `off` is added to its means."""

    def __init__(self, mixture: GaussianMixture, off: float = 0.0) -> None:
        super().__init__(with_components(network(guidance_input=True), 3).network)
        self.mixture, self.off = mixture, off

    def policy(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Policy:
        exact = exact_policy(self.mixture, z, log_snr)
        return replace(exact, means=exact.means + self.off)


def test_a_policy_is_made_for_its_own_segments_alone() -> None:
    assert Sampling.uniform(4, sampler="policy", guidance="input").steps == (4,)


# Networks -------------------------------------------------------------------------------------------------------------


def test_a_networks_prediction_lands_where_its_policy_leads() -> None:
    student = with_components(network(guidance_input=True), 3)
    z, label, w = torch.randn(COUNT, 2), LABEL, torch.ones(COUNT)
    with torch.no_grad():
        prediction = student(z, at_time(0.75), label, w, extra={END: network_time(at_time(0.5))})
        landed = student.policy(z, at_time(0.75), label, w).follow(at_time(0.5))
    torch.testing.assert_close(ddim_step(prediction, at_time(0.5)), landed, rtol=1e-5, atol=1e-5)
    assert student.evaluated == 2 * COUNT
    with pytest.raises(ValueError, match="extra inputs must all be given, here s, got none"):
        student(z, at_time(0.75), label, w)


def test_a_new_policys_means_are_the_denoisers_x_but_for_some_noise() -> None:
    parent = network(guidance_input=True)
    torch.manual_seed(0)
    student = with_components(parent, 6)
    z, label, w = torch.randn(COUNT, 2), LABEL, torch.ones(COUNT)
    with torch.no_grad():
        policy, x = student.policy(z, at_time(0.75), label, w), parent(z, at_time(0.75), label, w).x
    assert 0.01 < float((policy.means - x[:, None]).square().mean().sqrt()) < 0.2
    assert not torch.allclose(policy.means[:, 0], policy.means[:, 1])
    torch.testing.assert_close(policy.stds, sigma(at_time(0.75)).float()[:, None, None].expand_as(policy.stds))
    assert not policy.log_weights.any()


# Imitation ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("states", [1, 2, 3])
def test_the_exact_policy_has_no_error_and_a_wrong_one_has(states: int) -> None:
    """Along a mixture's own ways, to what rounding leaves; the teacher is not guided at w = 0."""
    mixture, method = mixture_of(3), small("pi_flow", num_steps=4, states=states)

    def error(off: float) -> float:
        student, teacher = ExactStudent(mixture, off), Guided(without_classes(mixture), 1)
        nets = Networks(student, teacher, SCHEDULE, GuidanceRange(0.0, 0.0))
        x = batch(32).x.double()
        data = batch(32)._replace(x=x, label=torch.zeros(32, dtype=torch.long))
        torch.set_default_dtype(torch.float64)
        try:
            (phase,), draws = method.phases(), Draws.begin(x, "s", 0)
            return float(method.losses(data, nets, draws, step=0, phase=phase)["student"].error.max())
        finally:
            torch.set_default_dtype(torch.float32)

    assert error(0.0) < 1e-20
    assert error(0.1) > 1e-4


def without_classes(mixture: GaussianMixture) -> Any:
    return lambda z, log_snr, label, w: mixture.denoise(z, log_snr, torch.zeros_like(label))


def test_the_network_is_evaluated_once_for_all_states() -> None:
    for states in (1, 4):
        made = module(small("pi_flow", states=states))
        made.training_step(batch(), 0)
        assert made.evaluated == 32 * (3 + states)


def test_states_are_the_policys_own_and_in_its_segment() -> None:
    made, seen = module(small("pi_flow", num_steps=2, states=2)), []
    teacher: Any = made.nets.teacher

    def spy(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor) -> Any:
        seen.append((z, SCHEDULE.time(log_snr)))
        return teacher(z, log_snr, label, w)

    x, label = batch()
    nets = replace(made.nets, teacher=spy)
    loss = made.method.losses(batch(), nets, Draws.begin(x, "s", 0), step=0, phase=made.phase)["student"]
    (_, early), (late_z, late) = seen
    assert bool(((loss.t >= early) & (early >= late) & (late >= loss.t - 0.5)).all())
    same = Draws.begin(x, "s", 0)
    w = made.nets.guidance.quantile(same.uniform()) if made.nets.guidance else None
    start = same.integers(1, 3).double() / 2
    noised = diffuse(x=x, eps=same.normal(), log_snr=SCHEDULE.log_snr(start))
    with torch.no_grad():
        way = made.student.policy(noised.z, noised.log_snr, label, w).follow(SCHEDULE.log_snr(late), steps=1000)
    torch.testing.assert_close(late_z, way, atol=0.1, rtol=0)
    assert torch.equal(loss.t, start)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_steps": 0}, "stage.num_steps must be a whole number of at least 1, got 0"),
        ({"components": 0}, "stage.components must be a whole number of at least 1, got 0"),
        ({"states": 0}, "stage.states must be a whole number of at least 1, got 0"),
        ({"adapter": "lora"}, "stage.adapter=lora changes the layers of a teacher by little"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"stage\.") as caught:
        small("pi_flow", **changes)
    assert words in str(caught.value)
