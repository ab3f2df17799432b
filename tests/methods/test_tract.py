"""TRACT: groups of teacher steps, the self-teacher, and the boundary where there is no second hop."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from small_methods import NULL, SCHEDULE, batch, fit, module, network, regression, small, weights_of
from test_distillation_module import Weights
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.sampler import ddim_step
from fewstep.diffusion.sampling import Sampling
from fewstep.methods import GuidanceRange, Tract
from fewstep.methods.draws import Draws
from fewstep.methods.tract import SELF_TEACHER
from fewstep.networks import Frozen
from fewstep.networks.ema import Average, bias_corrected


def method_of(plan: dict[str, Any] | None = None, **changes: Any) -> Tract:
    method = small("tract", plan, **changes)
    assert isinstance(method, Tract)
    return method


# Groups ---------------------------------------------------------------------------------------------------------------

EIGHT_TO_TWO = {1: (0, 0), 2: (1, 0), 3: (2, 0), 4: (3, 0), 5: (4, 4), 6: (5, 4), 7: (6, 4), 8: (7, 4)}
TWO_TO_ONE = {1: (0, 0), 2: (1, 0)}


@pytest.mark.parametrize(("number", "steps", "hops"), [(0, 8, EIGHT_TO_TWO), (1, 2, TWO_TO_ONE)])
def test_every_hop_of_8_2_1(number: int, steps: int, hops: dict[int, tuple[int, int]]) -> None:
    """t, and where the teacher's step and the group end, in steps of the teacher."""
    method = method_of(time_schedule=[8, 2, 1])
    phase = method.phases()[number]
    assert (method.times(phase) * steps).tolist() == [*range(steps, 0, -1)]
    for index, expected in hops.items():
        u, s = method.hops(torch.tensor([index / steps], dtype=torch.float64), phase)
        assert (u.tolist(), s.tolist()) == ([expected[0] / steps], [expected[1] / steps])


@pytest.mark.parametrize("schedule", [[64, 8, 1], [1024, 32, 1], [40, 1], [49, 7], [30, 10, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hops_of_any_schedule_are_whole_steps_and_end_with_their_group(schedule: list[int], dtype: torch.dtype) -> None:
    method = method_of(time_schedule=schedule)
    for phase, (teacher_steps, num_steps) in zip(method.phases(), pairwise(schedule), strict=True):
        size = teacher_steps // num_steps
        index = torch.arange(1, teacher_steps + 1)
        u, s = method.hops((index / teacher_steps).to(dtype), phase)
        assert (u * teacher_steps).round().long().tolist() == [i - 1 for i in index.tolist()]
        assert (s * teacher_steps).round().long().tolist() == [(i - 1) // size * size for i in index.tolist()]
        assert (u == s).tolist() == [(i - 1) % size == 0 for i in index.tolist()]  # to the last bit
        assert len(s.unique()) == num_steps


def test_times_are_drawn_among_all_of_the_teachers() -> None:
    method = method_of(time_schedule=[8, 2, 1])
    for number, steps in ((0, 8), (1, 2)):
        phase = method.phases()[number]
        t = method.draw_times(Draws.begin(torch.zeros(600, 2), "s", 0), phase)
        assert {*t.tolist()} == {*method.times(phase).tolist()} == {i / steps for i in range(1, steps + 1)}
        assert int((t * steps).long().bincount()[1:].min()) > 600 / steps / 2


# The target -----------------------------------------------------------------------------------------------------------


class Remembered:
    """A denoiser that keeps what it is called with."""

    def __init__(self, denoise: Any) -> None:
        self.denoise, self.calls = denoise, []

    def __call__(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        self.calls.append((z, log_snr, label, w))
        return self.denoise(z, log_snr, label, w)


def test_the_target_goes_by_the_teacher_then_the_self_teacher_to_the_end_of_the_group(make_mixture: Any) -> None:
    teacher = Remembered(Guided(make_mixture().denoise, NULL))
    made = module(method_of(), network(guidance_input=True), teacher)
    method, nets = made.method, made.nets
    with torch.no_grad():  # a self-teacher that is not the student
        for weight in nets.averages[SELF_TEACHER].parameters():
            weight.mul_(1.1)
    index = torch.arange(1, 9)
    t, label, w = index.double() / 8, index % 3, torch.linspace(0, 4, 8)
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    noised = Prediction(z=z, v=torch.full_like(z, torch.nan), log_snr=SCHEDULE.log_snr(t))  # of which z alone counts
    target = method.target(noised, t=t, label=label, w=w, nets=nets, phase=made.phase)
    assert target is not None
    assert len(teacher.calls) == 1
    assert torch.equal(teacher.calls[0][0], z)
    assert torch.equal(teacher.calls[0][2], label)
    assert torch.equal(teacher.calls[0][3], w)
    u, s = (SCHEDULE.log_snr(at) for at in method.hops(t, made.phase))
    first = teacher(z, noised.log_snr, label, w)
    there = ddim_step(first, u)
    landed = ddim_step(nets.averages[SELF_TEACHER](there, u, label, w), s)
    torch.testing.assert_close(ddim_step(target, s), landed, rtol=1e-5, atol=1e-5)
    boundary = torch.tensor([i in (1, 5) for i in index.tolist()])  # u is s
    assert torch.equal(target.v[boundary], first.v[boundary])
    assert not bool((target.v[~boundary] == first.v[~boundary]).any())


def test_at_a_groups_last_step_the_self_teacher_does_not_count() -> None:
    made = module(method_of(), network(guidance_input=True), Frozen(network(1, guidance_input=True)))
    t = torch.tensor([1 / 8, 5 / 8], dtype=torch.float64)
    z, label, w = torch.randn(2, 2), torch.tensor([0, 1]), torch.zeros(2)
    noised = Prediction(z=z, v=z, log_snr=SCHEDULE.log_snr(t))

    def target() -> Tensor:
        found = made.method.target(noised, t=t, label=label, w=w, nets=made.nets, phase=made.phase)
        assert found is not None
        return found.v

    before = target()
    with torch.no_grad():
        for weight in made.nets.averages[SELF_TEACHER].parameters():
            weight.normal_()
    assert torch.equal(target(), before)


# The self-teacher -----------------------------------------------------------------------------------------------------


def test_the_self_teacher_starts_as_the_student_and_the_first_update_copies() -> None:
    made = module(method_of({"images": 32}))
    own, student = made.nets.averages[SELF_TEACHER], made.student
    assert all(torch.equal(a, b) for a, b in zip(own.network.parameters(), student.parameters(), strict=True))
    before = dict(weights_of(student))
    fit(made)
    assert all(torch.equal(value, dict(weights_of(student))[key]) for key, value in weights_of(own.network))
    assert not torch.equal(before["network.inward.weight"], student.state_dict()["network.inward.weight"])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_self_teacher_is_the_corrected_average(decay: float) -> None:
    made, weights = module(method_of({"images": 8 * 32}, self_teacher_decay=decay)), Weights()
    fit(made, weights)
    share = torch.tensor([decay ** (7 - step) for step in range(8)], dtype=torch.float64)
    for key, value in made.nets.averages[SELF_TEACHER].network.state_dict().items():
        seen = torch.stack([student[key].double() for student in weights.taken])
        expected = torch.tensordot(share / share.sum(), seen, dims=1)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_each_phase_begins_with_a_self_teacher_of_its_own() -> None:
    method = method_of({"images": 96})
    first = module(method, number=0)
    fit(first)
    assert first.student_updates == 3
    second = module(method, first.nets.model, Frozen(network(1, guidance_input=True)), number=1)
    own = second.nets.averages[SELF_TEACHER]
    assert own is not first.nets.averages[SELF_TEACHER]
    assert second.student_updates == 0
    assert own.rule(0) == 0  # forgets what it was before
    pairs = zip(own.network.parameters(), first.nets.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_self_teacher_is_no_model_and_the_average_is_no_self_teacher() -> None:
    made = module(method_of())
    assert set(made.nets.averages) == {"model", SELF_TEACHER}
    assert made.nets.model is made.nets.averages["model"].network
    assert made.nets.averages["model"].rule(10**6) == 0.5
    assert isinstance(made.nets.averages[SELF_TEACHER], Average)
    assert made.nets.averages[SELF_TEACHER].rule(3) == bias_corrected(0.5)(3)


# Settings -------------------------------------------------------------------------------------------------------------


def test_phases_follow_the_schedule() -> None:
    method = method_of(time_schedule=[64, 8, 1], few_steps=1, few_steps_factor=3.0)
    phases = method.phases()
    assert [(phase.teacher_steps, phase.num_steps, phase.budget) for phase in phases] == [(64, 8, 1.0), (8, 1, 3.0)]
    assert [phase.sampling for phase in phases] == [Sampling.uniform(n, guidance="input") for n in (8, 1)]
    assert method.parent().guidance == ("input",)
    assert method.parent().continues == Sampling.uniform(64, guidance="input")


def test_w_is_drawn_from_the_parents_range_or_a_part_of_it() -> None:
    seen = regression(module(method_of(w_min=1.0, w_max=2.0)), batch(256))
    assert seen.w is not None
    assert 1 <= float(seen.w.min()) < 1.1
    assert 1.9 < float(seen.w.max()) <= 2
    assert method_of().guidance(GuidanceRange(0.5, 3.0)) == GuidanceRange(0.5, 3.0)
    with pytest.raises(ValueError, match="parent's range"):
        method_of(w_max=5.0).guidance(GuidanceRange(0.5, 3.0))


@pytest.mark.parametrize("schedule", [[], [4], [4, 4], [8, 3], [1, 2], [2, 1, 0], [8, 4, 8]])
def test_schedules_that_do_not_divide_are_refused(schedule: list[int]) -> None:
    with pytest.raises(ValueError, match=r"stage\.time_schedule must fall, each number a divisor") as caught:
        method_of(time_schedule=schedule)
    assert str(schedule) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"self_teacher_decay": 1.0}, "stage.self_teacher_decay must be a number of at least 0 and below 1, got 1.0"),
        ({"self_teacher_decay": -0.1}, "stage.self_teacher_decay must be a number of at least 0 and below 1, got -0.1"),
        ({"few_steps_factor": 0.0}, "stage.few_steps_factor must be a number above 0, got 0.0"),
        ({"ladder": [2, 1]}, "stage.ladder is no setting; stage has name, training,"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^stage") as caught:
        method_of(**change)
    assert words in str(caught.value)
