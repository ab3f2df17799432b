"""Consistency: the boundary at t = 0, the hop of the teacher or of the data, metrics, levels."""

from math import sqrt
from typing import Any

import pytest
import torch
from small_methods import NULL, SCHEDULE, Exact, batch, fit, gaussian, module, network, regression, small
from test_distillation_module import Weights
from test_tract import Remembered
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Prediction, PredictionKind, diffuse
from fewstep.diffusion.sampler import ddim_step, renoise, sample
from fewstep.methods import Consistency, GuidanceRange
from fewstep.methods.consistency import SELF_TEACHER, ConsistencyTraining
from fewstep.methods.draws import Draws
from fewstep.networks import Frozen


def method_of(name: str = "consistency", plan: dict[str, Any] | None = None, **changes: Any) -> Consistency:
    method = small(name, plan, **changes)
    assert isinstance(method, Consistency)
    return method


# The student ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["v", "eps"])
def test_f_is_the_identity_at_t_0(kind: PredictionKind) -> None:
    """For any network, up to sigma(0) = 4.5e-5: what the paper's boundary scalings are for."""
    student, z = network(prediction=kind), torch.randn(16, 2)
    x = student(z, SCHEDULE.log_snr(torch.zeros(16)), torch.zeros(16, dtype=torch.long)).x
    torch.testing.assert_close(x, z, rtol=0, atol=1e-3)


def test_a_network_that_predicts_x_is_refused_and_one_of_eps_is_not() -> None:
    x, eps = (network(guidance_input=True, prediction=kind) for kind in ("x", "eps"))
    with pytest.raises(ValueError, match=r"predicts x; use stage\.prediction=v") as caught:
        module(method_of(), x, Frozen(network(guidance_input=True)))
    assert "\n" not in str(caught.value)
    assert module(method_of(), eps, Frozen(network(guidance_input=True))).student is eps


# The target -----------------------------------------------------------------------------------------------------------


def noised_at(index: Tensor, count: int = 8) -> tuple[Prediction, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(len(index), 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = index.double() / count
    return diffuse(x=x, eps=eps, log_snr=SCHEDULE.log_snr(t)), t


def test_the_target_is_the_self_teachers_x_at_the_next_level_along_the_teacher(make_mixture: Any) -> None:
    teacher, own = Guided(make_mixture().denoise, NULL), Exact(make_mixture(seed=1).denoise)
    made = module(method_of(), own, teacher)
    index = torch.arange(1, 9)
    noised, t = noised_at(index)
    label, w = index % 3, torch.linspace(0, 4, 8).double()
    target = made.method.target(noised, t=t, label=label, w=w, nets=made.nets, phase=made.phase)
    assert target is not None
    first, following = teacher(noised.z, noised.log_snr, label, w), SCHEDULE.log_snr(t - 1 / 8)
    there = ddim_step(first, following)
    expected = own(there, following, label, w).x
    torch.testing.assert_close(target.x[1:], expected[1:].detach(), rtol=0, atol=1e-3)
    torch.testing.assert_close(target.x[:1], there[:1], rtol=0, atol=1e-3)  # f(x, 0) = x
    assert torch.equal(target.v[:1], first.v[:1])  # at the last level it is the teacher's hop, and nothing else


def test_consistency_trainings_hop_is_the_data(make_mixture: Any) -> None:
    own = Remembered(Exact(make_mixture().denoise, guidance_input=False))
    made = module(method_of("consistency training"), Exact(make_mixture().denoise, guidance_input=False))
    index = torch.arange(1, 9)
    noised, t = noised_at(index)
    nets = made.nets
    object.__setattr__(nets, "student", own)
    target = made.method.target(noised, t=t, label=index % 3, w=None, nets=nets, phase=made.phase)
    assert target is not None
    ((z, log_snr, label, w),) = own.calls
    torch.testing.assert_close(log_snr, SCHEDULE.log_snr(t - 1 / 8))
    torch.testing.assert_close(z, diffuse(x=noised.x, eps=noised.eps, log_snr=log_snr).z, rtol=0, atol=1e-10)
    assert (label.tolist(), w) == ((index % 3).tolist(), None)
    torch.testing.assert_close(target.x[0], noised.x[0], rtol=0, atol=1e-12)  # at the last level the data


def test_on_average_over_the_data_consistency_training_is_distillation_of_the_exact_teacher() -> None:
    """Up to the square of the step: x of p(x | z) averages to E[x | z], through a self-teacher that is affine."""
    distilled = module(method_of(num_levels=64, w_max=0.0), Exact(gaussian), Guided(gaussian, NULL))
    from_data = module(method_of("consistency training", num_levels=64), Exact(gaussian, guidance_input=False))
    t, count = torch.tensor([0.5], dtype=torch.float64), 200_000
    z, label = torch.tensor([[0.3, -0.6]], dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    log_snr = SCHEDULE.log_snr(t)
    mean = gaussian(z, log_snr, label)
    sigma2 = torch.sigmoid(-log_snr) * 0.16 / (0.16 * torch.sigmoid(log_snr) + torch.sigmoid(-log_snr))  # Var(x | z)
    draws = mean.x + sigma2.sqrt() * torch.randn(count, 2, generator=torch.Generator().manual_seed(0)).double()
    a, s = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    truth = Prediction(z=z.expand(count, 2), v=(a * z - draws) / s, log_snr=log_snr.expand(count))
    given: dict[str, Any] = {"t": t.expand(count), "label": label.expand(count)}
    of_data = from_data.method.target(truth, **given, w=None, nets=from_data.nets, phase=from_data.phase)
    of_teacher = distilled.method.target(
        mean, t=t, label=label, w=torch.zeros(1), nets=distilled.nets, phase=distilled.phase
    )
    assert of_data is not None
    assert of_teacher is not None
    error = of_data.x.std(0) / count**0.5
    assert bool(((of_data.x.mean(0) - of_teacher.x[0]).abs() < 4 * error).all())


def test_without_a_decay_the_target_is_the_students_own_without_gradient() -> None:
    made = module(method_of(), network(guidance_input=True), Frozen(network(1, guidance_input=True)))
    assert set(made.nets.averages) == {"model"}
    seen = regression(made)
    assert not seen.target.v.requires_grad
    assert seen.prediction.v.requires_grad
    with torch.no_grad():
        for weight in made.student.parameters():
            weight.mul_(1.5)
    moved = regression(made)
    assert not torch.allclose(moved.target.v, seen.target.v)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_self_teacher_is_an_average_of_constant_decay(decay: float) -> None:
    method = method_of("consistency with self-teacher", {"images": 6 * 32}, self_teacher_decay=decay)
    made, weights = module(method), Weights()
    expected = {key: value.clone().double() for key, value in made.student.state_dict().items()}
    fit(made, weights)
    for student in weights.taken:
        expected = {key: decay * value + (1 - decay) * student[key] for key, value in expected.items()}
    for key, value in made.nets.averages[SELF_TEACHER].network.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["consistency", "consistency training"])
def test_pseudo_huber_is_of_the_whole_example(name: str) -> None:
    """sqrt(|d|^2 + c^2) - c with d the difference of v and c = 0.00054 sqrt(D), not of each entry."""
    errors = {}
    for metric in ("l2", "pseudo_huber"):
        made = module(method_of(name, metric=metric))
        draws = Draws.begin(batch().x, made.stream, 0)
        found = made.method.losses(batch(), made.nets, draws, step=0, phase=made.phase)
        errors[metric] = found["student"].error.detach()
    norm2 = 2 * errors["l2"].double()  # D = 2
    c = 0.00054 * sqrt(2)
    torch.testing.assert_close(errors["pseudo_huber"].double(), (norm2 + c**2).sqrt() - c, rtol=1e-4, atol=1e-7)


def test_every_level_is_trained() -> None:
    method = method_of(num_levels=5)
    seen = regression(module(method), batch(600))
    assert {*seen.t.tolist()} == {i / 5 for i in range(1, 6)} == {*method.times(method.phases()[0]).tolist()}
    assert int((5 * seen.t).round().long().bincount()[1:].min()) > 60


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[1.0], [1.0, 0.5], [1.0, 0.75, 0.5, 0.25]])
@pytest.mark.usefixtures("unchecked")
def test_renoising_samples_of_an_exact_map_have_the_datas_moments(make_mixture: Any, levels: list[float]) -> None:
    mixture, count = make_mixture(), 2000
    (phase,) = method_of(levels=levels).phases()
    exact_map = Exact(mixture.denoise, torch.zeros_like)
    generator, label = torch.Generator().manual_seed(0), torch.zeros(count, dtype=torch.long)

    def noise(move: int = 0) -> Tensor:
        return torch.randn(count, 2, generator=generator, dtype=torch.float64)

    x = sample(
        exact_map,
        noise(),
        schedule=SCHEDULE,
        times=phase.sampling.grid(),
        label=label,
        w=torch.zeros(count),
        sampler=renoise,
        fresh=noise,
    )
    of_class = mixture.classes == 0
    share = (mixture.weights[of_class] / mixture.weights[of_class].sum())[:, None]
    mean = (share * mixture.means[of_class]).sum(0)
    second = (share * (mixture.means[of_class] ** 2 + mixture.stds[of_class] ** 2)).sum(0)
    std = (second - mean**2).sqrt()
    assert bool(((x.mean(0) - mean).abs() < 4 * std / count**0.5).all())
    assert bool(((x.std(0) / std - 1).abs() < 0.07).all())


def test_the_card_says_renoise_and_every_divisor_of_the_levels() -> None:
    (phase,) = method_of(levels=[1.0, 0.9, 0.6, 0.5, 0.2, 0.1]).phases()
    assert (phase.sampling.sampler, phase.sampling.guidance) == ("renoise", "input")
    assert phase.sampling.steps == (1, 2, 3, 6)
    assert phase.sampling.grid(2).tolist() == [1.0, 0.5]
    assert phase.num_steps is None


@pytest.mark.parametrize("levels", [[], [0.5, 1.0], [1.0, 1.0], [1.5], [1.0, 0.0], [-0.5]])
def test_levels_that_cannot_be_sampled_are_refused(levels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^stage\.levels are no levels to sample at, like \[1\.0, 0\.5\]") as caught:
        method_of(levels=levels)
    assert "\n" not in str(caught.value)


# With a teacher and without -------------------------------------------------------------------------------------------


def test_without_a_teacher_it_is_consistency_training_and_has_no_guidance() -> None:
    method = method_of("consistency with self-teacher", num_levels=11, levels=[1.0, 0.3])
    own = method.without_teacher()
    assert isinstance(own, ConsistencyTraining)
    assert own.parent() is None
    assert own.guidance(GuidanceRange(0.0, 4.0)) is None
    assert own.guidance(None) is None
    (phase,) = own.phases()
    assert (phase.sampling.guidance, phase.sampling.times) == ("none", (1.0, 0.3))
    kept = ("name", "training", "num_levels", "levels", "metric", "self_teacher_decay")
    assert all(getattr(own, each) == getattr(method, each) for each in kept)
    assert own.without_teacher() == own
    assert method.parent() is not None  # itself unchanged


@pytest.mark.parametrize(
    ("setting", "value"),
    [("student", {"width": 8}), ("adapter", "lora"), ("clip_target", True), ("w_min", 0.0), ("w_max", 2.0)],
)
def test_without_a_teacher_nothing_may_be_said_of_one(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^stage\.{setting} is about a teacher, and teacher=none says") as caught:
        method_of(**{setting: value}).without_teacher()
    assert "\n" not in str(caught.value)


def test_its_parent_may_be_a_teacher_or_a_guided_student() -> None:
    parent = method_of().parent()
    assert parent is not None
    assert parent.guidance == ("input", "two_evaluations")
    assert parent.continues is None
    assert method_of().guidance(GuidanceRange(0.0, 3.0)) == GuidanceRange(0.0, 3.0)
    with pytest.raises(ValueError, match=r"stage\.w_min and stage\.w_max must be given where the parent is a teacher"):
        method_of().guidance(None)
    assert method_of(w_min=0.0, w_max=2.0).guidance(None) == GuidanceRange(0.0, 2.0)


def test_the_guided_teacher_is_called_with_each_examples_w() -> None:
    teacher = Remembered(Guided(Frozen(network(1)), NULL))
    made = module(method_of(), network(guidance_input=True), teacher)
    seen = regression(made)
    ((_, log_snr, label, w),) = teacher.calls
    assert w is not None
    assert seen.w is not None
    assert torch.equal(w, seen.w)
    assert torch.equal(label, batch().label)
    torch.testing.assert_close(log_snr, SCHEDULE.log_snr(seen.t))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_levels": 1}, "stage.num_levels must be a whole number of at least 2, got 1"),
        ({"self_teacher_decay": 1.0}, "stage.self_teacher_decay must be a number of at least 0 and below 1, got 1.0"),
        ({"metric": "l1"}, "stage.metric must be one of l2, pseudo_huber, got 'l1'"),
        ({"levels": "1.0"}, "stage.levels must be a list of numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^stage") as caught:
        method_of(**change)
    assert words in str(caught.value)
