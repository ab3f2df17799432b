"""One set of oracles for every method: exact networks have no error, and what must hold of training and its file."""

from collections.abc import Iterator
from dataclasses import replace
from inspect import isabstract
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_methods import (
    FACTS,
    NULL,
    ROLES,
    SCHEDULE,
    SMALL,
    STYLES,
    Exact,
    at_step,
    batch_for,
    fit,
    flow,
    guided_for,
    landing_of,
    module,
    regression,
    small,
    weights_of,
)
from test_restoring import RESTORING
from test_teacher import posterior_variance

from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.data.batch import Batch
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.sampler import SAMPLERS, integrate, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.distributed import collectives
from fewstep.inference.model import Model
from fewstep.methods import SFDDM, GuidanceRange, Method, Phase, Progressive, draws
from fewstep.methods.consistency import ConsistencyTraining
from fewstep.methods.draws import Draws
from fewstep.methods.fake_score import FAKE
from fewstep.methods.losses import Loss
from fewstep.networks.memory import denoisers_in
from fewstep.system.seeds import fresh_noise, starting_noise
from fewstep.training.module import DistillationModule

EACH = pytest.mark.parametrize("name", SMALL)
WITHOUT_CLOSED_FORM = (
    "guidance with features",
    "sfddm with features",
    "rdd",
    "add",
    "ladd",
    "progressive with judge",
    "consistency with judge",
    "knowledge_distillation with judge",
    "dmd2 with critic",
    "dmd2 of another divergence",
    "dmd2, level by level",
    "dmd2 at other states",
)  # of what is trained beside the student
ON_GAUSSIANS = (  # with exact networks of their own: test_{flow_maps,curricula,reflow,pi_flow,o2mkd,fake_score,vdd}.py
    "dmd2, decoupled",
    "dp_dmd",
    "sid",
    "knowledge_distillation",
    "reflow",
    "ect",
    "ect along data",
    "ict",
    "scm",
    "meanflow",
    "meanflow from data",
    "flow_map",
    "boot",
    "pid",
    "pi_flow",
    "freeflow",
    "freeflow without correction",
    "o2mkd",
    "o2mkd by label",
    "vdd",
    "em_mixture",
)
SIGNED = ("vdd", "em_mixture", "sid")  # losses that are log-densities, or an identity and no distance

COMPARED = ("rdd", "dmd2 of another divergence")  # whose losses need the batches of all processes: processes/


def concrete(kind: type[Method] = Method) -> Iterator[type[Method]]:
    """All methods of the package that can be built."""
    for each in kind.__subclasses__():
        if not isabstract(each) and each.__module__.startswith("fewstep.methods."):  # adapters' are no stages
            yield each
        yield from concrete(each)


def test_every_method_is_among_the_small_ones() -> None:
    small_ones = {kind.__name__ for kind, _ in (*SMALL.values(), *RESTORING.values())}
    missing = sorted({kind.__name__ for kind in concrete()} - small_ones)
    assert not missing, f"{', '.join(missing)} must have small settings in SMALL of small_methods.py to be tested here"


# Exact networks have no error -----------------------------------------------------------------------------------------


@pytest.fixture
def double() -> Iterator[None]:
    """All random numbers in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points() -> GaussianMixture:
    """One point a class, up to 1e-7: noise and data follow from z, and one step of the denoiser is the whole flow."""
    means = torch.tensor([[0.5, 0.2], [-0.6, 0.3], [0.1, -0.7]], dtype=torch.float64)
    return GaussianMixture(means, torch.full_like(means, 1e-7), torch.full((3,), 1 / 3).double(), torch.arange(3))


def hop_of(method: Method, phase: Phase) -> Sampling:
    """How the teacher of a few-step student is sampled: it makes the first hop of the target."""
    if isinstance(method, Progressive):
        assert phase.teacher_steps is not None
        return method.sampling(phase.teacher_steps)
    if phase.teacher_steps is not None:
        return Sampling.uniform(phase.teacher_steps, guidance="input")
    times = method.times(phase)
    assert times is not None
    return Sampling(times=tuple(times.tolist()), guidance="input")


def exact(
    name: str, mixture: GaussianMixture, number: int = 0, *, off: float = 0.0, one_step: bool = False, **changes: Any
) -> DistillationModule:
    """A phase whose networks are all exact: each goes where its sampling says, along the flow of the mixture.

    Args:
        off: added to the v of what is trained. one_step: the teacher makes one DDIM step where the flow is meant.
    """
    method = small(name, {"weight": "uniform_x"}, **own_changes(name), **changes)
    phase = method.phases()[number]
    guided = phase.sampling.guidance == "input"
    denoise: Denoise = guided_for(method, mixture.denoise) if guided else mixture.denoise
    landing = None if isinstance(method, (ConsistencyTraining, SFDDM)) else landing_of(phase.sampling)
    student = Exact(denoise, landing, guidance_input=guided, off=0.0 if name == "dmd2" else off)
    teacher: Denoise = denoise
    if method.times(phase) is not None and not one_step and not isinstance(method, SFDDM):
        teacher = Exact(denoise, landing_of(hop_of(method, phase)), guidance_input=guided)
    made = module(
        method,
        student,
        None if method.parent() is None else teacher,
        number=number,
        parent=GuidanceRange(0.0, 0.0 if name == "dmd2" else 2.0),
    )
    if name != "dmd2":
        return made
    nets = replace(made.nets, trained={FAKE: Exact(mixture.denoise, off=off)})
    return DistillationModule(method=method, phase=phase, nets=nets, training=method.training, stream=made.stream)


def own_changes(name: str) -> dict[str, Any]:
    """Labels are kept, and what has weights of its own takes those of the test."""
    return {"teacher": {"label_dropout": 0.0}, "guidance": {"w_max": 2.0}}.get(name, {})


def given(mixture: GaussianMixture, count: int = 24) -> Batch:
    label = torch.arange(count) % 3
    return Batch(mixture.draw(label, torch.Generator().manual_seed(0)), label)


def parts(made: DistillationModule, data: Batch) -> dict[str, float]:
    """The loss of each role."""
    step = next(step for step in range(100) if "student" in made.method.moving(step))
    found = made.method.losses(data, made.nets, Draws.begin(data.x, made.stream, step), step=step, phase=made.phase)
    return {role: float(each.error.detach().mean()) for role, each in found.items()}


GENERIC = [name for name in SMALL if name not in (*WITHOUT_CLOSED_FORM, *ON_GAUSSIANS)]
PHASES = [(name, n) for name in GENERIC for n in range(len(small(name).phases()))]


@pytest.mark.parametrize(("name", "number"), PHASES)
@pytest.mark.usefixtures("double", "unchecked")
def test_an_exact_student_has_no_error_but_what_is_known(make_mixture: Any, name: str, number: int) -> None:
    """What is left: of a teacher and of a fake score Var(x | z); of all others nothing.

    Consistency training, whose hop follows the data, is exact where z says which data: at points.
    """
    mixture = points() if SMALL[name][0] is ConsistencyTraining else make_mixture()
    data = given(mixture, 3000 if name in ("teacher", "dmd2") else 24)  # where a mean over examples is compared
    found = parts(exact(name, mixture, number), data)
    wrong = parts(exact(name, mixture, number, off=0.1), data)
    if name == "teacher":
        seen = regression(exact(name, mixture, number), data).prediction
        expected = posterior_variance(mixture, seen.z, seen.log_snr, data.label).mean()
        assert found["student"] == pytest.approx(float(expected), rel=0.05)
    else:
        assert found["student"] < 1e-12
    assert wrong["student"] > found["student"] + 1e-4
    if name == "dmd2":
        assert found.keys() == {"student", FAKE}
        assert 0 < found[FAKE] < wrong[FAKE]


REFINED: dict[str, Any] = {
    "progressive": lambda n: {"ladder": [2 * n, n], "few_steps": 0},
    "progressive, stochastic": lambda n: {"ladder": [2 * n, n], "few_steps": 0},
    "progressive, two students": lambda n: {"ladder": [2 * n, n], "few_steps": 0},
    "encoder": lambda n: {"ladder": [2 * n, n], "few_steps": 0},
    "ddil": lambda n: {"ladder": [2 * n, n], "few_steps": 0},
    "ddil, stochastic": lambda n: {"ladder": [2 * n, n], "few_steps": 0},
    "tract": lambda n: {"time_schedule": [4 * n, n]},
    "consistency": lambda n: {"num_levels": n},
    "consistency with self-teacher": lambda n: {"num_levels": n, "metric": "l2"},
    "lcm": lambda n: {"num_levels": n, "metric": "l2"},
    "lcm at other states": lambda n: {"num_levels": n, "metric": "l2"},
    "single_fold": lambda n: {"num_steps": n, "fold": 4},
}
NO_DDIM_STEPS = ("teacher", "guidance", "two_guidances", "consistency training", "sfddm", "dmd2")  # in their targets


def test_every_target_of_teacher_steps_is_refined_below() -> None:
    assert {*SMALL} == {*REFINED, *NO_DDIM_STEPS, *WITHOUT_CLOSED_FORM, *ON_GAUSSIANS}


@pytest.mark.parametrize("name", REFINED)
@pytest.mark.usefixtures("double", "unchecked")
def test_the_residual_is_that_of_ddim_steps_and_falls_as_theirs(make_mixture: Any, name: str) -> None:
    """One DDIM step of length h errs by h^2, of which the target's v has h and so has its x: first order.

    A consistency target's x is at t = 0, where the error of the step before is what it was: second order.
    """
    mixture, data = make_mixture(), given(make_mixture(), 300)
    coarse, fine = (parts(exact(name, mixture, one_step=True, **REFINED[name](n)), data)["student"] for n in (16, 32))
    order = 2 if name.startswith(("consistency", "lcm")) else 1
    assert coarse / fine == pytest.approx(4**order, rel=0.2)


@pytest.mark.usefixtures("unchecked")
def test_the_flow_of_exact_networks_is_that_of_the_integrator(make_mixture: Any) -> None:
    guided, count = Guided(make_mixture().denoise, NULL), 6
    z, label = torch.randn(count, 2, dtype=torch.float64), torch.arange(count) % 3
    w, ends = torch.linspace(0, 2, count, dtype=torch.float64), SCHEDULE.log_snr(torch.tensor([0.9, 0.2]))
    expected = integrate(guided, z, log_snr=ends[0], log_snr_next=ends[1], num_steps=200, label=label, w=w)
    own = flow(guided, z, log_snr=ends[0].expand(count), log_snr_next=ends[1].expand(count), label=label, w=w)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["single_fold", "pi_flow", "sfddm"])
def test_a_student_is_of_the_steps_that_are_set(name: str) -> None:
    for method in (small(name, num_steps=4), small(name, num_steps=2).with_steps(4)):
        (phase,) = method.phases()
        assert phase.num_steps == 4
        assert phase.sampling.is_made_for(4)
        assert not phase.sampling.is_made_for(3)


@EACH
def test_a_method_of_data_without_labels_is_the_same_or_says_what_it_needs(name: str) -> None:
    method = small(name)
    if not method.needs_labels:
        assert method.without_labels() == (replace(method, guided_by="none") if name == "teacher" else method)
        return
    with pytest.raises(ValueError, match=rf"^stage={method.name} needs a guided teacher.*fewstep data label.*\)$"):
        method.without_labels()


# Gradients ------------------------------------------------------------------------------------------------------------


def cycle_of(method: Method) -> range:
    """Steps in which every pattern of moving roles comes twice."""
    moving = [method.moving(step) for step in range(100)]
    period = next(n for n in range(1, 50) if moving[n:] == moving[:-n])
    return range(2 * max(period, 2))


@EACH
def test_gradients_reach_all_of_the_roles_that_move_and_nothing_else(name: str) -> None:
    made = module(small(name))
    with torch.no_grad():  # networks that begin as copies of each other have nothing to learn from each other
        for weight in [*made.student.parameters(), *made.trained.parameters()]:
            weight.add_(0.1)
    for step in cycle_of(made.method):
        made.zero_grad(set_to_none=True)
        with at_step(step):
            made.training_step(batch_for(made.method), step).backward()
        for role, weights in made.weights.items():
            gradients = [weight.grad for weight in weights]
            if role in made.method.moving(step):
                assert all(gradient is not None for gradient in gradients), (step, role)
                assert any(bool(gradient.any()) for gradient in gradients if gradient is not None), (step, role)
            else:
                assert all(gradient is None for gradient in gradients), (step, role)
        frozen = [*made.averages.parameters(), *(p for d in denoisers_in(made.nets.teacher) for p in d.parameters())]
        assert all(weight.grad is None and not weight.requires_grad for weight in frozen)


@EACH
def test_losses_are_those_of_the_roles_that_move_one_number_an_example(name: str) -> None:
    made = module(small(name))
    assert made.method.roles[0] == "student"
    for step in cycle_of(made.method):
        data = batch_for(made.method)
        found = made.method.losses(data, made.nets, Draws.begin(data.x, "s", step), step=step, phase=made.phase)
        assert tuple(found) == made.method.moving(step)
        assert {*found} <= {*made.method.roles}
        for each in found.values():
            assert each.error.shape == each.t.shape == (32,)
            assert (each.w is None) == (made.nets.guidance is None)
            assert name in SIGNED or bool((each.error >= 0).all())
            assert bool(((each.t >= 0) & (each.t <= 1)).all())


# One process and several ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SMALL if name not in COMPARED])
@pytest.mark.parametrize("step", [0, 1])
def test_two_processes_have_the_losses_of_one(name: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(small(name))

    def found() -> dict[str, Loss]:
        whole = batch_for(made.method)
        data = whole._make(map(collectives.local_rows, whole))
        seeds = Draws.begin(data.x, made.stream, step)
        return dict(made.method.losses(data, made.nets, seeds, step=step, phase=made.phase))

    alone, shares = found(), []
    for place in (collectives, draws):
        monkeypatch.setattr(place, "world_size", lambda: 2)
    for rank in (0, 1):
        for place in (collectives, draws):
            monkeypatch.setattr(place, "rank", lambda rank=rank: rank)
        shares.append(found())
    for role, loss_of_one in alone.items():
        for field in ("error", "t", "w"):
            parts = [getattr(share[role], field) for share in shares]
            expected = getattr(loss_of_one, field)
            if expected is None:
                assert parts == [None, None]
            else:
                assert [len(part) for part in parts] == [16, 16]
                torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-4, atol=1e-6)


# Interrupted and uninterrupted ----------------------------------------------------------------------------------------


def everything(made: DistillationModule) -> dict[str, Any]:
    """All that training changes, by name."""
    state = made.optimizers(use_pl_optimizer=False).state_dict()["state"]  # pyright: ignore[reportAttributeAccessIssue]
    optimiser = {f"{key} of {number}": value for number, each in state.items() for key, value in each.items()}
    counters = {"student_updates": made.student_updates, "evaluations": made.evaluations, "step": made.global_step}
    return {**dict(weights_of(made)), **optimiser, **counters}


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@EACH
def test_an_interrupted_training_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """Stopped after 5 of 10 steps, in the middle of a cycle of roles."""
    plan = {"images": 320, "roles": ROLES}
    whole, first, second = (module(small(name, plan)) for _ in range(3))
    with torch.no_grad():  # a student that is its teacher has nothing to learn in some methods
        for weight in (weight for each in (whole, first, second) for weight in each.student.parameters()):
            weight.add_(0.1)
    fit(whole)
    fit(first, max_steps=5).save_checkpoint(tmp_path / "half.ckpt")
    halfway = everything(first)
    fit(second, resume=str(tmp_path / "half.ckpt"))
    expected, found = everything(whole), everything(second)
    assert found.keys() == expected.keys()
    different = [
        key for key, value in expected.items() if not torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value))
    ]
    assert not different
    assert (whole.global_step, halfway["step"]) == (10, 5)
    updates = sum("student" in whole.method.moving(step) for step in range(10))
    assert whole.student_updates == updates
    for key in expected:  # and there was something to lose
        if key.startswith(("student.", "trained.")):
            assert not torch.equal(halfway[key], expected[key]), key


# The file -------------------------------------------------------------------------------------------------------------


def card_of(made: DistillationModule) -> ModelCard:
    """The card that training writes."""
    from fewstep.runs import train

    guidance = made.nets.guidance
    facts = replace(FACTS, styles=STYLES) if guidance and guidance.second else FACTS
    job = SimpleNamespace(settings=SimpleNamespace(name=made.method.name), method=made.method, facts=facts)
    return train.card_of(cast(Any, job), made, None, ())


@EACH
def test_a_file_says_how_its_model_is_sampled(name: str, tmp_path: Path) -> None:
    method = small(name)
    for number, phase in enumerate(method.phases()):
        made = module(method, number=number)
        card = card_of(made)
        save_model(tmp_path / "model", made.nets.model, card)
        denoiser, read = load_model(tmp_path / "model")
        assert read == card
        assert read.sampling == phase.sampling
        guidance = made.nets.guidance
        assert (read.w_min, read.w_max) == ((guidance.w_min, guidance.w_max) if guidance else (None, None))
        second = guidance and guidance.second
        assert (read.w2_min, read.w2_max) == ((second.w_min, second.w_max) if second else (None, None))
        assert denoiser.has_guidance_input == (phase.sampling.guidance == "input")
        assert read.label == ("guided" if name.startswith(("guidance", "two_guidances", "o2mkd")) else name)
        assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), made.nets.model.parameters(), strict=True))


@EACH
def test_a_loaded_model_samples_as_its_card_says(name: str, tmp_path: Path) -> None:
    made = module(small(name), number=-1)
    save_model(tmp_path / "model", made.nets.model, card_of(made))
    model = Model(*load_model(tmp_path / "model"))
    label = torch.arange(7) % 3
    if model.card.encodes:
        with pytest.raises(ValueError, match="this model is an encoder"):
            model.sample(label)
        return
    w = 0.5 if made.nets.guidance or model.card.sampling.guidance == "two_evaluations" else 1.0
    sampling = made.phase.sampling
    x = sample(
        sampling.guided(made.nets.model.eval(), NULL),
        starting_noise(5, 0, 7, (2,)),
        schedule=SCHEDULE,
        times=sampling.grid(None if sampling.times else 64),
        label=label,
        w=torch.full((7,), w),
        sampler=SAMPLERS[sampling.sampler],
        fresh=fresh_noise(5, 0, 7, (2,)),
    ).clamp(-1.5, 1.5)
    torch.testing.assert_close(model.sample(label, w=w, seed=5), x, rtol=1e-6, atol=1e-6)
