"""One-step super-resolution: FluxSR's identity, the optimum that is known, the judge, and what holds of every method.

These methods have degraded images as conditions, which the networks of small_methods.py do not take.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_methods import PLAN, SCHEDULE, at_step, fit, weights_of
from torch import Tensor, nn

from fewstep.artifacts.model_file import load_model, save_model
from fewstep.data.batch import Batch, Pairs
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts, DegradedFacts
from fewstep.diffusion.prediction import Prediction, diffuse
from fewstep.diffusion.rectified import between, log_snr_at, placed, rectified_time, velocity
from fewstep.diffusion.sampler import SAMPLERS, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import alpha, expand, sigma
from fewstep.distributed import collectives
from fewstep.inference.model import Model
from fewstep.methods import FlowTrajectory, Method, Networks, NoiseAwareJudge, Teacher, Training, draws
from fewstep.methods.draws import Draws
from fewstep.methods.flow_trajectory import flow_trajectory_error, start_of
from fewstep.methods.losses import Loss
from fewstep.networks import Denoiser, Frozen, network_class
from fewstep.system.validation import build
from fewstep.training.module import DistillationModule

SHAPE = (3, 8, 8)
FACTS = DataFacts("patches_sr", SHAPE, 0, low=-1.0, high=1.0, degraded=DegradedFacts(2))
START = 0.25
RESTORING: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "flow_trajectory": (
        FlowTrajectory,
        {"start": START, "share_at_start": 0.5, "num_pairs": 64, "teacher_steps": 2},
    ),
    "noise_aware_judge": (NoiseAwareJudge, {"start": START, "gan_weight": 0.1}),
}
EACH = pytest.mark.parametrize("name", RESTORING)


def method(name: str, images: int = 320, **changes: Any) -> Method:
    roles = {"critic": {"learning_rate": 2e-3}} if name == "noise_aware_judge" else {}
    training = build(Training, PLAN | {"images": images, "batch_size": 16, "roles": roles}, "stage.training")
    kind, settings = RESTORING[name]
    return build(kind, {"name": name, "training": training, **settings, **changes}, "stage")


def network(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    unet = network_class("UNet")(
        shape=SHAPE,
        num_classes=0,
        image_condition=True,
        channels=[8, 8],
        num_blocks=1,
        attention=[False, False],
        head_dim=8,
        norm_groups=4,
        guidance_dim=8,
    )
    return Denoiser(unet)


def module(own: Method) -> DistillationModule:
    nets = own.networks(Networks(network(), Frozen(network()), SCHEDULE, own.guidance(None)), "0/small")
    phase = own.phases()[0]
    return DistillationModule(method=own, phase=phase, nets=nets, training=own.training, stream="0/small")


class Degraded(Data):
    """Noise as originals, and more of it on top as conditions; pairs where the method needs them."""

    def __init__(self, own: Method, count: int = 16) -> None:
        super().__init__(batch_size=count, stream="0")
        self.facts, self.of_pairs = FACTS, own.inputs == "pairs"

    def batch(self, step: int) -> Batch:
        x, e = torch.randn(2, self.batch_size, *SHAPE, generator=torch.Generator().manual_seed(step)) * 0.4
        return Batch(x, x + e)

    def rows(self, step: int) -> Batch | Pairs:
        x, label = self.batch(step)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step + 1000))
        given = Pairs(x, label, noise, torch.zeros(len(x))) if self.of_pairs else Batch(x, label)
        return given._make(map(collectives.local_rows, given))

    def reference(self) -> Batch:
        return self.batch(0)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Straight paths in a variance-preserving diffusion --------------------------------------------------------------------


@pytest.mark.usefixtures("double", "unchecked")
def test_a_straight_path_is_the_diffusion_at_its_own_times() -> None:
    time = torch.linspace(0.05, 0.95, 7)
    log_snr = log_snr_at(time)
    torch.testing.assert_close(rectified_time(log_snr), time)
    x, eps = torch.randn(2, 7, *SHAPE)
    noised = diffuse(x=x, eps=eps, log_snr=log_snr)
    point = (1 - expand(time, x)) * x + expand(time, x) * eps
    torch.testing.assert_close(placed(point, log_snr), noised.z)
    torch.testing.assert_close(velocity(noised), eps - x)
    u = torch.randn_like(x)
    read = with_velocity(u, z=noised.z, log_snr=log_snr)
    torch.testing.assert_close(velocity(read), u)
    torch.testing.assert_close(read.x, point - expand(time, x) * u)


@pytest.mark.usefixtures("double", "unchecked")
def test_the_loss_is_fluxsrs_own_form_whatever_the_noise() -> None:
    start, (low, x, eps, u) = 0.3, torch.randn(4, 5, *SHAPE)
    implied = ((eps - x) - start * u) / (1 - start)
    expected = (implied - (eps - low) / (1 - start)).square().flatten(1).mean(1)
    weighted = (start / (1 - start)) ** 2 * (u - (low - x) / start).square().flatten(1).mean(1)
    found = flow_trajectory_error(u, low=low, x=x, start=start)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, weighted)
    ends = [between(low, eps, time=torch.full((5,), time), start=start) for time in (start, 1.0)]
    torch.testing.assert_close(ends[0], low)
    torch.testing.assert_close(ends[1], eps)


def with_velocity(u: Tensor, *, z: Tensor, log_snr: Tensor) -> Prediction:
    """The prediction at z whose velocity is u."""
    a, s = (expand(f(log_snr), z) for f in (alpha, sigma))
    return Prediction(z=z, v=(u - (s - a) * z) / (a + s), log_snr=log_snr)


class Constant(nn.Module):
    """Stands where a denoiser has its network."""

    def __init__(self, u: Tensor) -> None:
        super().__init__()
        self.arguments = {"guidance_input": False, "num_classes": 0, "shape": [*SHAPE]}
        self.u = nn.Parameter(u)


class Straight(Denoiser):
    """A denoiser of one velocity everywhere."""

    def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
        return with_velocity(self.network.get_parameter("u").expand_as(z), z=z, log_snr=log_snr)


@pytest.mark.usefixtures("double", "unchecked")
def test_where_the_degradation_is_known_the_optimum_is_and_one_step_restores() -> None:
    """z_L = x + e: the loss of u = e / T_L is none, at all times, and its gradient elsewhere leads there."""
    own, e = method("flow_trajectory"), 0.3 * torch.randn(SHAPE)
    start = start_of(SCHEDULE, START)
    x, noise = torch.randn(2, 16, *SHAPE)
    pairs = Pairs(x, x + e, noise, torch.zeros(16))

    def loss_of(u: Tensor) -> Tensor:
        nets = Networks(student := Straight(Constant(u)), None, SCHEDULE, None)
        found = own.losses(pairs, nets, Draws.begin(x, "0", 3), step=3, phase=own.phases()[0])["student"].error.mean()
        found.backward()
        gradient = student.network.get_parameter("u").grad
        assert gradient is not None
        return torch.stack([found.detach(), (gradient * (u - e / start)).sum()])

    assert float(loss_of(e / start)[0]) < 1e-20
    error, towards = loss_of(torch.zeros(SHAPE)).tolist()
    assert error == pytest.approx((start / (1 - start)) ** 2 * float((e / start).square().mean()))
    assert towards == pytest.approx(2 * error)  # of a square
    restored = sample(
        Frozen(Straight(Constant(e / start))),
        torch.full_like(x, torch.nan),  # which a step from the image does not look at
        schedule=SCHEDULE,
        times=own.phases()[0].sampling.grid(),
        label=x + e,
        w=None,
        sampler=SAMPLERS["restore"],
    )
    torch.testing.assert_close(restored, x)


@pytest.mark.usefixtures("unchecked")
def test_at_the_start_the_loss_is_the_squared_error_of_what_is_sampled() -> None:
    own = method("flow_trajectory", share_at_start=1.0)
    made, batch = module(own), cast(Pairs, Degraded(own).rows(0))
    found = own.losses(batch, made.nets, Draws.begin(batch.x, "0", 0), step=0, phase=made.phase)["student"]
    torch.testing.assert_close(found.t, torch.full((16,), START, dtype=torch.float64))
    x = sample(
        made.nets.student,
        batch.noise,
        schedule=SCHEDULE,
        times=torch.tensor([START]),
        label=batch.label,
        w=None,
        sampler=SAMPLERS["restore"],
    )
    expected = (x - batch.x).square().flatten(1).mean(1) / (1 - start_of(SCHEDULE, START)) ** 2
    torch.testing.assert_close(found.error, expected)
    later = method("flow_trajectory", share_at_start=0.0)
    t = later.losses(batch, made.nets, Draws.begin(batch.x, "0", 0), step=0, phase=made.phase)["student"].t
    assert START < float(t.min()) < 0.6 < 0.8 < float(t.max()) < 1


# The judge ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_a_judge_that_cannot_tell_costs_log_two_for_each_side() -> None:
    own = method("noise_aware_judge", gan_weight=0.25)
    made, batch = module(own), cast(Batch, Degraded(own).rows(0))
    head = made.nets.trained["critic"].get_submodule("head.heads.0.2")
    with torch.no_grad():
        for weight in head.parameters():
            weight.zero_()
    found = own.losses(batch, made.nets, Draws.begin(batch.x, "0", 0), step=0, phase=made.phase)
    torch.testing.assert_close(found["critic"].error, torch.full((16,), 2 * log(2)))
    log_snr = SCHEDULE.log_snr(torch.full((16,), START, dtype=torch.float64))
    x = made.nets.student(placed(batch.label, log_snr), log_snr, batch.label).x
    torch.testing.assert_close(found["student"].error, (x - batch.x).square().flatten(1).mean(1) + 0.25 * log(2))


@pytest.mark.usefixtures("unchecked")
def test_a_critic_that_likes_white_pulls_the_student_there() -> None:
    """The gradient reaches the student through noise and the critic's network: the brighter the better."""
    own = method("noise_aware_judge", gan_weight=1.0)
    made, batch = module(own), cast(Batch, Degraded(own).rows(0))

    class LikesWhite(nn.Module):
        def forward(self, noised: Prediction, label: Tensor) -> Tensor:
            return noised.z.flatten(1).mean(1)

    nets = replace(made.nets, trained={"critic": LikesWhite()})
    log_snr = SCHEDULE.log_snr(torch.full((16,), START, dtype=torch.float64))
    bias, gradients = made.student.network.get_parameter("unet.conv_out.bias"), []
    judged = own.losses(batch, nets, Draws.begin(batch.x, "0", 0), step=0, phase=made.phase)["student"].error
    x = made.nets.student(placed(batch.label, log_snr), log_snr, batch.label).x
    for error in (judged, (x - batch.x).square()):
        made.student.zero_grad()
        error.mean().backward()
        assert bias.grad is not None
        gradients.append(bias.grad.clone())
    assert bool((gradients[0] - gradients[1] > 1e-3).all())  # v falls, so that x = alpha z - sigma v rises


# What holds of every method -------------------------------------------------------------------------------------------


@EACH
def test_gradients_reach_all_that_moves_and_losses_are_one_number_an_example(name: str) -> None:
    made = module(method(name))
    with torch.no_grad():
        for weight in [*made.student.parameters(), *made.trained.parameters()]:
            weight.add_(0.1)
    with at_step(0):
        made.training_step(Degraded(made.method).rows(0), 0).backward()
    for role, weights in made.weights.items():
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        assert any(bool(each.any()) for each in gradients), role
        missing = [key for key, weight in named_weights(made, role) if weight.grad is None]
        # A critic stops in the middle of its network, and a student without guidance has no w.
        assert all(".up_blocks." in key or "conv_norm_out" in key or "conv_out" in key for key in missing), missing
        assert role == "critic" or not missing
    found = made.losses_at(0, Degraded(made.method).rows(0))
    assert tuple(found) == made.method.roles
    for each in found.values():
        assert each.error.shape == each.t.shape == (16,)
        assert bool(((each.t >= 0) & (each.t <= 1)).all())


def named_weights(made: DistillationModule, role: str) -> Iterator[tuple[str, nn.Parameter]]:
    return (made.student if role == "student" else made.trained[role]).named_parameters()


@EACH
def test_two_processes_have_the_losses_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(method(name))

    def found() -> dict[str, Loss]:
        rows = Degraded(made.method).rows(1)
        return dict(made.method.losses(rows, made.nets, Draws.begin(rows.x, "s", 1), step=1, phase=made.phase))

    alone, shares = found(), []
    for place in (collectives, draws):
        monkeypatch.setattr(place, "world_size", lambda: 2)
    for rank in (0, 1):
        for place in (collectives, draws):
            monkeypatch.setattr(place, "rank", lambda rank=rank: rank)
        shares.append(found())
    for role, own in alone.items():
        for field in ("error", "t"):
            joined = torch.cat([getattr(share[role], field) for share in shares])
            torch.testing.assert_close(joined, getattr(own, field), rtol=1e-4, atol=1e-6)


@EACH
def test_an_interrupted_training_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole, first, second = (module(method(name, images=64)) for _ in range(3))
    fit(whole, data=Degraded(whole.method))
    fit(first, data=Degraded(first.method), max_steps=2).save_checkpoint(tmp_path / "half.ckpt")
    halfway = dict(weights_of(first))
    fit(second, data=Degraded(second.method), resume=str(tmp_path / "half.ckpt"))
    expected, found = dict(weights_of(whole)), dict(weights_of(second))
    assert (whole.global_step, found.keys()) == (4, expected.keys())
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert any(not torch.equal(halfway[key], value) for key, value in expected.items())


@EACH
def test_a_file_says_that_its_model_begins_at_the_image(name: str, tmp_path: Path) -> None:
    from fewstep.runs import train

    made = module(method(name))
    job = SimpleNamespace(settings=SimpleNamespace(name=name), method=made.method, facts=FACTS)
    save_model(tmp_path / "model", made.nets.model, card := train.card_of(cast(Any, job), made, None, ()))
    model = Model(*load_model(tmp_path / "model"))
    assert model.card == card
    assert (card.sampling, card.label) == (Sampling("restore", (START,), "none"), name)
    low = Degraded(made.method).batch(0).label
    assert torch.equal(model.sample(low, seed=0), model.sample(low, seed=1))
    log_snr = SCHEDULE.log_snr(torch.full((16,), START, dtype=torch.float64))
    expected = made.nets.model.eval()(placed(low, log_snr), log_snr, low).x.clamp(-1, 1)
    torch.testing.assert_close(model.sample(low), expected)
    for wanted in ([0, 1], ["a cat"], low[:, :, :4]):
        with pytest.raises(ValueError, match="takes degraded images"):
            model.sample(wanted)
    with pytest.raises(ValueError, match="must be that of the model"):
        model.sample(low, sampler="deterministic")


def test_a_teacher_that_drops_no_condition_is_sampled_without_guidance() -> None:
    training = build(Training, PLAN, "stage.training")
    kinds = [Teacher(name="teacher", training=training, label_dropout=d).phases()[0].sampling for d in (0.0, 0.1)]
    assert [each.guidance for each in kinds] == ["none", "two_evaluations"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flow_trajectory", {"start": 1.0}, "stage.start must be a time between 0 and 1, got 1"),
        ("flow_trajectory", {"share_at_start": 1.5}, r"stage.share_at_start must be a number from 0 to 1, got 1.5"),
        ("flow_trajectory", {"num_pairs": 0}, "stage.num_pairs must be a whole number of at least 1, got 0"),
        ("noise_aware_judge", {"start": 0.0}, "stage.start must be a time between 0 and 1, got 0"),
        ("noise_aware_judge", {"gan_weight": 0.0}, "stage.gan_weight must be a number above 0"),
    ],
)
def test_bad_settings_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, **changes)
