"""Judges, where it is known where they lead: a generator of a Gaussian and a quadratic critic; and who moves whom."""

from collections.abc import Callable, Iterator
from math import log
from typing import Any

import pytest
import torch
from small_methods import PLAN, SCHEDULE, SMALL, batch, batch_for, module, network, small
from torch import Tensor, nn

from fewstep.data.batch import Batch, Pairs
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.schedule import alpha, expand, sigma
from fewstep.methods import GuidanceRange, Method, Networks, losses
from fewstep.methods.critic import CRITIC, Critic, flat
from fewstep.methods.draws import Draws
from fewstep.methods.losses import ADVERSARIAL, gradient_penalty
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser, DiT, Frozen, UNet
from fewstep.networks.features import block_features
from fewstep.networks.routed import Routed
from fewstep.runs.build import build_method

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


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(
    method: Method, critic: Critic | None, steps: int, last: int = 1, rows: int = 256, rate: float = 3e-2
) -> tuple[float, float]:
    """Mean and deviation of a generator after Adam along the method's own losses, their mean over the `last` steps."""
    generator, trains = Affine(), {} if critic is None else {CRITIC: critic}
    nets = Networks(generator, exact_denoiser, SCHEDULE, GuidanceRange(0.0, 0.0), trained=trains)
    (phase,) = method.phases()
    source = torch.Generator().manual_seed(3)
    weights = [*generator.parameters(), *(critic.parameters() if critic else ())]
    optimiser = torch.optim.Adam(weights, lr=rate, betas=(0.5, 0.9))
    label, w, path = torch.zeros(rows, dtype=torch.long), torch.zeros(rows), []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(1.0, 2 - 2 * step / steps)
        x, noise = MEAN + STD * torch.randn(rows, 1, generator=source), torch.randn(rows, 1, generator=source)
        given = Pairs(x, label, noise, w) if method.inputs == "pairs" else Batch(x, label)
        draws = Draws.begin(x, "0/judge", step)
        optimiser.zero_grad()
        found = method.losses(given, nets, draws, step=step, phase=phase)
        torch.stack([each.error.mean() for each in found.values()]).sum().backward()
        optimiser.step()
        path.append([float(generator.mean.detach()), abs(float(generator.std.detach()))])
    mean, std = torch.tensor(path[-last:]).mean(0).tolist()
    return mean, std


def adversarial(name: str, **settings: Any) -> Method:
    """A method whose student has a judge and nothing else, at pure noise."""
    judge = {"weight": 1.0, "t_mean": 0.0, "t_std": 1.0, **settings}
    return small(name, levels=[1.0], judge=judge, **({"distillation": 0.0} if name == "add" else {}))


def noised_sample(noised: Prediction) -> Tensor:
    return noised.z


# families 4.1 (i): distillation alone ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("double", "unchecked")
def test_distillation_alone_collapses_to_the_mean() -> None:
    mean, std = trained(small("add", levels=[1.0], judge=None), None, 300)
    assert mean == pytest.approx(MEAN, abs=0.03)
    assert std < 0.03


# families 4.1 (ii): a judge alone -------------------------------------------------------------------------------------

FORMS = [{"form": "softplus"}, {"form": "hinge", "r1": 0.3}]


@pytest.mark.usefixtures("double", "unchecked")
def test_a_judge_alone_leads_to_the_data() -> None:
    found = trained(adversarial("add", form="softplus"), QuadraticCritic(noised_sample), 300, last=50)
    assert found == pytest.approx((MEAN, STD), abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add", "ladd"])
@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.usefixtures("double", "unchecked")
def test_the_longer_the_closer(name: str, settings: Any) -> None:
    critic = QuadraticCritic(noised_sample)
    found = trained(adversarial(name, **settings), critic, 1500, last=300, rows=512, rate=1e-2)
    assert found == pytest.approx((MEAN, STD), abs=0.04)


@pytest.mark.usefixtures("double", "unchecked")
def test_a_generator_that_displeases_its_judge_leaves_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (losses.judge, lambda logits: losses.judge_generated(-logits))
    monkeypatch.setitem(ADVERSARIAL, "softplus", wrong)
    found = trained(adversarial("add", form="softplus"), QuadraticCritic(noised_sample), 150, last=50)
    assert max(abs(found[0] - MEAN), abs(found[1] - STD)) > 0.3


# The forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "undecided"), [("softplus", log(4)), ("hinge", 2.0)])
def test_a_judge_that_cannot_tell_and_one_that_can(form: str, undecided: float) -> None:
    of_judge, of_generator = ADVERSARIAL[form]
    nothing = torch.zeros(3)
    torch.testing.assert_close(of_judge(nothing, nothing), torch.full((3,), undecided))
    assert bool((of_judge(nothing + 1, nothing - 1) < undecided).all())
    logits = torch.linspace(-2, 2, 5, requires_grad=True)
    of_generator(logits).sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad < 0).all())  # it always wants to be taken for real


def test_the_hinge_is_zero_at_its_margins() -> None:
    of_judge, of_generator = ADVERSARIAL["hinge"]
    real, generated = torch.tensor([1.0, 0.5, -1.0]), torch.tensor([-1.0, -1.0, 2.0])
    assert of_judge(real, generated).tolist() == [0.0, 0.5, 5.0]
    assert of_generator(torch.tensor([1.0, 0.0, -2.0])).tolist() == [0.0, 1.0, 3.0]


def test_the_penalty_is_the_squared_slope_of_a_head_in_its_own_input() -> None:
    h = [torch.randn(4, 3, 2, requires_grad=True) for _ in range(2)]
    logits = torch.stack([(2 * h[0]).flatten(1).sum(1), h[1].square().flatten(1).sum(1)], dim=1)
    expected = 4.0 * 6 + (2 * h[1]).square().flatten(1).sum(1)
    torch.testing.assert_close(gradient_penalty(logits, h), expected)


# Who learns from what -------------------------------------------------------------------------------------------------

JUDGED = ["add", "ladd", "progressive with judge", "consistency with judge", "knowledge_distillation with judge"]


def losses_of(name: str) -> tuple[Any, dict[str, Any]]:
    made = module(small(name))
    with torch.no_grad():  # a student that is its teacher has nothing to learn
        for weight in made.student.parameters():
            weight.add_(0.1)
    given = batch_for(made.method)
    return made, dict(made.method.losses(given, made.nets, Draws.begin(given.x, "s", 0), step=0, phase=made.phase))


def gradients(part: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in part.parameters() if weight.grad is not None]


@pytest.mark.parametrize("name", JUDGED)
def test_each_loss_moves_its_own_role_alone(name: str) -> None:
    for role in (STUDENT, CRITIC):
        made, found = losses_of(name)
        assert [tuple(logits.shape) for logits in found[CRITIC].verdict] == [(32,), (32,)]
        found[role].error.mean().backward()
        assert bool(gradients(made.student)) == (role == STUDENT)
        assert bool(gradients(made.trained[CRITIC])) == (role == CRITIC)


def test_the_judge_is_added_to_the_methods_own_loss_by_its_weight() -> None:
    errors = []
    for weight in (1e-9, 1.0, 2.0):
        made = module(small("progressive with judge", judge={"weight": weight}))
        given = batch()
        draws = Draws.begin(given.x, "s", 0)
        errors.append(made.method.losses(given, made.nets, draws, step=0, phase=made.phase)[STUDENT].error.detach())
    torch.testing.assert_close(errors[2] - errors[0], 2 * (errors[1] - errors[0]), rtol=1e-4, atol=1e-6)
    assert float((errors[1] - errors[0]).abs().min()) > 0


def test_the_penalty_is_added_to_the_critics_loss_by_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for r1 in (0.0, 1.0, 2.0):
        made = module(small("progressive with judge", judge={"weight": 1.0, "r1": r1}))
        given = batch()
        found = made.method.losses(given, made.nets, Draws.begin(given.x, "s", 0), step=0, phase=made.phase)
        errors.append(found[CRITIC].error.detach())
    torch.testing.assert_close(errors[2] - errors[0], 2 * (errors[1] - errors[0]), rtol=1e-4, atol=1e-6)
    assert float((errors[1] - errors[0]).min()) > 0
    monkeypatch.setattr("fewstep.methods.judge.gradient_penalty", lambda logits, _: torch.full((len(logits),), 5.0))
    made = module(small("progressive with judge", judge={"weight": 1.0, "r1": 0.5}))
    given = batch()
    found = made.method.losses(given, made.nets, Draws.begin(given.x, "s", 0), step=0, phase=made.phase)
    torch.testing.assert_close(found[CRITIC].error.detach() - errors[0], torch.full((32,), 2.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("real", ["target", "data"])
def test_what_is_real_is_the_target_or_the_data(real: str) -> None:
    """What is judged as real, seen where nothing is noised."""
    made = module(small("consistency with judge", judge={"weight": 0.1, "real": real, "t_mean": -50.0, "t_std": 0.0}))
    seen, features = [], Critic.features

    def spy(self: Critic, noised: Prediction, *others: Any) -> Any:
        seen.append(noised.z)
        return features(self, noised, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Critic, "features", spy)
        given = batch()
        made.method.losses(given, made.nets, Draws.begin(given.x, "s", 0), step=0, phase=made.phase)
    assert torch.allclose(seen[1], given.x, atol=1e-3) == (real == "data")


# Networks and refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "places"), [((5, 6), 1), ((5, 3, 6), 3), ((5, 3, 4, 6), 12)])
def test_features_have_one_dimension_of_places(shape: tuple[int, ...], places: int) -> None:
    features = torch.randn(shape).bfloat16()
    assert flat(features).shape == (5, places, 6)
    assert torch.equal(flat(features).flatten(), features.float().flatten())


def test_each_block_of_a_network_has_features() -> None:
    unet = UNet(shape=[1, 8, 8], num_classes=3, channels=[32, 32], num_blocks=1, attention=[False, True])
    shape = {"patch_size": 2, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "norm_num_groups": 1}
    dit = DiT(shape=[1, 8, 8], num_classes=3, config=shape)
    for made, count in ((unet, 5), (dit, 2), (network().network, 1)):
        critic = Critic(Denoiser(made), every_block=True)
        assert len(critic.heads) == len(block_features(Denoiser(made))) == count
    noised = Prediction(torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8), torch.zeros(4))
    critic = Critic(Denoiser(unet), every_block=True)
    maps = critic.features(noised, torch.zeros(4, dtype=torch.long), None)
    assert [each.shape[1] for each in maps] == [16, 16, 16, 64, 64]
    assert critic.logits(maps).shape == (4, 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"judge": {"weight": 0.0}},
            "stage.judge.weight must be a number above 0; stage.judge=null is no judge, got 0.0",
        ),
        ({"judge": {"weight": 1.0, "r1": -1.0}}, "stage.judge.r1 must be a number of at least 0, got -1.0"),
        ({"judge": {"weight": 1.0, "real": "nothing"}}, "stage.judge.real must be one of target, data"),
        ({"judge": {"wait": 1.0}}, "stage.judge.wait is no setting"),
    ],
)
def test_bad_judges_are_refused_when_the_method_is_built(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _ = small("progressive", **changes).roles


@pytest.mark.parametrize("name", ["sfddm with features", "guidance with features"])
def test_features_and_a_judge_would_read_the_same_call(name: str) -> None:
    with pytest.raises(ValueError, match="each read the teacher's latest call"):
        small(name, judge={"weight": 0.1})


def test_methods_that_need_a_judge_say_so() -> None:
    with pytest.raises(ValueError, match=r"stage\.judge must be given"):
        small("ladd", judge=None)
    with pytest.raises(ValueError, match=r"stage.distillation must be above 0 where stage.judge is null"):
        small("add", judge=None, distillation=0.0)


def test_a_judge_needs_the_features_of_one_trained_network(make_mixture: Any) -> None:
    method = small("progressive with judge")
    with pytest.raises(ValueError, match=r"this one is exact or clipped; use stage\.judge=null"):
        module(method, network(guidance_input=True), Guided(make_mixture().denoise, 3))
    several = Denoiser(Routed.of(network(guidance_input=True).network, edges=[0.5]))
    with pytest.raises(ValueError, match="features must be of one network, and this model has several"):
        module(method, network(guidance_input=True), Frozen(several))


def test_a_judges_training_must_be_given() -> None:
    kind, own = SMALL["progressive with judge"]
    stage = {"_target_": f"fewstep.methods.{kind.__name__}", "name": "progressive", "training": PLAN, **own}
    with pytest.raises(ValueError, match=r"stage\.training\.roles\.critic\.learning_rate must be given"):
        build_method(stage)
    assert build_method(stage | {"judge": None}).roles == (STUDENT,)
