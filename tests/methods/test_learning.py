"""Few-step students of the exact guided teacher get better than the model they start as, by a stated factor.

The mixture of three classes; w in [0, 2] is an input. The error is the distance to where the probability flow of the
guided teacher takes the same noise; of DMD2, which follows no trajectory, the distance of the distributions at w = 0.
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from small_methods import NULL, SCHEDULE, fit, module, small
from test_reflow import straightness
from torch import Tensor

from fewstep.data.batches import Data
from fewstep.data.mixture import MixtureData
from fewstep.data.pairs import PairData, PairStore
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.sampler import SAMPLERS, integrate, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import uniform_times
from fewstep.methods import GuidanceRange
from fewstep.networks import Denoiser, ResidualMLP

pytestmark = pytest.mark.slow

BATCH, COUNT = 256, 999
DATA = MixtureData(num_classes=3, dim=2, std=0.15, num_reference=10, batch_size=BATCH, stream="learning")
TEACHER = Guided(DATA.exact.denoise, NULL)  # pyright: ignore[reportOptionalMemberAccess]
LABEL = torch.arange(COUNT) % 3
ONE_STEP = Sampling.uniform(1, guidance="input")


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    """Without the checks of shapes, which cost as much as such small networks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def learnt(
    name: str,
    student: Denoiser,
    steps: int,
    *,
    rate: float = 1e-3,
    number: int = 0,
    data: Data | None = None,
    **changes: Any,
) -> Denoiser:
    """The model of a phase after so many steps."""
    plan = {
        "images": steps * BATCH,
        "batch_size": BATCH,
        "learning_rate": rate,
        "warmup_images": 0,
        "ema_decay": 0.97,
        "roles": {role: {"learning_rate": 1e-3} for role in ("fake", "critic")},
    }
    method = small(name, plan, **changes)
    made = module(method, deepcopy(student), TEACHER, parent=GuidanceRange(0.0, 2.0))
    fit(made, data=DATA if method.inputs == "data" else data)
    return made.nets.model


@pytest.fixture(scope="module")
def guided(fast: None) -> Denoiser:
    """A guided student, which the others start as."""
    torch.manual_seed(0)
    network = ResidualMLP(shape=(2,), num_classes=3, width=64, num_blocks=2, embedding_dim=32, guidance_input=True)
    return learnt("guidance", Denoiser(network), 500, rate=3e-3, w_max=2.0)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(seed))


def samples(model: Denoiser, sampling: Sampling, w: Tensor) -> Tensor:
    return sample(
        model,
        noise(),
        schedule=SCHEDULE,
        times=sampling.grid(),
        label=LABEL,
        w=w,
        sampler=SAMPLERS[sampling.sampler],
        fresh=noise,
    )


def error(model: Denoiser, sampling: Sampling) -> float:
    """Root mean square distance to where the flow of the guided teacher ends, over w of the range."""
    w = torch.linspace(0, 2, COUNT)
    ends = SCHEDULE.log_snr(torch.tensor([1.0, 0.0]))
    truth = integrate(
        TEACHER, noise().double(), log_snr=ends[0], log_snr_next=ends[1], num_steps=60, label=LABEL, w=w.double()
    )
    return float((samples(model, sampling, w) - truth).square().mean().sqrt())


def energy_distance(one: Tensor, other: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013), the mean over the classes."""
    parts = []
    for number in range(3):
        x, y = one[number == LABEL].double(), other[number == LABEL].double()
        parts.append(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())
    return float(torch.stack(parts).mean())


def distance(*samplings: Sampling, model: Denoiser) -> float:
    """Of the data to the samples, a share of each of the samplings, at w = 0."""
    assert DATA.exact is not None
    reference = DATA.exact.draw(LABEL, torch.Generator().manual_seed(5))
    made = torch.stack([samples(model, sampling, torch.zeros(COUNT)) for sampling in samplings])
    share = (torch.arange(COUNT) // 3) % len(samplings)
    return energy_distance(made[share, torch.arange(COUNT)], reference)


def test_the_guided_student_follows_its_teacher(guided: Denoiser) -> None:
    assert error(guided, Sampling.uniform(64, guidance="input")) < 0.05
    assert error(guided, ONE_STEP) > 0.3  # which leaves something to distil


def test_tract(guided: Denoiser) -> None:
    one = learnt("tract", guided, 250, time_schedule=[16, 1])
    assert error(one, ONE_STEP) < 0.4 * error(guided, ONE_STEP)
    two_steps = Sampling.uniform(2, guidance="input")
    two = learnt("tract", guided, 250, time_schedule=[16, 2])
    assert error(two, two_steps) < 0.4 * error(guided, two_steps)


@pytest.mark.parametrize("metric", ["l2", "pseudo_huber"])
def test_consistency_distillation(guided: Denoiser, metric: str) -> None:
    model = learnt("consistency", guided, 250, num_levels=16, levels=[1.0], metric=metric)
    assert error(model, ONE_STEP) < 0.4 * error(guided, ONE_STEP)


def test_consistency_training_needs_no_teacher() -> None:
    torch.manual_seed(0)
    fresh = Denoiser(ResidualMLP(shape=(2,), num_classes=3, width=64, num_blocks=2, embedding_dim=32))
    plain = Sampling(sampler="renoise", times=(1.0,), guidance="none")
    model = learnt("consistency training", fresh, 300, rate=2e-3, num_levels=8, levels=[1.0], metric="pseudo_huber")
    assert distance(plain, model=model) < 0.2 * distance(plain, model=fresh)


def paired(folder: Path, denoise: Denoise, num_steps: int) -> PairData:
    """Pairs that a model makes in so many steps of DDIM."""

    def make(noise: Tensor, label: Tensor, w: Tensor) -> Tensor:
        return sample(denoise, noise, schedule=SCHEDULE, times=uniform_times(num_steps), label=label, w=w)

    store = PairStore(folder, DATA.facts, 8192, "0", GuidanceRange(0.0, 2.0).quantile, {})
    store.fill(make, "cpu")
    return PairData(store, batch_size=BATCH, stream="learning")


def test_knowledge_distillation(guided: Denoiser, tmp_path: Path) -> None:
    """Near to the exact map, of pairs that are exact but for the steps of DDIM."""
    one = learnt("knowledge_distillation", guided, 400, data=paired(tmp_path, TEACHER, 64))
    assert error(one, ONE_STEP) < 0.2 * error(guided, ONE_STEP)


def test_reflow_makes_the_flow_straight(guided: Denoiser, tmp_path: Path) -> None:
    """A round straightens the flow and keeps its ends; after a second one, of its samples, one step is enough."""
    where = {"label": LABEL, "noise": noise(), "w": torch.linspace(0, 2, COUNT)}
    two = Sampling.uniform(2, guidance="input")
    once = learnt("reflow", guided, 400, data=paired(tmp_path / "2", TEACHER, 32))
    curved, straight = (float(straightness(each, 30, **where).mean()) for each in (guided, once))
    assert straight < 0.05 * curved
    assert error(once, two) < 0.4 * error(guided, two)
    one = learnt("reflow", once, 300, number=1, data=paired(tmp_path / "1", once, 8))
    assert error(one, ONE_STEP) < 0.3 * error(guided, ONE_STEP)


def renoised(*times: float) -> Sampling:
    return Sampling(sampler="renoise", times=times, guidance="input")


def test_distribution_matching(guided: Denoiser) -> None:
    model = learnt("dmd2", guided, 400, rate=1e-3, levels=[1.0], fake_updates=3)
    assert distance(renoised(1.0), model=model) < 0.4 * distance(renoised(1.0), model=guided)


def test_distribution_matching_of_two_levels_matches_what_both_make_together(guided: Denoiser) -> None:
    """The fake score does not know which level a sample is of: it is their mixture that becomes the teacher's."""
    model = learnt("dmd2", guided, 400, rate=1e-3, levels=[1.0, 0.5], fake_updates=3)
    both = (renoised(1.0), renoised(1.0, 0.5))
    assert distance(*both, model=model) < 0.6 * distance(*both, model=guided)
