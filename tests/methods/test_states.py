"""States of data, of the teacher's sampling and of the student's own: the samplers', by their priors, one optimum."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_methods import NULL, SCHEDULE, Exact, batch, gaussian, module, network, regression, small
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import diffuse, interpret
from fewstep.diffusion.sampler import SAMPLERS, sample_until, trajectory
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import uniform_time_values
from fewstep.methods import GuidanceRange
from fewstep.methods.consistency import ConsistencyTraining
from fewstep.methods.draws import Draws
from fewstep.methods.state_source import StateSource

ONLY = {
    who: {"data": 0.0, "teacher": 0.0, "student": 0.0, "warmup": 0.0} | {who: 1.0}
    for who in ("data", "teacher", "student")
}


# Roll-outs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deterministic", "stochastic", "ancestral", "renoise"])
def test_a_state_is_one_that_the_sampler_meets(name: str) -> None:
    """At each of its times, with the same noise."""
    denoise, sampling, count = network(), Sampling.uniform(6), 12
    noise, label = torch.randn(count, 2), torch.arange(count) % 3
    added = [torch.randn(count, 2) for _ in range(7)]
    given: dict[str, Any] = {
        "schedule": SCHEDULE,
        "label": label,
        "w": None,
        "sampler": SAMPLERS[name],
        "fresh": lambda step: added[step],
    }
    with torch.no_grad():
        met = torch.stack([prediction.z for prediction in trajectory(denoise, noise, times=sampling.grid(), **given)])
    place = torch.arange(count) % 6
    times = uniform_time_values(6)
    z = sample_until(denoise, noise, until=sampling.grid()[place], lowest=1 / 6, times=times, **given)
    assert torch.equal(z, met[place, torch.arange(count)])


def test_between_two_times_the_move_is_cut_short() -> None:
    """Of points the predicted x does not change, so that a state is on the line of the noise that it began at."""
    x = torch.tensor([[0.5, -0.2]]).expand(8, 2).double()
    exact = Exact(lambda z, log_snr, label, w: interpret("x", x, z=z, log_snr=log_snr), guidance_input=False)
    noise, until = torch.randn(8, 2, dtype=torch.float64), torch.linspace(0.05, 1, 8, dtype=torch.float64)
    z = sample_until(
        exact,
        noise,
        until=until,
        lowest=0.05,
        schedule=SCHEDULE,
        times=uniform_time_values(4),
        label=torch.zeros(8, dtype=torch.long),
        w=None,
    )
    torch.testing.assert_close(z, diffuse(x=x, eps=noise, log_snr=SCHEDULE.log_snr(until)).z, atol=1e-4, rtol=0)
    assert torch.equal(z[-1], noise[-1])


@pytest.mark.parametrize(("lowest", "evaluations"), [(1.0, 0), (0.75, 1), (0.25, 3), (0.2, 4)])
def test_nothing_is_evaluated_below_the_lowest(lowest: float, evaluations: int) -> None:
    denoise = network()
    sample_until(
        denoise,
        torch.randn(5, 2),
        until=torch.full((5,), lowest, dtype=torch.float64),
        lowest=lowest,
        schedule=SCHEDULE,
        times=uniform_time_values(4),
        label=torch.zeros(5, dtype=torch.long),
        w=None,
    )
    assert denoise.evaluated == 5 * evaluations


@pytest.mark.parametrize("name", ["ddil", "ddil, stochastic"])
def test_a_teachers_states_are_of_its_own_steps_and_of_the_chain(name: str) -> None:
    made = module(small(name, states=ONLY["teacher"]))
    method: Any = made.method
    with torch.no_grad():  # the teacher is another network than the student, which begins as it
        for weight in made.student.parameters():
            weight.add_(0.1)
    eps, (x, label) = torch.randn(32, 2), batch()
    w, t = torch.zeros(32), torch.full((32,), 0.5, dtype=torch.float64)
    draws = Draws.begin(x, "s", 0)
    given = {"t": t, "label": label, "w": w, "nets": made.nets, "draws": draws, "step": 0, "phase": made.phase}
    found = method.state(x, eps, **given)
    sampler = SAMPLERS["stochastic" if "stochastic" in name else "deterministic"]
    teacher: Any = made.nets.teacher
    steps, again = made.phase.learned_steps, Draws.begin(x, "s", 0)
    assert steps == 8
    expected = sample_until(
        teacher,
        eps,
        until=t,
        lowest=method.lowest_time(made.phase),
        schedule=SCHEDULE,
        times=uniform_time_values(steps),
        label=label,
        w=w,
        sampler=sampler,
        fresh=lambda _: again.normal(),
    )
    torch.testing.assert_close(found.z, expected)


@pytest.mark.parametrize(("who", "cost"), [("data", 5), ("student", 5 + 3), ("teacher", 5 + 6)])
def test_an_update_costs_its_roll_outs(who: str, cost: int) -> None:
    """Rung 8 to 4: forward and backward of the student, two steps of the teacher, and the way to t = 1/4 at most."""
    made = module(small("ddil", states=ONLY[who]))
    before = made.evaluated
    regression(made)
    assert (made.evaluated - before) / 32 == cost


# Priors ---------------------------------------------------------------------------------------------------------------


def test_every_stretch_of_updates_has_the_priors_shares_after_the_warm_up() -> None:
    source = StateSource(data=0.5, teacher=0.3, student=0.2)
    found = [source.at(step, 2000) for step in range(2000)]
    assert set(found[:200]) == {"data"}
    for start in range(200, 2000, 300):
        part = found[start : start + 300]
        for who, share in (("data", 0.5), ("teacher", 0.3), ("student", 0.2)):
            assert part.count(who) / 300 == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("name", ["progressive", "lcm", "consistency"])
def test_data_alone_is_no_source_at_all(name: str) -> None:
    plain, mixed = (regression(module(small(name, states=states))) for states in (None, ONLY["data"]))
    for part in ("prediction", "target"):
        assert torch.equal(getattr(plain, part).v, getattr(mixed, part).v)


def test_students_states_are_those_that_dmd2_simulates_anyway() -> None:
    def samples(states: Any) -> Tensor:
        made = module(small("dmd2", states=states))
        x, label = batch()
        given = Draws.begin(x, "s", 1)
        method: Any = made.method
        return method.generate(x, made.nets, given, label, torch.zeros(32), step=1, phase=made.phase).z

    assert torch.equal(samples(None), samples(ONLY["student"]))
    assert not torch.equal(samples(None), samples(ONLY["data"]))
    assert small("dmd2").inputs == "noise"
    assert small("dmd2", states=ONLY["data"]).inputs == "data"


def test_a_budget_knows_what_states_cost_after_the_warm_up() -> None:
    """Updates that are counted are spread over the training."""
    states = {"data": 0.0, "teacher": 1.0, "student": 0.0, "warmup": 0.5}
    made = module(small("ddil", {"images": 32 * 6400}, states=states))
    assert made.evaluations_per_image(batch()) == 5 + 6 / 2


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({"data": 0.5, "teacher": 0.5, "student": 0.5}, "must sum to 1, got 0.5, 0.5, 0.5"),
        ({"data": 1.5, "teacher": -0.5, "student": 0.0}, "stage.states.data must be a number from 0 to 1, got 1.5"),
        ({"data": 0.5, "teacher": 0.5}, "stage.states.student must be given"),
        ({"data": 1.0, "teacher": 0.0, "student": 0.0, "replay": 200}, "stage.states.replay is no setting"),
        (
            {"data": 1.0, "teacher": 0.0, "student": 0.0, "warmup": 1.0},
            "warmup must be a number of at least 0 and below 1, got 1.0",
        ),
        (
            {"data": 1.0, "teacher": 0.0, "student": 0.0, "teacher_steps": 0},
            "teacher_steps must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_bad_states_are_refused_in_one_line(states: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=r"stage\.states\.") as caught:
        small("lcm", states=states)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_teacher_there_are_only_data() -> None:
    with pytest.raises(ValueError, match=r"stage\.states is about a teacher"):
        small("consistency training", states=ONLY["data"])
    assert isinstance(small("consistency").without_teacher(), ConsistencyTraining)


# Thresholding ---------------------------------------------------------------------------------------------------------


def test_with_clipped_targets_the_students_x_is_clipped_on_the_way() -> None:
    made = module(small("ddil", states=ONLY["student"]))
    made.student.network.get_parameter("outward.1.weight").data.mul_(50)
    x, label = batch()

    def states(bounds: tuple[float, float] | None) -> Tensor:
        method: Any = made.method
        return method.state(
            x,
            batch().x,
            t=torch.full((32,), 0.25, dtype=torch.float64),
            label=label,
            w=torch.zeros(32),
            nets=replace(made.nets, bounds=bounds),
            draws=Draws.begin(x, "s", 0),
            step=0,
            phase=made.phase,
        ).z

    assert float(states(None).abs().max()) > 2 > float(states((-1.0, 1.0)).abs().max())


# The optimum ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["ddil", "lcm at other states"])
def test_the_optimum_of_a_student_that_can_be_the_teachers_map_does_not_depend_on_the_states(name: str) -> None:
    """Gaussian data: targets are linear in z. Least squares at each time finds the same map at all sources' states."""
    torch.set_default_dtype(torch.float64)
    try:
        maps = {who: linear_maps(name, states) for who, states in ONLY.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for who in ("teacher", "student"):
        torch.testing.assert_close(maps[who], maps["data"], rtol=1e-11, atol=1e-12)


def linear_maps(name: str, states: dict[str, float]) -> Tensor:
    """[slope, constant] of the target's v in each dimension at each time, for one class and w; by least squares."""
    method = small(name, states=states, **({"metric": "l2", "self_teacher_decay": 0.0} if "lcm" in name else {}))
    # A student that is not the teacher's map, but linear, so that a target through it is linear too.
    student = Exact(gaussian, guidance_input=True)
    student.predict = lambda z, log_snr, label, w, extra: replace(gaussian(0.7 * z, log_snr, label), z=z)  # pyright: ignore
    made = module(method, student, Guided(gaussian, NULL), parent=GuidanceRange(1.0, 1.0))
    data = batch(600, torch.float64)
    found = regression(made, data._replace(label=torch.zeros(600, dtype=torch.long)))
    maps = []
    for t in found.t.unique():
        at = found.t == t
        z, v = found.target.z[at], found.target.v[at]
        for dim in range(2):
            matrix = torch.stack([z[:, dim], torch.ones(len(z))], 1)
            maps.append(torch.linalg.lstsq(matrix, v[:, dim, None]).solution[:, 0])
    return torch.stack(maps)
