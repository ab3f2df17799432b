"""The stochastic chain, the encoder and the variants, each against a closed form: a perfect student has no error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.data.batches import Batch
from fewstep.diffusion.guidance import Guided, log_snr_interval
from fewstep.diffusion.loss import WEIGHTS
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import KINDS, Prediction, PredictionKind, interpret
from fewstep.diffusion.sampler import ddim_step, invert_ddim, sample
from fewstep.diffusion.schedule import CosineSchedule, alpha, expand, sigma
from fewstep.diffusion.target import clipped, progressive_target
from fewstep.methods import EncoderStage, GuidanceRange, GuidanceStage, ProgressiveStage, Stage, Training, check_chain
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser, Frozen
from fewstep.system.seeds import reseed, seed_for

MakeMixture = Callable[..., GaussianMixture]
SCHEDULE = CosineSchedule()
NULL = 3
CPU = torch.device("cpu")
PLAN: dict[str, Any] = {
    "images": 640,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "warmup_images": 64,
    "gradient_clip": 1.0,
    "ema_decay": 0.0,
    "weight": "snr_plus_one",
}


def batch(count: int = 256) -> Batch:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64) / 2
    return Batch(x, torch.arange(count) % NULL)


def flow(z: Tensor, label: Tensor, log_snr: Tensor, log_snr_next: Tensor) -> Tensor:
    """Where the probability flow takes z: of N(0, 0.4^2) with a class and of N(0, 0.7^2) without."""
    std = torch.where(label == NULL, 0.7, 0.4).double()
    now, then = (((alpha(at) * std) ** 2 + sigma(at) ** 2).sqrt() for at in (log_snr, log_snr_next))
    return expand(then / now, z) * z


class Perfect(nn.Module):
    """The perfect network of `num_steps` steps of a chain; `kind` is how its output reads."""

    def __init__(self, num_steps: int, chain: str = "deterministic", kind: PredictionKind = "v", off: float = 0.0):
        super().__init__()
        self.arguments = {"guidance_input": True, "num_classes": NULL}
        self.num_steps, self.chain, self.kind = num_steps, chain, kind
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        log_snr = -2 * (time * torch.pi / 2).tan().log()
        t, step = SCHEDULE.time(log_snr), 1 / self.num_steps
        landing = {"deterministic": t - step, "stochastic": (t - 2 * step).clamp(min=0), "encoder": t + step}
        there = SCHEDULE.log_snr(landing[self.chain])
        made = invert_ddim(z=z, z_next=flow(z, label, log_snr, there), log_snr=log_snr, log_snr_next=there)
        return getattr(made, self.kind).nan_to_num() + self.off  # at t = 0 there is no jump to invert


def rung(chain: str, student: int, teacher: int, **own: Any) -> ProgressiveStage:
    """A rung of `student` steps whose student and teacher are perfect."""
    kind: PredictionKind = own.pop("kind", "v")
    off, weight = own.pop("off", 0.0), own.pop("weight", "snr_plus_one")
    given: dict[str, Any] = {
        "student": Denoiser(Perfect(student, chain, kind, off), kind),
        "teacher": Frozen(Denoiser(Perfect(teacher, chain))),
        "schedule": SCHEDULE,
        "training": Training(**PLAN | {"weight": weight}),
        "stream": "0/rung",
        "num_steps": student,
        "w_min": 0.0,
        "w_max": 4.0,
    }
    if chain == "encoder":
        return EncoderStage(**given)
    return ProgressiveStage(**given | {"sampler": chain} | own)


def loss(stage: Stage) -> float:
    return float(stage.training_step(batch(), 0).detach())


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize("chain", ["deterministic", "stochastic", "encoder"])
def test_a_perfect_rung_has_no_error_and_one_of_another_length_has(chain: str, num_steps: int) -> None:
    assert loss(rung(chain, num_steps, 2 * num_steps)) < 1e-15
    wrong = rung(chain, num_steps, 2 * num_steps)
    wrong.student = Denoiser(Perfect(2 * num_steps + 1, chain))
    assert loss(wrong) > 1e-9


def test_the_chains_differ() -> None:
    mixed = rung("stochastic", 4, 8)
    mixed.student = Denoiser(Perfect(4, "deterministic"))
    assert loss(mixed) > 1e-6


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_the_stochastic_times(num_steps: int) -> None:
    """Two teacher jumps of 1/N; at i = 1 the first is the whole way and the second has no length."""
    stage = rung("stochastic", num_steps, 2 * num_steps)
    t = stage.draw_times(Draws(400, torch.Size(), CPU))
    mid, end = stage.jump(t)
    assert set(t.tolist()) == {i / num_steps for i in range(1, num_steps + 1)}
    torch.testing.assert_close(mid, t - 1 / num_steps)
    torch.testing.assert_close(end, (t - 2 / num_steps).clamp(min=0))


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_the_encoder_times_begin_at_the_data_and_end_at_the_noise(num_steps: int) -> None:
    stage = rung("encoder", num_steps, 2 * num_steps)
    t = stage.draw_times(Draws(400, torch.Size(), CPU))
    mid, end = stage.jump(t)
    assert set(t.tolist()) == {i / num_steps for i in range(num_steps)}
    torch.testing.assert_close(mid - t, torch.full_like(t, 0.5 / num_steps))
    torch.testing.assert_close(end - t, torch.full_like(t, 1 / num_steps))


def test_where_the_second_jump_has_no_length_the_target_is_the_teachers_own_prediction() -> None:
    z, log_snr = torch.randn(6, 2, dtype=torch.float64), SCHEDULE.log_snr(torch.full((6,), 0.25))
    teacher, label = Denoiser(Perfect(8, "stochastic")), torch.zeros(6, dtype=torch.long)
    zero = SCHEDULE.log_snr(torch.zeros(6))
    target = progressive_target(
        teacher=teacher, z=z, log_snr=log_snr, log_snr_mid=zero, log_snr_end=zero, label=label, w=None
    )
    torch.testing.assert_close(target.x, teacher(z, log_snr, label).x, rtol=0, atol=1e-12)


def test_an_encoder_of_a_network_that_predicts_x_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts x; use one that predicts v or eps"):
        rung("encoder", 2, 4, kind="x")


# Two students ---------------------------------------------------------------------------------------------------------


def test_the_two_students_are_taught_each_its_own_target() -> None:
    stage = rung("deterministic", 4, 8, variant="two_student")
    assert loss(stage) < 1e-15
    seen: list[Tensor] = []

    def teacher(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        seen.append(label)
        assert w is None
        return Denoiser(Perfect(8))(z, log_snr, torch.full_like(label, NULL))  # one branch for both

    stage.teacher = teacher
    prediction, target, _, w = stage.regression(batch())
    error = (prediction.v - target.v).detach().abs().amax(1)
    null = seen[0] == NULL
    assert w is None
    assert stage.guidance is None
    assert float(null.float().mean()) == pytest.approx(0.5, abs=0.12)
    assert torch.equal(seen[0][~null], batch().label[~null])
    assert float(error[null].max()) < 1e-9
    assert float(error[~null].min()) > 1e-9


@pytest.mark.parametrize("w", [0.0, 1.5])
def test_two_students_are_guided_when_they_sample(w: float) -> None:
    students = Guided(Denoiser(Perfect(1)), NULL)
    noise, label = torch.randn(8, 2, dtype=torch.float64), torch.zeros(8, dtype=torch.long)
    weight = torch.full((8,), w, dtype=torch.float64)
    x = sample(students, noise, schedule=SCHEDULE, num_steps=1, label=label, w=weight)
    ends = SCHEDULE.log_snr(torch.tensor([1.0, 0.0]))[:, None].expand(2, 8)
    one, other = (flow(noise, wanted, *ends) for wanted in (label, torch.full_like(label, NULL)))
    torch.testing.assert_close(x, (1 + w) * one - w * other, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("sampler", "variant"), [("ddim", "joint"), ("stochastic", "three")])
def test_unknown_chains_are_refused(sampler: str, variant: str) -> None:
    with pytest.raises(ValueError, match=r"stage\.(sampler|variant) must be one of \w+, \w+, got"):
        check_chain(sampler, variant)


# Predictions, weights, targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chain", ["deterministic", "stochastic"])
def test_a_student_may_predict_x_eps_or_v(chain: str, kind: PredictionKind) -> None:
    assert loss(rung(chain, 4, 8, kind=kind)) < 1e-12
    assert loss(rung(chain, 4, 8, kind=kind, off=0.1)) > 1e-4


def snr_of(log_snr: Tensor) -> dict[str, Tensor]:
    """The weights of the x-space error, as the paper writes them."""
    snr = log_snr.exp()
    return {"snr": snr, "truncated_snr": snr.clamp(min=1), "snr_plus_one": snr + 1}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", ["guidance", "deterministic", "stochastic", "encoder"])
def test_every_stage_takes_every_weight(name: str, weight: str) -> None:
    if name == "guidance":
        stage: Stage = GuidanceStage(
            student=Denoiser(Perfect(4, off=0.1)),
            teacher=Guided(Frozen(Denoiser(Perfect(4))), NULL),
            schedule=SCHEDULE,
            training=Training(**PLAN | {"weight": weight}),
            stream="0/rung",
            w_min=0.0,
            w_max=0.0,
        )
    else:
        stage = rung(name, 4, 8, off=0.1, weight=weight)
    reseed(seed_for(stage.stream, 0), CPU)
    prediction, target, *_ = stage.regression(batch())
    error = (prediction.x - target.x).detach().square().mean(1)
    noisy = prediction.log_snr < 19  # at t = 0 the two have no distance in x, and an infinite weight
    expected = (snr_of(prediction.log_snr)[weight] * error)[noisy].sum() / len(error)
    if name != "encoder":
        assert loss(stage) == pytest.approx(float(expected), rel=1e-6)
    else:
        assert loss(stage) > float(expected) > 0


def test_clipped_targets_lie_in_the_range_and_free_ones_need_not(make_mixture: MakeMixture) -> None:
    free, label = Guided(make_mixture().denoise, NULL), batch().label
    log_snr, w = SCHEDULE.log_snr(0.1 + 0.9 * torch.rand(256)), torch.full((256,), 4.0, dtype=torch.float64)
    z = batch().x * 2
    one, other = free(z, log_snr, label, w).x, clipped(free, -0.5, 0.5)(z, log_snr, label, w).x
    inside = one.abs() <= 0.5
    assert not bool(inside.all())
    assert float(other.abs().max()) <= 0.5 + 1e-12
    torch.testing.assert_close(other[inside], one[inside])
    with_room = clipped(free, -99.0, 99.0)(z, log_snr, label, w)
    torch.testing.assert_close(with_room.x, one)
    end = SCHEDULE.log_snr(torch.zeros(256))  # a clipped teacher's one jump to the data stays in the range
    assert float(ddim_step(clipped(free, -0.5, 0.5)(z, log_snr, label, w), end).abs().max()) < 0.501


# Guidance: the draw and the interval ----------------------------------------------------------------------------------


def drawn(guidance: GuidanceRange, count: int = 20_000) -> Tensor:
    torch.manual_seed(0)
    return guidance.draw(Draws(count, torch.Size(), CPU))


def test_w_is_drawn_as_the_settings_say() -> None:
    quarters = torch.tensor([0.25, 0.5, 0.75])
    uniform = drawn(GuidanceRange(1.0, 5.0))
    torch.testing.assert_close(uniform.quantile(quarters), torch.tensor([2.0, 3.0, 4.0]), rtol=0, atol=0.1)
    logarithmic = drawn(GuidanceRange(0.0, 15.0, "log_uniform"))  # 1 + w from 1 to 16
    torch.testing.assert_close(logarithmic.quantile(quarters), torch.tensor([1.0, 3.0, 7.0]), rtol=0, atol=0.2)
    listed = drawn(GuidanceRange(0.0, 9.0, "list", [4.0, 0.0, 1.0]))
    values, counts = listed.unique(return_counts=True)
    assert values.tolist() == [0, 1, 4]
    assert float(counts.min()) / len(listed) > 0.3
    assert drawn(GuidanceRange(2.0, 2.0)).unique().tolist() == [2]  # one fixed w


def test_a_list_states_its_own_range() -> None:
    listed = GuidanceRange(0.0, 99.0, "list", [4.0, 1.0])
    assert (listed.w_min, listed.w_max, listed.w_values) == (1.0, 4.0, (4.0, 1.0))


@pytest.mark.parametrize(("draw", "values"), [("normal", None), ("list", None), ("list", []), ("uniform", [1.0])])
def test_draws_that_do_not_go_together_are_refused(draw: Any, values: list[float] | None, unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"stage.w_draw must be one of uniform, log_uniform, list, and list alone"):
        GuidanceRange(0.0, 4.0, draw, values)


def test_a_fixed_w_is_the_only_one_that_a_student_sees(make_mixture: MakeMixture) -> None:
    mixture = make_mixture()
    stage = GuidanceStage(
        student=Denoiser(Perfect(4)),
        teacher=Guided(mixture.denoise, NULL),
        schedule=SCHEDULE,
        training=Training(**PLAN),
        stream="0/guidance",
        w_min=1.5,
        w_max=1.5,
    )
    prediction, target, _, w = stage.regression(batch())
    label = batch().label
    one, other = (
        mixture.denoise(prediction.z, target.log_snr, wanted).x for wanted in (label, torch.full_like(label, NULL))
    )
    assert w is not None
    assert w.unique().tolist() == [1.5]
    torch.testing.assert_close(target.x, 2.5 * one - 1.5 * other, rtol=1e-9, atol=1e-9)


def test_the_interval_in_time_is_one_in_log_snr(make_mixture: MakeMixture) -> None:
    mixture, count = make_mixture(), 5
    interval = log_snr_interval(SCHEDULE, [0.25, 0.75])
    guided = Guided(mixture.denoise, NULL, interval)
    t = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    z, label, log_snr = torch.randn(count, 2, dtype=torch.float64), torch.arange(count) % 3, SCHEDULE.log_snr(t)
    w = torch.full((count,), 2.0, dtype=torch.float64)
    always, never = Guided(mixture.denoise, NULL), mixture.denoise(z, log_snr, label)
    there = torch.tensor([False, True, True, True, False])[:, None]
    expected = always(z, log_snr, label, w).x.where(there, never.x)
    torch.testing.assert_close(guided(z, log_snr, label, w).x, expected)
    assert log_snr_interval(SCHEDULE, None) is None


@pytest.mark.parametrize("times", [[0.5], [0.7, 0.2], [-0.1, 0.5], [0.2, 1.2], [0.3, 0.3]])
def test_bad_intervals_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match=r"null or two times \[low, high\]"):
        log_snr_interval(SCHEDULE, times)


def test_interpretations_agree_for_the_oracle() -> None:
    """The oracle itself: its three outputs are one prediction."""
    z, log_snr = torch.randn(6, 2, dtype=torch.float64), SCHEDULE.log_snr(torch.full((6,), 0.5))
    label = torch.zeros(6, dtype=torch.long)
    x = [Denoiser(Perfect(4, kind=kind), kind)(z, log_snr, label).x for kind in KINDS]
    torch.testing.assert_close(x[0], x[1])
    torch.testing.assert_close(x[0], x[2])
    assert interpret("x", x[0], z=z, log_snr=log_snr).x.shape == z.shape
