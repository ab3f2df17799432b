"""What went wrong elsewhere, or nearly here: each with a test that fails where it does."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from small_methods import (
    FACTS,
    NULL,
    SCHEDULE,
    SMALL,
    at_step,
    batch_for,
    data_for,
    fit,
    module,
    network,
    small,
    trainer_settings,
    weights_of,
)
from torch import Tensor

from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.data.facts import DataFacts, TextFacts
from fewstep.data.noise import NoiseData
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampling import GuidanceKind, Sampling
from fewstep.diffusion.schedule import network_time
from fewstep.distributed.collectives import process_group
from fewstep.inference.model import Model
from fewstep.methods import Method
from fewstep.networks import Denoiser, Frozen
from fewstep.system.seeds import starting_noise
from fewstep.system.validation import build
from fewstep.training import loop, strategy
from fewstep.training.settings import TrainerSettings

EACH = pytest.mark.parametrize("name", SMALL)


def model_of(denoiser: Denoiser, sampling: Sampling, folder: Path, *, method: str = "own") -> Model:
    """A model whose file says that it is sampled so."""
    has_w = sampling.guidance == "input"
    card = ModelCard(
        method=method,
        data=FACTS,
        prediction="v",
        schedule=SCHEDULE,
        sampling=sampling,
        images=1,
        parents=(),
        w_min=0.0 if has_w else None,
        w_max=4.0 if has_w else None,
    )
    save_model(folder / "model", denoiser, card)
    return Model(*load_model(folder / "model"))


# Guidance is a field --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guidance", "calls"), [("none", 1), ("input", 1), ("two_evaluations", 2)])
def test_a_models_evaluations_are_what_its_guidance_says(guidance: GuidanceKind, calls: int, tmp_path: Path) -> None:
    """A student without w and without guidance is one evaluation, not the two of a model that has no w input."""
    sampling = Sampling(sampler="renoise", times=(1.0, 0.5), guidance=guidance)
    model = model_of(network(guidance_input=guidance == "input"), sampling, tmp_path)
    label = torch.arange(6) % 3
    model.sample(label, w=1.0)
    assert model.denoiser.evaluated == 2 * 6 * calls
    assert model.evaluations_per_step == calls
    assert isinstance(model.denoise, Guided) == (guidance == "two_evaluations")
    same = torch.equal(model.sample(label, w=0.0), model.sample(label, w=3.0))
    assert same == (guidance == "none")


def test_a_student_of_no_teacher_samples_its_conditional_prediction(tmp_path: Path) -> None:
    denoiser = network()
    model = model_of(denoiser, Sampling(sampler="renoise", times=(1.0,), guidance="none"), tmp_path)
    z, label = starting_noise(0, 0, 6, (2,)), torch.arange(6) % 3
    expected = denoiser(z, SCHEDULE.log_snr(torch.ones(6)), label).x.clamp(-1.5, 1.5)
    torch.testing.assert_close(model.sample(label, w=2.0), expected.detach())
    assert model.card.label == "own"


# Times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "steps", "expected"),
    [
        (Sampling(sampler="renoise", times=(1.0, 0.7, 0.3, 0.1), guidance="none"), None, [1.0, 0.7, 0.3, 0.1]),
        (Sampling(sampler="renoise", times=(1.0, 0.7, 0.3, 0.1), guidance="none"), 2, [1.0, 0.3]),
        (Sampling(sampler="renoise", times=(1.0, 0.7, 0.3, 0.1), guidance="none"), 1, [1.0]),
        (Sampling(times=(1.0, 0.9), guidance="none"), None, [1.0, 0.9]),
        (Sampling(guidance="none"), 4, [1.0, 0.75, 0.5, 0.25]),
    ],
)
def test_a_model_is_evaluated_at_its_own_times(
    sampling: Sampling, steps: int | None, expected: list[float], tmp_path: Path
) -> None:
    model, seen = model_of(network(), sampling, tmp_path), []
    model.denoiser.network.register_forward_hook(lambda network, given, output: seen.append(given[1]))
    model.sample(torch.arange(3), steps=steps)
    times = network_time(SCHEDULE.log_snr(torch.tensor(expected, dtype=torch.float64)))
    torch.testing.assert_close(torch.stack([each[0] for each in seen]), times.float())


# One optimiser step a batch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dmd2", "dmd2 with critic", "guidance with features"])
def test_several_roles_are_one_step_a_batch_with_clipping_and_averages(name: str) -> None:
    """As not under manual optimisation, where each optimiser's step counts and no hook is called."""
    roles = {role: {"learning_rate": 2e-3, "gradient_clip": 1e-3} for role in ("fake", "critic", "projection")}
    made = module(small(name, {"images": 7 * 32, "roles": roles, "gradient_clip": 1e-3}))
    with torch.no_grad():
        for weight in made.trained.parameters():
            weight.add_(0.1)
    before, norms = dict(weights_of(made)), []
    clip = type(made).configure_gradient_clipping

    def spy(self: Any, *given: Any, **named: Any) -> None:
        clip(self, *given, **named)
        step = self.global_step
        for role in self.method.moving(step):
            gradients = [weight.grad for weight in self.weights[role] if weight.grad is not None]
            norms.append((step, role, float(torch.nn.utils.get_total_norm(gradients))))

    with patch.object(type(made), "configure_gradient_clipping", spy):
        trainer = fit(made)
    assert trainer.global_step == 7
    assert made.student_updates == sum("student" in made.method.moving(step) for step in range(7))
    assert [(step, role) for step, role, _ in norms] == [(s, r) for s in range(7) for r in made.method.moving(s)]
    assert all(norm <= 1e-3 * (1 + 1e-4) for *_, norm in norms)
    after = dict(weights_of(made))
    averaged = [key for key in after if key.startswith("averages.model.")]
    assert averaged
    assert any(not torch.equal(before[key], after[key]) for key in averaged)


def test_the_norm_that_is_logged_of_a_role_that_rests_is_in_the_checkpoint() -> None:
    """The student of this method moves in steps 2, 5, ...; after 4 it rests, and rows show the norm of step 2."""
    made, other, saved = module(small("dmd2")), module(small("dmd2")), {}
    fit(made, max_steps=4)
    made.on_save_checkpoint(saved)
    other.on_load_checkpoint(saved)
    norms = {role: float(norm) for role, norm in made.gradient_norms.items()}
    assert norms["student"] > 0
    assert {role: float(norm) for role, norm in other.gradient_norms.items()} == norms


def test_a_role_that_rests_keeps_its_weights_and_its_optimisers_state() -> None:
    made = module(small("dmd2", {"images": 5 * 32}))
    with torch.no_grad():
        for weight in made.trained.parameters():
            weight.add_(0.1)
    kept: list[tuple[dict[str, Tensor], dict[str, Tensor], int]] = []

    def watch(self: Any, *given: Any) -> None:
        student = next(self.student.parameters())
        state = self.optimizers(use_pl_optimizer=False).state[student]
        number = int(state["step"]) if state else 0
        kept.append((dict(weights_of(self.student)), dict(weights_of(self.averages)), number))

    with patch.object(type(made), "on_train_batch_end", watch):
        fit(made)

    def changed(part: int) -> list[int]:
        """The steps in which the student (0) or its averages (1) changed."""
        pairs = {step: (kept[step - 1][part], kept[step][part]) for step in range(1, 5)}
        return [step for step, (old, new) in pairs.items() if any(not torch.equal(new[key], old[key]) for key in old)]

    assert changed(0) == changed(1) == [2]  # fake_updates=3: the student moves in steps 2 and 5
    assert [number for *_, number in kept] == [0, 0, 1, 1, 1]


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several_roles", [False, True])
def test_ddp_looks_for_unused_weights_exactly_where_roles_take_turns(several_roles: bool) -> None:
    with patch.object(strategy, "world_size", lambda: 2):
        made = strategy.build_strategy(trainer_settings(), several_roles=several_roles)
    assert isinstance(made, strategy.DDPStrategy)
    assert made._ddp_kwargs["find_unused_parameters"] is several_roles
    assert made._ddp_kwargs["broadcast_buffers"] is False


@EACH
def test_the_loop_says_whether_a_method_has_several_roles(name: str, tmp_path: Path) -> None:
    made, given = module(small(name)), []

    def spy(settings: TrainerSettings, *, several_roles: bool) -> str:
        given.append(several_roles)
        return "auto"

    with patch.object(loop, "build_strategy", spy):
        loop.build_trainer(made, tmp_path, trainer_settings(), "0", [], [], 0)
    assert given == [len(made.method.roles) > 1]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def train_in_processes(name: str, count: int, folder: Path) -> dict[str, Tensor]:
    """The weights after a fit in so many processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_methods", "fewstep.training.strategy"])
    port, folder = free_port(), folder / str(count)
    folder.mkdir()
    processes = [context.Process(target=one_process, args=(name, rank, count, port, folder)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count
    states = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]
    assert all(torch.equal(state[key], value) for state in states for key, value in states[0].items())
    return states[0]


def one_process(name: str, rank: int, count: int, port: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with process_group("cpu"):
        made = apart(name)
        trainer, *_ = loop.build_trainer(made, folder / f"run {rank}", trainer_settings(), "0", [], [], 0)
        trainer.fit(made, data_for(made))
        torch.save(made.state_dict(), folder / f"{rank}.pt")


def apart(name: str) -> Any:
    """A module that clips, and whose roles do not begin as copies of each other."""
    roles = {role: {"learning_rate": 2e-3, "gradient_clip": 0.5} for role in ("fake", "critic", "projection")}
    made = module(small(name, {"images": 8 * 32, "roles": roles, "gradient_clip": 0.2}))
    with torch.no_grad():
        for weight in made.trained.parameters():
            weight.add_(0.1)
    return made


@pytest.mark.parametrize("name", ["dmd2", "dmd2 with critic"])
def test_what_is_trained_asks_for_gradients_from_the_start(name: str) -> None:
    """DDP leaves out what asks for none when it is set up, and copies of a frozen parent do not."""
    frozen = network(guidance_input=True).requires_grad_(False)
    made = module(small(name), frozen, Frozen(network(guidance_input=True)))
    assert len(made.weights) > 1
    assert all(weight.requires_grad for weights in made.weights.values() for weight in weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tract", "dmd2", "dmd2 with critic", "guidance with features"])
def test_two_processes_learn_what_one_does(name: str, tmp_path: Path) -> None:
    """DDP with roles that rest in some steps: 8 steps, of which the student of DMD2 moves in 2."""
    alone, both = (train_in_processes(name, count, tmp_path) for count in (1, 2))
    start = apart(name).state_dict()
    assert alone.keys() == both.keys() == start.keys()
    for key, value in alone.items():
        torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(start[key], value) for key, value in alone.items() if key.startswith("student."))


# Without data ---------------------------------------------------------------------------------------------------------


def test_a_batch_without_data_has_noise_and_classes_of_what_the_model_makes() -> None:
    facts = DataFacts(name="own", shape=(3, 4, 4), num_classes=5, low=-1.0, high=1.0)
    data = NoiseData(facts, batch_size=500, stream="0/dmd2")
    x, label = data.batch(0)
    assert x.shape == (500, 3, 4, 4)
    assert float(x.mean().abs()) < 0.02
    assert float(x.std()) == pytest.approx(1, abs=0.02)
    assert int(label.bincount().min()) > 60
    assert set(label.tolist()) == set(range(5))
    again, other = data.batch(0), data.batch(1)
    assert torch.equal(again.x, x)
    assert torch.equal(again.label, label)
    assert not torch.equal(other.x, x)
    assert not torch.equal(other.label, label)
    assert not torch.equal(NoiseData(facts, batch_size=500, stream="1/dmd2").batch(0).x, x)


def test_prompts_are_not_drawn() -> None:
    text = TextFacts(tokens=4, features=8, sha256="ab", encoder="")
    facts = DataFacts(name="words", shape=(3, 4, 4), num_classes=0, low=-1.0, high=1.0, text=text)
    with pytest.raises(ValueError, match="draws classes, and words has prompts") as caught:
        NoiseData(facts, batch_size=4, stream="0")
    assert "\n" not in str(caught.value)


# Settings are what the annotations say --------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("wrong", ["unknown", "type", "nan", "name"])
def test_settings_are_refused_by_their_annotations_in_one_line(name: str, wrong: str) -> None:
    kind, settings = SMALL[name]
    good = {"name": name, "training": small(name).training, **settings}
    first = next(iter(settings))
    number = next((each for each in settings if isinstance(settings[each], float)), first)
    bad, words = {
        "unknown": (good | {"laddr": [2, 1]}, "stage.laddr is no setting; stage has name, training,"),
        "type": (good | {first: {"a": "b"}}, f"stage.{first}"),
        "nan": (good | {number: float("nan")}, f"stage.{number}"),
        "name": (good | {"name": 3}, "stage.name must be text, got 3"),
    }[wrong]
    with pytest.raises(ValueError, match=r"^stage\.") as caught:
        build(kind, bad, "stage")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_of_a_method_is_decided_by_its_name() -> None:
    for name, (kind, settings) in SMALL.items():
        own = build(kind, {"name": "mine", "training": small(name).training, **settings}, "stage")
        assert isinstance(own, Method)
        assert (own.phases(), own.roles, own.inputs) == (small(name).phases(), small(name).roles, small(name).inputs)
        with at_step(0):
            one, other = (module(each).training_step(batch_for(each), 0).detach() for each in (own, small(name)))
        assert torch.equal(one, other)


def test_the_null_label_is_past_the_last_class() -> None:
    assert network().null == NULL
