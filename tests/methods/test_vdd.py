"""VDD and its baseline as methods: what a fit of each comes to, the order of their steps, and what is refused."""

from typing import Any

import pytest
import torch
from small_methods import ROLES, SCHEDULE, fit, module, network, small
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.experts import Experts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.sampler import SAMPLERS, sample
from fewstep.methods import GuidanceRange
from fewstep.system.seeds import seed_for

STD, SIGMA = 0.2, 0.1
BLURRED = (STD**2 + SIGMA**2) ** 0.5
LABEL = torch.arange(3)


def exact() -> GaussianMixture:
    """Two modes a class, at (-0.6, y) with weight 0.3 and at (0.6, y) with 0.7, where y tells the class."""
    y = torch.tensor([-0.5, 0.0, 0.5]).double().repeat(2)
    means = torch.stack([torch.tensor([-0.6] * 3 + [0.6] * 3).double(), y], dim=1)
    weights = torch.tensor([0.3] * 3 + [0.7] * 3).double() / 3
    return GaussianMixture(means, torch.full_like(means, STD), weights, torch.arange(3).repeat(2))


class Samples(Data):
    """Of `exact`."""

    facts = DataFacts(name="mixture", shape=(2,), num_classes=3, low=-1.5, high=1.5)

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_for(self.stream, step))
        label = torch.randint(3, (self.batch_size,), generator=generator)
        return Batch(exact().draw(label, generator).float(), label)

    def reference(self) -> Batch:
        return self.batch(0)


def fitted(name: str, **changes: Any) -> tuple[Experts, Any]:
    """The mixture of each class after a short fit from the exact teacher, or on data, and the module."""
    plan = {"images": 64 * 400, "batch_size": 64, "learning_rate": 1e-2, "roles": {"gates": {"learning_rate": 1e-2}}}
    method = small(name, plan | ({} if name == "vdd" else {"roles": {}}), **{"experts": 2, "width": 16} | changes)
    teacher = exact().denoise if name == "vdd" else None
    made = module(method, network(), teacher, parent=GuidanceRange(0.0, 0.0))
    fit(made, data=Samples(batch_size=64, stream="samples"))
    with torch.no_grad():
        return made.nets.model.mixture(torch.zeros(3, 2), LABEL, torch.zeros(3)), made


def ordered(experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
    """Means, deviations and gates, the expert of the smaller x first."""
    order = experts.means[..., 0].argsort(1)
    each = torch.arange(3)[:, None]
    covariances = experts.factors @ experts.factors.mT
    stds = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
    return experts.means[each, order], stds[each, order], experts.log_gates.exp()[each, order]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "std"), [("vdd", BLURRED), ("em_mixture", STD)])
def test_a_fit_finds_modes_and_their_shares_in_every_class(name: str, std: float) -> None:
    """The experts of VDD are blurred by sigma, as its teacher's score is; those of maximum likelihood are not."""
    experts, made = fitted(name)
    means, stds, gates = ordered(experts)
    expected = exact().means.view(2, 3, 2).movedim(0, 1).float()
    torch.testing.assert_close(means, expected, rtol=0, atol=0.08)
    torch.testing.assert_close(stds, torch.full_like(stds, std), rtol=0.15, atol=0)
    torch.testing.assert_close(gates, torch.tensor([0.3, 0.7]).expand(3, 2), rtol=0, atol=0.08)
    x = sample(
        made.nets.model,
        torch.randn(600, 2, generator=torch.Generator().manual_seed(0)),
        schedule=SCHEDULE,
        times=made.phase.sampling.grid(),
        label=torch.zeros(600, dtype=torch.long),
        w=torch.zeros(600),
        sampler=SAMPLERS["policy"],
    )
    assert float((x[:, 0] > 0).double().mean()) == pytest.approx(float(gates[0, 1]), abs=0.06)


def test_gates_move_after_so_many_steps_of_the_experts() -> None:
    method = small("vdd", expert_updates=3)
    assert [method.moving(step)[0] for step in range(8)] == [*["student"] * 3, "gates"] * 2
    made = module(method)
    gates = {id(weight) for weight in made.student.network.get_submodule("gates").parameters()}
    assert {id(weight) for weight in made.weights["gates"]} == gates
    assert not gates & {id(weight) for weight in made.weights["student"]}


@pytest.mark.parametrize("averaged", [0.0, 0.5])
def test_the_model_has_the_gates_that_were_trained(averaged: float) -> None:
    made = module(small("vdd", {"images": 32 * 6, "ema_decay": averaged, "roles": ROLES}))
    fit(made)
    gates = made.nets.model.network.get_submodule("gates")
    trained = made.trained["gates"]
    different = [not torch.equal(a, b) for a, b in zip(gates.parameters(), trained.parameters(), strict=True)]
    assert any(different) == bool(averaged)
    assert any(bool(weight.any()) for weight in gates.get_submodule("outward").parameters() if weight.ndim > 1)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("vdd", {"experts": 0}, "stage.experts must be a whole number of at least 1, got 0"),
        ("em_mixture", {"width": 7}, "stage.width must be even and at least 4, got 7"),
        ("vdd", {"samples": 0}, "stage.samples must be a whole number of at least 1, got 0"),
        ("vdd", {"sigma": [0.2, 0.1]}, "stage.sigma must be two levels"),
        ("vdd", {"sigma": [0.0, 0.1]}, "stage.sigma must be two levels"),
        ("vdd", {"spread": -1.0}, "stage.spread must be a number of at least 0, got -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(name, **changes)


def test_gates_need_a_learning_rate() -> None:
    with pytest.raises(ValueError, match=r"stage\.training\.roles\.gates\.learning_rate must be given"):
        small("vdd", {"roles": {}})
