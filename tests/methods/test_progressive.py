"""The rungs of both chains and of both variants, against a closed form: a perfect student has no error."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from small_methods import NULL, SCHEDULE, Perfect, batch, gaussian_flow, loss, module, network, regression, small
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.hop import two_hop
from fewstep.diffusion.loss import WEIGHTS
from fewstep.diffusion.prediction import KINDS, Prediction, PredictionKind, interpret
from fewstep.diffusion.sampler import ddim_step, sample
from fewstep.diffusion.schedule import uniform_times
from fewstep.methods import Progressive
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser, Frozen
from fewstep.training.module import DistillationModule

DETERMINISTIC, STOCHASTIC = "progressive", "progressive, stochastic"
CHAINS = {DETERMINISTIC: "deterministic", STOCHASTIC: "stochastic"}
EXACT: dict[str, Any] = {"ema_decay": 0.0, "weight": "snr_plus_one"}


def rung(name: str, student: int, teacher_steps: int, **own: Any) -> DistillationModule:
    """A rung of `student` steps whose student and teacher are perfect, the teacher for `teacher_steps` steps."""
    kind: PredictionKind = own.pop("kind", "v")
    off, weight = own.pop("off", 0.0), own.pop("weight", "snr_plus_one")
    chain = CHAINS.get(name, "deterministic")
    return module(
        small(name, EXACT | {"weight": weight}, ladder=[2 * student, student], few_steps=1),
        Denoiser(Perfect(own.pop("student_steps", student), own.pop("student_chain", chain), kind, off), kind),
        own.pop("teacher", Frozen(Denoiser(Perfect(teacher_steps, chain)))),
        stream="0/rung",
    )


def f64(count: int = 256) -> Batch:
    return batch(count, torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 32, 64, 512])
@pytest.mark.parametrize("name", CHAINS)
def test_a_perfect_rung_has_no_error_and_one_of_another_length_has(name: str, num_steps: int) -> None:
    assert loss(rung(name, num_steps, 2 * num_steps), f64()) < 1e-15
    wrong = rung(name, num_steps, 2 * num_steps, student_steps=2 * num_steps + 1)
    assert loss(wrong, f64()) > (1e-9 if num_steps <= 64 else 1e-12)


def test_the_chains_differ() -> None:
    assert loss(rung(STOCHASTIC, 4, 8, student_chain="deterministic"), f64()) > 1e-6


@pytest.mark.parametrize("num_steps", [1, 2, 8])
@pytest.mark.parametrize("name", CHAINS)
def test_a_rung_trains_at_its_own_times(name: str, num_steps: int) -> None:
    student = network(guidance_input=True)
    method = small(name, ladder=[2 * num_steps, num_steps], few_steps=1)
    seen = regression(module(method, student, Frozen(network(guidance_input=True))), batch(256))
    assert set(seen.t.tolist()) == {i / num_steps for i in range(1, num_steps + 1)}
    assert set(method.times(method.phases()[0]).tolist()) == set(seen.t.tolist())
    assert seen.w is not None
    assert 0 <= float(seen.w.min()) < 0.5
    assert 3.5 < float(seen.w.max()) <= 4


def hops(name: str, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """t, u and s of many draws."""
    method = small(name, ladder=[2 * num_steps, num_steps], few_steps=1)
    assert isinstance(method, Progressive)
    (phase,) = method.phases()
    t = method.draw_times(Draws.begin(torch.zeros(400, 2), "0/rung", 0), phase)
    return t, *method.hops(t, phase)


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_the_deterministic_hops_are_half_a_step_each(num_steps: int) -> None:
    t, mid, end = hops(DETERMINISTIC, num_steps)
    assert set(t.tolist()) == {i / num_steps for i in range(1, num_steps + 1)}
    torch.testing.assert_close(mid, t - 0.5 / num_steps, rtol=0, atol=1e-15)
    torch.testing.assert_close(end, t - 1 / num_steps, rtol=0, atol=1e-15)


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_the_stochastic_times(num_steps: int) -> None:
    """Two teacher jumps of 1/N; at i = 1 the first is the whole way and the second has no length."""
    t, mid, end = hops(STOCHASTIC, num_steps)
    assert set(t.tolist()) == {i / num_steps for i in range(1, num_steps + 1)}
    torch.testing.assert_close(mid, t - 1 / num_steps)
    torch.testing.assert_close(end, (t - 2 / num_steps).clamp(min=0))


def test_where_the_second_jump_has_no_length_the_target_is_the_teachers_own_prediction() -> None:
    z, log_snr = torch.randn(6, 2, dtype=torch.float64), SCHEDULE.log_snr(torch.full((6,), 0.25))
    teacher, label = Denoiser(Perfect(8, "stochastic")), torch.zeros(6, dtype=torch.long)
    zero = SCHEDULE.log_snr(torch.zeros(6))
    first = teacher(z, log_snr, label)
    target = two_hop(first=first, second=teacher, log_snr_mid=zero, log_snr_end=zero, label=label, w=None)
    torch.testing.assert_close(target.x, teacher(z, log_snr, label).x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 16])
def test_the_target_lands_where_the_teachers_two_steps_do(make_mixture: Any, num_steps: int) -> None:
    """The discretisation error of a student that has learnt its target is that of DDIM at twice its steps, no more."""
    teacher, count = Guided(make_mixture().denoise, NULL), 8
    made = rung(DETERMINISTIC, num_steps, 2 * num_steps, teacher=teacher)
    method, (phase,) = made.method, made.method.phases()
    z, label = torch.randn(count, 2, dtype=torch.float64), torch.arange(count) % 3
    w, t = torch.linspace(0, 4, count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    for here in uniform_times(num_steps):
        noised = Prediction(z=z, v=z, log_snr=SCHEDULE.log_snr(here * t))  # of which z alone counts
        target = method.target(noised, t=here * t, label=label, w=w, nets=made.nets, phase=phase)
        assert target is not None
        mid, end = (SCHEDULE.log_snr((here - part / num_steps) * t) for part in (0.5, 1))
        half = ddim_step(teacher(z, noised.log_snr, label, w), mid)
        z, landed = ddim_step(teacher(half, mid, label, w), end), ddim_step(target, end)
        torch.testing.assert_close(landed, z, rtol=0, atol=1e-11)
    start = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given: dict[str, Any] = {"schedule": SCHEDULE, "label": label, "w": w}
    if num_steps == 1:  # the whole way at once
        noised = Prediction(z=start, v=start, log_snr=SCHEDULE.log_snr(t))
        target = method.target(noised, t=t, label=label, w=w, nets=made.nets, phase=phase)
        assert target is not None
        expected = sample(teacher, start, times=uniform_times(2), **given)
        torch.testing.assert_close(target.x, expected, rtol=0, atol=1e-3)  # sigma(0) is 4.5e-5


# Two students ---------------------------------------------------------------------------------------------------------


def test_the_two_students_are_taught_each_its_own_target() -> None:
    assert loss(rung("progressive, two students", 4, 8), f64()) < 1e-15
    seen: list[Tensor] = []

    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        seen.append(label)
        assert w is None
        return Denoiser(Perfect(8))(z, log_snr, torch.full_like(label, NULL))  # one branch for both

    made = rung("progressive, two students", 4, 8, teacher=teacher)
    result = regression(made, f64())
    error = (result.prediction.v - result.target.v).detach().abs().amax(1)
    null = seen[0] == NULL
    assert result.w is None
    assert made.nets.guidance is None
    assert float(null.float().mean()) == pytest.approx(0.5, abs=0.12)
    assert torch.equal(seen[0][~null], f64().label[~null])
    assert float(error[null].max()) < 1e-9
    assert float(error[~null].min()) > 1e-9


@pytest.mark.parametrize("w", [0.0, 1.5])
def test_two_students_are_guided_when_they_sample(w: float) -> None:
    sampling = small("progressive, two students", ladder=[2, 1]).phases()[0].sampling
    students = sampling.guided(Denoiser(Perfect(1)), NULL)
    noise, label = torch.randn(8, 2, dtype=torch.float64), torch.zeros(8, dtype=torch.long)
    weight = torch.full((8,), w, dtype=torch.float64)
    x = sample(students, noise, schedule=SCHEDULE, times=sampling.grid(), label=label, w=weight)
    ends = SCHEDULE.log_snr(torch.tensor([1.0, 0.0]))[:, None].expand(2, 8)
    one, other = (gaussian_flow(noise, wanted, *ends) for wanted in (label, torch.full_like(label, NULL)))
    torch.testing.assert_close(x, (1 + w) * one - w * other, rtol=0, atol=1e-3)


# Predictions and weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHAINS)
def test_a_student_may_predict_x_eps_or_v(name: str, kind: PredictionKind) -> None:
    assert loss(rung(name, 4, 8, kind=kind), f64()) < 1e-12
    assert loss(rung(name, 4, 8, kind=kind, off=0.1), f64()) > 1e-4


def snr_of(log_snr: Tensor) -> dict[str, Tensor]:
    """The weights of the x-space error, as the paper writes them."""
    snr = log_snr.exp()
    return {
        "snr": snr,
        "truncated_snr": snr.clamp(min=1),
        "snr_plus_one": snr + 1,
        "uniform_x": torch.ones_like(snr),
    }


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", ["guidance", DETERMINISTIC, STOCHASTIC, "encoder"])
def test_every_stage_takes_every_weight(name: str, weight: str) -> None:
    if name == "guidance":
        method = small(name, EXACT | {"weight": weight}, w_max=0.0)
        teacher = Guided(Frozen(Denoiser(Perfect(4))), NULL)
        made = module(method, Denoiser(Perfect(4, off=0.1)), teacher)
    elif name == "encoder":
        method = small(name, EXACT | {"weight": weight}, ladder=[8, 4])
        made = module(
            method, Denoiser(Perfect(4, "encoder", off=0.1)), Frozen(Denoiser(Perfect(8, "encoder"))), stream="0/rung"
        )
    else:
        made = rung(name, 4, 8, off=0.1, weight=weight)
    result = regression(made, f64())
    error = (result.prediction.x - result.target.x).detach().square().mean(1)
    noisy = result.prediction.log_snr < 19  # at t = 0 the two have no distance in x, and an infinite weight
    expected = (snr_of(result.prediction.log_snr)[weight] * error)[noisy].sum() / len(error)
    if name != "encoder":
        assert loss(made, f64()) == pytest.approx(float(expected), rel=1e-6)
    else:
        assert loss(made, f64()) > float(expected) > 0


def test_interpretations_agree_for_the_oracle() -> None:
    """The oracle itself: its three outputs are one prediction."""
    z, log_snr = torch.randn(6, 2, dtype=torch.float64), SCHEDULE.log_snr(torch.full((6,), 0.5))
    label = torch.zeros(6, dtype=torch.long)
    x = [Denoiser(Perfect(4, kind=kind), kind)(z, log_snr, label).x for kind in KINDS]
    torch.testing.assert_close(x[0], x[1])
    torch.testing.assert_close(x[0], x[2])
    assert interpret("x", x[0], z=z, log_snr=log_snr).x.shape == z.shape


# The ladder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ladder", [[], [4], [4, 4], [8, 4, 1], [3, 2, 1], [1, 2, 4], [2, 1, 0], [0, 0]])
@pytest.mark.parametrize("name", [DETERMINISTIC, "encoder"])
def test_ladders_that_do_not_halve_are_refused(name: str, ladder: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^stage\.ladder must halve .* \[32,16,8,4,2,1\], got \[") as caught:
        small(name, ladder=ladder)
    assert str(caught.value).endswith(str(ladder))


@pytest.mark.parametrize("ladder", [[2, 1], [32, 16, 8, 4, 2, 1], [12, 6, 3]])
def test_ladders_that_halve_have_a_phase_for_each_rung(ladder: list[int]) -> None:
    method = small(DETERMINISTIC, ladder=ladder, few_steps=2, few_steps_factor=3.0)
    phases = method.phases()
    assert [(phase.teacher_steps, phase.num_steps) for phase in phases] == [*pairwise(ladder)]
    assert [len(phase.sampling.times or ()) for phase in phases] == ladder[1:]
    assert [phase.budget for phase in phases] == [3.0 if steps <= 2 else 1.0 for steps in ladder[1:]]
    parent = method.parent()
    assert parent is not None
    assert parent.continues is not None
    assert parent.continues.grid().tolist() == uniform_times(ladder[0]).tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "ddim"}, "stage.sampler must be one of deterministic, stochastic, got 'ddim'"),
        ({"variant": "three"}, "stage.variant must be one of joint, two_student, got 'three'"),
        ({"few_steps_factor": 0.0}, "stage.few_steps_factor must be a number above 0, got 0.0"),
        ({"ladder": [4.5, 2]}, "stage.ladder must be a list of whole numbers, like [1], got [4.5, 2]"),
        ({"student": {"width": 8}, "adapter": "lora"}, "stage.adapter adds to a teacher's weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^stage") as caught:
        small(DETERMINISTIC, **change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_students_w_is_its_parents_and_two_students_have_none() -> None:
    assert module(small(DETERMINISTIC)).nets.guidance is not None
    for name, kind in ((DETERMINISTIC, "input"), ("progressive, two students", "two_evaluations")):
        parent = small(name).parent()
        assert parent is not None
        assert parent.guidance == (kind,)
        assert {phase.sampling.guidance for phase in small(name).phases()} == {kind}
