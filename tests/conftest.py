"""Every test runs with the shapes of all annotated functions checked, and on one thread (pytest-xdist has several)."""

import gc
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch

CHECKED = [
    "fewstep.diffusion",
    "fewstep.networks",
    "fewstep.methods",
    "fewstep.evaluation",
    "fewstep.inference",
    "fewstep.system.seeds",
]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")  # before the first import of fewstep

from fewstep.diffusion.mixture import GaussianMixture  # noqa: E402

torch.set_num_threads(1)

MakeMixture = Callable[..., GaussianMixture]


@pytest.fixture(scope="session")
def make_mixture() -> MakeMixture:
    """(num_classes, dim, seed) -> a smooth random mixture in float64, two components a class."""

    def make(*, num_classes: int = 3, dim: int = 2, seed: int = 0) -> GaussianMixture:
        generator = torch.Generator().manual_seed(seed)
        count = 2 * num_classes
        weights = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)
        return GaussianMixture(
            means=1.5 * torch.rand(count, dim, generator=generator, dtype=torch.float64) - 0.75,
            stds=0.3 + 0.4 * torch.rand(count, dim, generator=generator, dtype=torch.float64),
            weights=weights / weights.sum(),
            classes=torch.arange(count) % num_classes,
        )

    return make


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on those before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the check off, to see what a user sees, who runs without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


LONGEST = ("test_readme.py", "test_sweep_runs.py", "test_slurm.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left waiting for another's last test."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="module")
def settled() -> None:
    """Garbage collections, of which every phase of a run has one, do not look through what was imported."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What was left out of collections is freed, too, or Triton's bindings report it as leaked."""
    gc.unfreeze()
