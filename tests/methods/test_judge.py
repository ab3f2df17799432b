"""Judges, where it is known where they lead: a generator of a Gaussian, told from the data by a quadratic critic."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_methods import SCHEDULE, small
from torch import Tensor, nn

from fewstep.data.batch import Batch, Pairs
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.schedule import alpha, expand, sigma
from fewstep.methods import GuidanceRange, Method, Networks
from fewstep.methods.critic import CRITIC, Critic
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser

MEAN, STD = 1.0, 0.5
ARGUMENTS = {"shape": [1], "num_classes": 1, "guidance_input": True}


class Affine(Denoiser):
    """A generator x = mean + std z at pure noise, whatever the condition."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        network = nn.Module()
        network.arguments = ARGUMENTS  # pyright: ignore[reportArgumentType]
        super().__init__(network)
        self.mean, self.std = (nn.Parameter(torch.tensor(value)) for value in (mean, std))

    def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
        return interpret("x", self.mean + self.std * z, z=z, log_snr=log_snr)

    @property
    def moments(self) -> tuple[float, float]:
        return float(self.mean.detach()), abs(float(self.std.detach()))


class Quadratic(nn.Module):
    """The logit a + b h + c h^2: of two Gaussians the best critic is one of these."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3))

    def forward(self, h: Tensor) -> Tensor:
        a, b, c = self.weights
        return a + b * h + c * h.square()


class QuadraticCritic(Critic):
    """Reads the noised sample itself, or what else its denoiser makes of it."""

    def __init__(self, read: Callable[[Prediction], Tensor]) -> None:
        nn.Module.__init__(self)
        self.read, self.heads = read, nn.ModuleList([Quadratic()])

    def features(self, noised: Prediction, label: Tensor, w: Tensor | None) -> list[Tensor]:
        return [self.read(noised)[:, None]]


def exact_denoiser(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
    """The closed form of the data's N(MEAN, STD^2)."""
    a, s = expand(alpha(log_snr), z), expand(sigma(log_snr), z)
    gain = a * STD**2 / ((a * STD) ** 2 + s**2)
    return interpret("x", MEAN + gain * (z - a * MEAN), z=z, log_snr=log_snr)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(
    method: Method, generator: Affine, critic: Critic | None, steps: int, *, mean_over: int = 1, rows: int = 512
) -> list[tuple[float, float]]:
    """Mean and deviation of the generator in the last `mean_over` steps of Adam along the method's own losses."""
    trains = {} if critic is None else {CRITIC: critic}
    nets = Networks(generator, exact_denoiser, SCHEDULE, GuidanceRange(0.0, 0.0), trained=trains)
    (phase,) = method.phases()
    both = [*generator.parameters(), *(critic.parameters() if critic else ())]
    optimiser = torch.optim.Adam(both, lr=1e-2, betas=(0.5, 0.9))
    label, w, path = torch.zeros(rows, dtype=torch.long), torch.zeros(rows), []
    source = torch.Generator().manual_seed(3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1.0, 2 - 2 * step / steps)
        x = MEAN + STD * torch.randn(rows, 1, generator=source)
        given = (
            Pairs(x, label, torch.randn(rows, 1, generator=source), w) if method.inputs == "pairs" else Batch(x, label)
        )
        draws = Draws.begin(x, "0/judge", step)
        optimiser.zero_grad()
        losses = method.losses(given, nets, draws, step=step, phase=phase)
        torch.stack([each.error.mean() for each in losses.values()]).sum().backward()
        optimiser.step()
        path.append(generator.moments)
    return path[-mean_over:]


def adversarial(name: str, **judge: Any) -> Method:
    """A method whose student has a judge and nothing else, at pure noise."""
    given = {"weight": 1.0, "t_mean": 0.0, "t_std": 1.0, **judge}
    changes = {"levels": [1.0], "judge": given} | ({"distillation": 0.0} if name == "add" else {})
    return small(name, **changes)


# families 4.1 (i): what distillation alone does


@pytest.mark.usefixtures("unchecked")
def test_distillation_alone_collapses_to_the_mean() -> None:
    method = small("add", levels=[1.0], judge=None, distillation=2.5)
    mean, std = trained(method, Affine(0.0, 1.0), None, 800)[-1]
    assert mean == pytest.approx(MEAN, abs=0.03)
    assert std < 0.03


# families 4.1 (ii): what a judge alone does


@pytest.mark.parametrize("name", ["add", "ladd"])
@pytest.mark.parametrize("settings", [{"form": "softplus"}, {"form": "hinge", "r1": 0.3}])
@pytest.mark.usefixtures("unchecked")
def test_a_generator_matches_mean_and_deviation(name: str, settings: dict[str, Any]) -> None:
    path = trained(
        adversarial(name, **settings), Affine(), QuadraticCritic(lambda noised: noised.z), 1500, mean_over=300
    )
    mean, std = torch.tensor(path).mean(0).tolist()
    assert (mean, std) == pytest.approx((MEAN, STD), abs=0.04)


if __name__ == "__main__":
    pass
