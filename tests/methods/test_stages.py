from collections.abc import Callable
from copy import deepcopy
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fewstep.data.batches import Batch
from fewstep.data.mixture import MixtureData
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import CosineSchedule, alpha, angle, expand, sigma
from fewstep.methods import (
    GuidanceRange,
    GuidanceStage,
    NonFiniteLossError,
    ProgressiveStage,
    Stage,
    TeacherStage,
    Training,
    check_ladder,
)
from fewstep.networks import Denoiser, Frozen, ResidualMLP, with_guidance_input

MakeMixture = Callable[..., GaussianMixture]
SCHEDULE = CosineSchedule()
PLAN = {
    "images": 640,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "warmup_images": 64,
    "gradient_clip": 1.0,
    "ema_decay": 0.5,
    "weight": "truncated_snr",
}


def network(seed: int = 0, *, guidance_input: bool = False) -> Denoiser:
    """A small network with random weights everywhere."""
    made = ResidualMLP(
        shape=(2,), num_classes=3, width=16, num_blocks=1, embedding_dim=8, guidance_input=guidance_input
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return Denoiser(made)


def batch(count: int = 32, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(7)
    return Batch(torch.randn(count, 2, generator=generator).to(dtype) / 2, torch.arange(count) % 3)


def teacher_stage(student: Denoiser | None = None, *, stream: str = "0/teacher", **plan: Any) -> TeacherStage:
    return TeacherStage(
        student=student or network(),
        schedule=SCHEDULE,
        training=Training(**PLAN | plan),
        stream=stream,
        label_dropout=0.1,
    )


def guidance_stage(
    student: Denoiser, teacher: Any, *, stream: str = "0/guidance", w_min: float = 0.0, w_max: float = 4.0, **plan: Any
) -> GuidanceStage:
    return GuidanceStage(
        student=student,
        teacher=teacher,
        schedule=SCHEDULE,
        training=Training(**PLAN | plan),
        stream=stream,
        w_min=w_min,
        w_max=w_max,
    )


def rung(student: Denoiser, teacher: Any, num_steps: int, **plan: Any) -> ProgressiveStage:
    return ProgressiveStage(
        student=student,
        teacher=teacher,
        schedule=SCHEDULE,
        training=Training(**PLAN | plan),
        stream=f"0/progressive/{num_steps}",
        num_steps=num_steps,
        w_min=0.0,
        w_max=4.0,
    )


def each_stage() -> list[Stage]:
    teacher = network()
    student = with_guidance_input(teacher)
    return [
        teacher_stage(network()),
        guidance_stage(student, Guided(Frozen(teacher), 3)),
        rung(deepcopy(student), Frozen(deepcopy(student)), 4),
    ]


def fit(stage: Stage, *callbacks: lightning.Callback, batch_size: int = 32) -> None:
    data = MixtureData(num_classes=3, dim=2, std=0.1, num_reference=10, batch_size=batch_size, stream=stage.stream)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=stage.training_plan.num_steps,
        max_epochs=-1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(stage, data)


# Targets ------------------------------------------------------------------------------------------------------------


def test_stage_one_regresses_to_the_closed_form(make_mixture: MakeMixture) -> None:
    mixture = make_mixture()
    stage = guidance_stage(Denoiser(ExactFlow(4)), Guided(mixture.denoise, 3))  # a student in float64
    torch.manual_seed(0)
    prediction, target, t, w = stage.regression(batch(64, torch.float64))
    assert w is not None
    label = batch(64).label
    conditional, unconditional = (
        mixture.denoise(prediction.z, target.log_snr, c).x for c in (label, torch.full_like(label, 3))
    )
    expected = conditional + w[:, None] * (conditional - unconditional)
    torch.testing.assert_close(target.x, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target.log_snr, SCHEDULE.log_snr(t))
    assert 0 <= float(w.min()) < 0.5
    assert 3.5 < float(w.max()) <= 4
    assert float(t.max() - t.min()) > 0.9


def test_stage_one_starts_without_error_where_there_is_no_guidance() -> None:
    teacher = network()
    student = with_guidance_input(teacher)
    unguided = guidance_stage(student, Guided(Frozen(teacher), 3), w_max=0.0)
    assert float(unguided.training_step(batch(), 0).detach()) < 1e-12
    guided = guidance_stage(student, Guided(Frozen(teacher), 3), w_min=1.0)
    assert float(guided.training_step(batch(), 0).detach()) > 1e-3


def test_the_relative_weight_divides_by_the_square_of_one_plus_w(make_mixture: MakeMixture) -> None:
    losses = {}
    for weight in ("uniform", "relative"):
        teacher = Guided(make_mixture().denoise, 3)
        stage = guidance_stage(network(guidance_input=True), teacher, w_min=3.0, w_max=3.0, guidance_weight=weight)
        losses[weight] = float(stage.training_step(batch(), 0).detach())
    assert losses["relative"] == pytest.approx(losses["uniform"] / 16)


class ExactFlow(nn.Module):
    """The perfect `num_steps`-step network of N(0, 0.4^2): its DDIM steps follow the probability flow."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.arguments = {"guidance_input": True}
        self.num_steps = num_steps
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        phi = time * torch.pi / 2
        log_snr = -2 * phi.tan().log()
        following = SCHEDULE.log_snr(SCHEDULE.time(log_snr) - 1 / self.num_steps)
        deviation, landing = (((0.4 * alpha(at)) ** 2 + sigma(at) ** 2).sqrt() for at in (log_snr, following))
        d = phi - angle(following)
        return expand((d.cos() - landing / deviation) / d.sin(), z) * z + self.shift


@pytest.mark.parametrize("num_steps", [1, 2, 4, 32, 512])
def test_a_rung_whose_student_is_exact_has_no_error(num_steps: int) -> None:
    stage = rung(Denoiser(ExactFlow(num_steps)), Frozen(Denoiser(ExactFlow(2 * num_steps))), num_steps)
    assert float(stage.training_step(batch(dtype=torch.float64), 0).detach()) < 1e-18
    wrong = rung(Denoiser(ExactFlow(2 * num_steps)), Frozen(Denoiser(ExactFlow(2 * num_steps))), num_steps)
    assert float(wrong.training_step(batch(dtype=torch.float64), 0).detach()) > 1e-12


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_a_rung_trains_at_its_own_times(num_steps: int) -> None:
    student = network(guidance_input=True)
    torch.manual_seed(0)
    _, _, t, w = rung(deepcopy(student), Frozen(student), num_steps).regression(batch(256))
    assert set(t.tolist()) == {i / num_steps for i in range(1, num_steps + 1)}
    assert w is not None
    assert 0 <= float(w.min()) < 0.5
    assert 3.5 < float(w.max()) <= 4


def test_the_teacher_drops_its_share_of_the_labels() -> None:
    seen: list[Tensor] = []

    class Spy(ResidualMLP):
        def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
            seen.append(label)
            return super().forward(z, time, label, w)

    spy = Denoiser(Spy(shape=(2,), num_classes=3, width=4, num_blocks=1, embedding_dim=4))
    stage = teacher_stage(spy)
    torch.manual_seed(0)
    result = stage.regression(batch(6000))
    label = batch(6000).label
    assert float((seen[0] == 3).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert torch.equal(seen[0][seen[0] != 3], label[seen[0] != 3])
    torch.testing.assert_close(result.target.x, batch(6000).x, rtol=0, atol=1e-5)
    assert result.w is None


# The shared base ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", each_stage(), ids=lambda stage: stage.name)
def test_a_step_depends_on_its_stream_and_number_alone(stage: Stage) -> None:
    torch.manual_seed(1)
    first = stage.training_step(batch(), 0)
    torch.manual_seed(2)
    torch.rand(5)
    again = stage.training_step(batch(), 17)
    assert torch.equal(first, again)
    stage.stream = "1/other"
    assert not torch.equal(first, stage.training_step(batch(), 0))


@pytest.mark.parametrize("stage", each_stage(), ids=lambda stage: stage.name)
def test_only_the_student_and_its_average_are_in_the_stage(stage: Stage) -> None:
    assert {key.split(".")[0] for key in stage.state_dict()} == {"student", "average"}
    configured = stage.configure_optimizers()
    assert isinstance(configured, dict)
    optimizer = configured["optimizer"]
    (group,) = optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in stage.student.parameters()}
    assert {id(p) for p in stage.parameters() if p.requires_grad} == {id(p) for p in stage.student.parameters()}
    assert stage.model is stage.average
    assert stage.average is not None
    assert not stage.average.training


def test_training_leaves_the_teacher_as_it_was() -> None:
    teacher = network()
    student = with_guidance_input(teacher)
    before = deepcopy(teacher.state_dict())
    fit(guidance_stage(student, Guided(Frozen(teacher), 3), images=160))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not torch.equal(student.state_dict()["network.inward.weight"], before["network.inward.weight"])


def test_without_a_decay_the_student_is_the_model() -> None:
    stage = teacher_stage(ema_decay=0.0)
    assert stage.average is None
    assert stage.model is stage.student


class Weights(lightning.Callback):
    """The student's weights after each step."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.taken.append({key: value.clone() for key, value in pl_module.student.state_dict().items()})


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_is_the_formula(decay: float) -> None:
    stage, weights = teacher_stage(ema_decay=decay, images=20 * 32), Weights()
    expected = {key: value.clone().double() for key, value in stage.student.state_dict().items()}
    fit(stage, weights)
    assert len(weights.taken) == 20
    for step, student in enumerate(weights.taken):
        beta = min(decay, (1 + step) / (10 + step))
        expected = {key: beta * value + (1 - beta) * student[key] for key, value in expected.items()}
    for key, value in stage.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, stage.student.state_dict()[key])


def test_one_fit_lowers_the_loss() -> None:
    stage = teacher_stage(network(), images=150 * 64, batch_size=64, ema_decay=0.9)

    def loss(model: Denoiser) -> float:
        judge = teacher_stage(deepcopy(model), stream="held out")
        return float(
            judge.training_step(
                MixtureData(num_classes=3, dim=2, std=0.1, num_reference=2000, batch_size=1, stream="0").reference(), 0
            ).detach()
        )

    before = loss(stage.student)
    fit(stage, batch_size=64)
    assert loss(stage.student) < 0.6 * before
    assert loss(stage.model) < 0.6 * before


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    plan = Training(**PLAN | {"images": 1000, "batch_size": 10, "warmup_images": 40})
    assert plan.num_steps == 100
    scales = [plan.learning_rate_scale(step) for step in range(101)]
    assert scales[:5] == pytest.approx([0.25, 0.5 * 0.99, 0.75 * 0.98, 0.97, 0.96])
    assert scales[4:] == pytest.approx([1 - step / 100 for step in range(4, 101)])
    assert scales[100] == 0
    assert Training(**PLAN | {"warmup_images": 0}).learning_rate_scale(0) == 1


def test_budgets_are_whole_batches_rounded_up() -> None:
    assert Training(**PLAN | {"images": 33, "batch_size": 32}).num_steps == 2
    assert Training(**PLAN | {"images": 32, "batch_size": 32}).num_steps == 1


# Non-finite losses --------------------------------------------------------------------------------------------------


class BreaksAbove(nn.Module):
    """Says NaN for w above 3.5 (or, without w, for times above 0.9)."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments = {"guidance_input": True, "num_classes": 3}
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        broken = time > 0.9 if w is None else w > 3.5
        return self.one * z.masked_fill(broken[:, None], torch.nan)


def test_a_non_finite_loss_names_stage_step_t_and_w(make_mixture: MakeMixture) -> None:
    stage = guidance_stage(Denoiser(BreaksAbove()), Guided(make_mixture().denoise, 3))
    stage.check_finite()  # nothing yet
    stage.training_step(batch(256), 0)
    with pytest.raises(NonFiniteLossError) as caught:
        stage.check_finite()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the loss must stay finite, got nan in stage guidance at step 0, t = 0.")
    assert float(message.split("w = ")[1].split(";")[0]) > 3.5
    assert message.endswith("lower stage.training.learning_rate (now 0.003)")


def test_a_non_finite_gradient_counts_as_one(make_mixture: MakeMixture) -> None:
    """A finite loss can have an infinite gradient, which would spoil the weights before the next loss is seen."""
    stage = teacher_stage()
    stage.training_step(batch(8), 0).backward()
    stage.configure_gradient_clipping()
    stage.check_finite()  # a good step
    stage.training_step(batch(8), 1).backward()
    gradient = next(p.grad for p in stage.student.parameters() if p.grad is not None)
    gradient.fill_(torch.inf)
    stage.configure_gradient_clipping()
    with pytest.raises(NonFiniteLossError, match=r"gradient norm (inf|nan)"):
        stage.check_finite()


def test_a_teachers_non_finite_loss_names_t() -> None:
    stage = teacher_stage(Denoiser(BreaksAbove()))
    stage.training_step(batch(256), 0)
    with pytest.raises(NonFiniteLossError, match=r"stage teacher at step 0, t = 0\.9\d+; lower"):
        stage.on_save_checkpoint({})


def test_a_mean_that_overflows_is_found_though_every_example_is_finite() -> None:
    class Huge(BreaksAbove):
        def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
            return self.one * torch.full_like(z, 1.5e19)

    stage = teacher_stage(Denoiser(Huge()), weight="snr_plus_one")
    assert stage.training_step(batch(), 0).detach() == float("inf")
    with pytest.raises(NonFiniteLossError, match="in stage teacher at step 0, t = 0"):
        stage.check_finite()


@pytest.mark.parametrize("stage", each_stage(), ids=lambda stage: stage.name)
def test_a_finite_loss_passes(stage: Stage) -> None:
    stage.training_step(batch(), 0)
    stage.check_finite()


def test_a_fit_stops_at_the_next_look() -> None:
    with pytest.raises(NonFiniteLossError, match="stage teacher at step 0"):
        fit(teacher_stage(Denoiser(BreaksAbove()), images=51 * 256, batch_size=256), batch_size=256)


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"batch_size": 0}, "1 <= batch_size <= images, got batch_size=0 and images=640"),
        ({"batch_size": 641}, "1 <= batch_size <= images, got batch_size=641 and images=640"),
        ({"learning_rate": 0.0}, "positive learning_rate .* got 0.0"),
        ({"learning_rate": float("inf")}, "positive learning_rate .* got inf"),
        ({"learning_rate": float("nan")}, "positive learning_rate .* got nan"),
        ({"gradient_clip": 0.0}, "positive .* gradient_clip .* 0.0 and 64"),
        ({"warmup_images": -1}, "warmup_images >= 0, got .* -1"),
        ({"ema_decay": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"ema_decay": -0.1}, "at least 0 and below 1, got -0.1"),
        ({"weight": "min_snr"}, "one of snr, truncated_snr, snr_plus_one, got 'min_snr'"),
        ({"guidance_weight": "w"}, "one of uniform, relative, got 'w'"),
    ],
)
def test_bad_training_is_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Training(**PLAN | change)


@pytest.mark.parametrize(("w_min", "w_max"), [(-0.5, 4.0), (3.0, 2.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_bad_guidance_ranges_are_refused(w_min: float, w_max: float) -> None:
    with pytest.raises(ValueError, match=rf"0 <= w_min <= w_max, got w_min={w_min:g}, w_max={w_max:g}; w = 0 is"):
        GuidanceRange(w_min, w_max)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_bad_label_dropout_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got {share}"):
        TeacherStage(
            student=network(),
            schedule=SCHEDULE,
            training=Training(**PLAN),
            stream="0",
            label_dropout=share,
        )


@pytest.mark.parametrize("ladder", [[], [4], [4, 4], [8, 4, 1], [3, 2, 1], [1, 2, 4], [2, 1, 0], [0, 0]])
def test_ladders_that_do_not_halve_are_refused(ladder: list[int]) -> None:
    with pytest.raises(ValueError, match="must halve") as caught:
        check_ladder(ladder)
    assert str(ladder) in str(caught.value)


@pytest.mark.parametrize("ladder", [[2, 1], [32, 16, 8, 4, 2, 1], [12, 6, 3]])
def test_ladders_that_halve_pass(ladder: list[int]) -> None:
    assert check_ladder(ladder) == ladder


# Why not Lightning's WeightAveraging --------------------------------------------------------------------------------


class Watched(Tensor):
    """A tensor that counts how often Python asks for its truth, which on a GPU waits for the device."""

    asked = 0

    def __bool__(self) -> bool:
        Watched.asked += 1
        return super().__bool__()


def test_torchs_averaged_model_reads_its_counter_every_update_and_averages_a_teacher() -> None:
    """What Lightning's WeightAveraging is made of. If this fails, torch has changed: reconsider our own average."""
    both = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": nn.Linear(2, 2)})
    averaged = AveragedModel(both, avg_fn=lambda average, current, _: torch.lerp(average, current, 0.1))
    assert {key.split(".")[1] for key in averaged.state_dict() if "." in key} == {"student", "teacher"}
    averaged.n_averaged = averaged.n_averaged.as_subclass(Watched)
    Watched.asked = 0
    for _ in range(3):
        averaged.update_parameters(both)
    assert Watched.asked >= 3
