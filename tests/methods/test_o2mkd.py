"""Several students of one teacher: the error of the best ones of a block, and who evaluates what."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_methods import NUM_CLASSES, SCHEDULE, at_step, batch, fit, module, network, small
from test_all import card_of, everything
from torch import Tensor, nn

from fewstep.artifacts.model_file import load_model, save_model
from fewstep.data.batch import Batch
from fewstep.diffusion.loss import truncated_snr
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import alpha, sigma
from fewstep.export.folder import export
from fewstep.inference.model import Model
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser, Routed
from fewstep.networks.features import LastFeatures, MiddleFeatures
from fewstep.training.module import DistillationModule

STD = 0.7  # of the Gaussian of the closed form
LABEL = torch.zeros(1, dtype=torch.long)


@pytest.fixture
def double() -> Iterator[None]:
    """All random numbers in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def routed(made: DistillationModule) -> Routed:
    inside = made.student.network
    assert isinstance(inside, Routed)
    return inside


def index_at(made: DistillationModule, t: Tensor, label: Tensor = LABEL) -> Tensor:
    """The number of the network that the model evaluates at times."""
    time = made.student.time_input(SCHEDULE.log_snr(t))
    return routed(made).index_of(time, label.expand(len(t)))


# The best students of a block -----------------------------------------------------------------------------------------


def best_slopes(num_networks: int, edges: str = "time") -> tuple[list[float], float]:
    """On N(0, STD^2), of students x = slope * z with one slope a block: the best slopes, and the error that they have.

    The exact denoiser's slope is a = alpha STD^2 / V^2, V^2 = alpha^2 STD^2 + sigma^2 the variance of z, so that a
    student's error is the mean over t of weight (slope - a)^2 V^2.
    """
    made = module(small("o2mkd", num_networks=num_networks, edges=edges))
    t = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    log_snr, number = SCHEDULE.log_snr(t), index_at(made, t)
    signal, noise = alpha(log_snr), sigma(log_snr)
    variance = (signal * STD) ** 2 + noise**2
    slope, weight = signal * STD**2 / variance, truncated_snr(log_snr) / noise**2 * variance
    best = [
        float((weight * slope)[own].sum() / weight[own].sum()) for own in (number == k for k in range(num_networks))
    ]
    return best, float((weight * (torch.tensor(best, dtype=torch.float64)[number] - slope) ** 2).mean())


def test_the_error_falls_by_a_factor_of_four_as_networks_double() -> None:
    """The figures are those of an independent computation (in numpy)."""
    found = [best_slopes(count)[1] for count in (1, 2, 4, 8, 16, 32)]
    assert found == pytest.approx([0.357, 0.0674, 0.0179, 0.0045, 0.0011, 0.00028], rel=0.03)
    assert [a / b for a, b in pairwise(found[1:])] == pytest.approx([4] * 4, rel=0.07)


def test_edges_equally_far_in_log_snr_have_about_twice_that_error() -> None:
    ratios = [best_slopes(count, "log_snr")[1] / best_slopes(count)[1] for count in (4, 8, 16, 32)]
    assert ratios == pytest.approx([2] * 4, rel=0.1)


class Slope(nn.Module):
    """x = slope * z."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None, extra: Any = None) -> Tensor:
        return self.slope * z


@pytest.mark.usefixtures("double", "unchecked")
def test_the_loss_of_the_best_linear_students_is_that_of_the_closed_form() -> None:
    """And a change of any of them, all else the same, makes it larger."""
    zero, one = torch.zeros(1, 2), torch.ones(1)
    exact = GaussianMixture(means=zero, stds=STD + zero, weights=one, classes=torch.tensor([0]))
    method = small("o2mkd", {"weight": "truncated_snr"}, num_networks=4, overlap=0.0, common=0.0)
    made = module(method, network(guidance_input=True, prediction="x"), exact.denoise)
    best, expected = best_slopes(4)
    x = STD * torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    given = Batch(x, torch.zeros(len(x), dtype=torch.long))

    def loss(slopes: list[float]) -> float:
        routed(made).members = nn.ModuleList(Slope(slope) for slope in slopes)
        with torch.no_grad():
            found = method.losses(given, made.nets, Draws.begin(x, "0/o2mkd", 1), step=1, phase=made.phase)
        return float(found["student"].error.mean())

    least = loss(best)
    assert least == pytest.approx(expected, rel=0.02)
    for block in range(4):
        for off in (-0.05, 0.05):
            assert loss([slope + off * (k == block) for k, slope in enumerate(best)]) > least


def test_students_that_are_their_teacher_have_no_error() -> None:
    for name in ("o2mkd", "o2mkd by label"):
        made = module(small(name))
        assert float(made.training_step(batch(), 0).detach()) < 1e-12


# Who evaluates what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", ["time", "log_snr", [0.1, 0.4, 0.9]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_time_is_of_one_network_and_an_edge_of_the_noisier_side(edges: Any, dtype: torch.dtype) -> None:
    made = module(small("o2mkd", num_networks=4, edges=edges))
    log_snrs = torch.cat(made.method.edge_log_snrs(SCHEDULE))  # pyright: ignore[reportAttributeAccessIssue]
    times = SCHEDULE.time(log_snrs)
    if edges != "log_snr":
        assert times.tolist() == pytest.approx([0.25, 0.5, 0.75] if edges == "time" else edges)
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    number = index_at(made, t)
    assert sorted(set(number.tolist())) == [0, 1, 2, 3]
    assert bool((number.diff() >= 0).all())
    assert int((number != torch.bucketize(t, times, right=True)).sum()) <= 3  # t may be an edge, which is rounded
    at_edges = made.student.time_input(log_snrs).to(dtype)
    for shift, expected in ((0.0, [1, 2, 3]), (-1e-6, [0, 1, 2])):
        assert routed(made).index_of(at_edges + shift, LABEL.expand(3)).tolist() == expected


def test_classes_are_of_one_network_each() -> None:
    made = module(small("o2mkd by label", num_networks=3, groups=[[2], [0], [1]]))
    number = index_at(made, torch.rand(4), torch.arange(NUM_CLASSES + 1))
    assert number.tolist() == [1, 2, 0, 0]  # and no class is the first's
    blocks = module(small("o2mkd by label"))
    assert routed(blocks).groups == [[0, 1], [2]]


@pytest.mark.parametrize("name", ["o2mkd", "o2mkd by label"])
@pytest.mark.parametrize("gradient", [True, False])
def test_each_example_is_answered_by_its_own_network(name: str, gradient: bool) -> None:
    made = module(small(name))
    inside, generator = routed(made), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in inside.parameters():
            weight.normal_(0, 0.3, generator=generator)
    z, label = batch(9)
    time, w = torch.rand(9, generator=generator), torch.linspace(0, 4, 9)
    number = inside.index_of(time, label)
    assert set(number.tolist()) == {0, 1}
    with torch.set_grad_enabled(gradient):
        found = inside(z, time, label, w)
        for k, one in enumerate(inside.members):
            torch.testing.assert_close(found[number == k], one(z, time, label, w)[number == k])
        own = number == 1  # and a batch of which one network has nothing
        torch.testing.assert_close(inside(z[own], time[own], label[own], w[own]), found[own])


def test_an_example_costs_one_evaluation_however_many_networks_there_are() -> None:
    made = module(small("o2mkd", num_networks=5))
    before = made.evaluated
    made.training_step(batch(), 0)
    assert made.evaluated - before == 32 * (2 * 0 + 1 + 3)  # the guided student, and one student forward and backward


def test_neighbours_overlap_by_as_much_as_is_said() -> None:
    made = module(small("o2mkd", overlap=0.1, common=0.0))
    inside, seen = routed(made), []
    t = torch.tensor([0.35, 0.45, 0.55, 0.65])
    forward = inside.forward
    inside.forward = lambda *given: (seen.append(index_at(made, t)), forward(*given))[1]  # pyright: ignore
    for step in range(1, 60):
        with at_step(step):
            made.training_step(batch(), step)
    share = torch.stack(seen).float().mean(0).tolist()
    assert (share[0], share[3]) == (0.0, 1.0)
    assert share[1:3] == pytest.approx([0.25, 0.75], abs=0.15)


# One student at first -------------------------------------------------------------------------------------------------


def test_one_student_learns_all_times_before_it_becomes_all(tmp_path: Path) -> None:
    """And a training that is interrupted at the very step goes on as it was."""
    plan = {"images": 320}  # ten steps, of which three are common
    made, again = module(small("o2mkd", plan)), module(small("o2mkd", plan))
    for each in (made, again):
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in each.student.parameters():
                weight.add_(0.1)

    def weights(of: DistillationModule) -> list[Tensor]:
        return [nn.utils.parameters_to_vector(one.parameters()).detach().clone() for one in routed(of).members]

    before = weights(made)
    fit(made, max_steps=3).save_checkpoint(tmp_path / "three.ckpt")
    first, second = weights(made)
    assert not torch.equal(first, before[0])
    assert torch.equal(second, before[1])
    with at_step(3):
        made.training_step(batch(), 3)
    assert torch.equal(*weights(made))
    averages = made.nets.model.network
    assert isinstance(averages, Routed)
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in averages.members), strict=True))

    whole = module(small("o2mkd", plan))
    with torch.no_grad():
        for weight in whole.student.parameters():
            weight.add_(0.1)
    fit(whole)
    fit(again, resume=str(tmp_path / "three.ckpt"))
    assert not torch.equal(*weights(whole))
    expected, found = everything(whole), everything(again)
    assert all(torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)) for key, value in expected.items())


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["o2mkd", "o2mkd by label"])
def test_a_saved_model_samples_to_the_same_bits(name: str, tmp_path: Path) -> None:
    made = module(small(name, {"ema_decay": 0.0}))
    with torch.no_grad():
        for weight in made.student.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    path, card, label = tmp_path / "model.safetensors", card_of(made), torch.arange(7) % NUM_CLASSES
    save_model(path, made.nets.model, card)
    loaded, ours = Model(*load_model(path)), Model(made.nets.model.eval(), card)
    assert type(loaded.denoiser.network) is Routed
    for steps in (1, 4, 8):
        assert torch.equal(loaded.sample(label, w=1.0, steps=steps), ours.sample(label, w=1.0, steps=steps))
    for format in ("onnx", "diffusers"):
        with pytest.raises(ValueError, match="open in fewstep alone; use --format safetensors"):
            export(path, tmp_path / format, format=format)
    for kind in (MiddleFeatures, LastFeatures):
        with pytest.raises(ValueError, match="features must be of one network"):
            kind(loaded.denoiser)
    with pytest.raises(ValueError, match="must be a single one"):
        module(small("o2mkd"), loaded.denoiser, loaded.denoiser)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_networks": 0}, "stage.num_networks must be a whole number of at least 1"),
        ({"num_networks": 4, "edges": [0.3, 0.7]}, "one more than stage.edges"),
        ({"num_networks": 3, "edges": [0.7, 0.3]}, "rise from above 0 to below 1"),
        ({"num_networks": 3, "edges": [0.5, 0.5]}, "so that none is without times"),
        ({"num_networks": 2, "edges": [0.0]}, "rise from above 0"),
        ({"overlap": 1.5}, "must be a number of at least 0 and below 1"),
        ({"common": 1.0}, "must be a number of at least 0 and below 1"),
        ({"groups": [[0], [1, 2]]}, "with stage.split=label"),
        ({"split": "label", "edges": "log_snr"}, "with stage.split=time"),
        ({"adapter": "lora"}, "there are several here"),
        ({"split": "label", "groups": [[0, 1]]}, "that of stage.groups"),
    ],
)
def test_settings_that_leave_a_network_without_anything_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small("o2mkd", **changes)


@pytest.mark.parametrize("groups", [[[0, 1], []], [[0], [1]], [[0, 1], [1, 2]], [[0, 1], [2, 3]]])
def test_groups_that_are_no_partition_of_the_classes_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="must be of one of several networks"):
        module(small("o2mkd by label", groups=groups))


def test_more_networks_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="and each network have some"):
        module(small("o2mkd by label", num_networks=NUM_CLASSES + 1))


def test_classes_of_prompts_are_refused() -> None:
    student = network(guidance_input=True)
    student.network.empty_prompt = torch.zeros(2, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="this student takes prompts"):
        small("o2mkd by label").classes(student)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(student, Denoiser)
