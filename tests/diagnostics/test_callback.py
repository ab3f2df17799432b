"""The callback in real trainings of seconds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from students import (
    DATA,
    EXACT,
    TRAINING,
    Replaced,
    consistency_training,
    dmd2,
    encoder,
    guidance,
    perfect,
    rung,
    spoilt,
    teacher,
    times,
    tract,
)

from fewstep.data.mixture import MixtureData
from fewstep.data.noise import NoiseData
from fewstep.diagnostics import Diagnostics
from fewstep.diagnostics.callback import finite
from fewstep.diagnostics.file import FILE, read_diagnostics
from fewstep.diffusion.prediction import Denoise
from fewstep.methods.losses import Verdict
from fewstep.training.module import DistillationModule, NonFiniteLossError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Make = Callable[[], DistillationModule]


def fit(module: DistillationModule, *callbacks: lightning.Callback, checkpoint: Path | None = None) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=module.training_plan.num_steps,
        max_epochs=-1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = MixtureData(num_classes=3, dim=2, std=0.1, num_reference=10, batch_size=32, stream=module.stream)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)


def watch(folder: Path, count: int = 2, images_before: int = 0) -> Diagnostics:
    return Diagnostics(folder=folder, data=DATA, count=count, images_before=images_before)


class At(lightning.Callback):
    """Does something to the module after the batch that makes that many steps, or after every batch."""

    def __init__(self, step: int | None, action: Callable[[lightning.Trainer, Any], None]) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if self.step in (None, trainer.global_step):
            self.action(trainer, pl_module)


def weights(module: DistillationModule) -> torch.Tensor:
    networks = (module.student, *module.trained.values())
    return torch.cat([torch.nn.utils.parameters_to_vector(network.parameters()) for network in networks])


PHASES: dict[str, Make] = {
    "teacher": teacher,
    "guidance": guidance,
    "rung": lambda: rung(4),
    "stochastic": lambda: rung(4, "stochastic"),
    "encoder": lambda: encoder(2),
    "tract": tract,
    "consistency_training": consistency_training,
    "dmd2": dmd2,
    "dmd2 with a critic": lambda: dmd2(gan_weight=1.0),
}


@pytest.mark.parametrize("make", PHASES.values(), ids=PHASES)
def test_training_is_the_same_with_and_without(make: Make, tmp_path: Path) -> None:
    watched, plain = make(), make()
    fit(watched, watch(tmp_path))
    fit(plain)
    assert torch.equal(weights(watched), weights(plain))
    assert [p.requires_grad for p in watched.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert watched.student.training == plain.student.training
    method, sampling = watched.method, watched.phase.sampling
    has_teacher, has_target = watched.nets.teacher is not None, not method.name.startswith("dmd2")
    records = read_diagnostics(tmp_path / FILE)
    last = records[-1]
    assert [record["images"] for record in records] == [0, 320, 640]
    assert [record["rung"] for record in records] == [watched.phase.num_steps] * 3
    assert records[0]["gradient_norm"] is records[0]["gradient_norm_by_role"] is None
    assert set(last["gradient_norm_by_role"]) == set(method.moving(19))
    assert bool(last["gradient_norm"]) == ("student" in method.moving(19))
    assert all(len(record["gap_by_t"]) in ((2, 4, 8) if has_target else (0,)) for record in records)
    assert bool(last["step_errors"]) == (has_target and has_teacher)
    assert (last["samples"] is None) == (sampling.direction == "encode")
    assert (last["teacher_samples"] is None) == (sampling.direction == "encode" or not has_teacher)
    assert (last["gap_by_branch"] is not None) == (sampling.guidance == "two_evaluations")
    assert (last["data"] is None) == (method.inputs == "noise")
    assert "NaN" not in (tmp_path / FILE).read_text()


def test_a_method_without_target_or_data_is_measured_by_its_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = NoiseData(DATA.facts, batch_size=256, stream="probe")
    module = dmd2(student=Replaced(times(EXACT, 0.0)))  # its samples are all the mean of the data
    fit(module, Diagnostics(folder=tmp_path, data=noise, count=2))
    records = read_diagnostics(tmp_path / FILE)
    assert [(r["gap"], r["gap_by_t"], r["gap_by_w"], r["step_errors"], r["data"]) for r in records] == [
        (None, [], [], [], None)
    ] * 3
    assert len(records[-1]["samples_by_w"]) == len(records[-1]["teacher_samples_by_w"]) == 4
    assert records[-1]["teacher_samples"]["diversity"] > 0.1
    assert [[alarm["kind"] for alarm in record["alarms"]] for record in records] == [[], [], ["collapse"]]
    assert capsys.readouterr().out.count("alarm: collapse in dmd2 at 640 images: ") == 1


def test_gradient_norms_are_those_of_the_roles_that_moved_in_the_last_step(tmp_path: Path) -> None:
    module = dmd2()
    found: list[tuple[int, dict[str, float]]] = []
    seen = At(None, lambda trainer, module: found.append((trainer.global_step, dict(module.gradient_norms))))
    fit(module, seen, watch(tmp_path, count=20))
    records = read_diagnostics(tmp_path / FILE)[1:]
    for record, (step, norms) in zip(records, found, strict=True):
        moved = ("fake",) if step % 2 else ("student", "fake")
        assert record["gradient_norm_by_role"] == {role: pytest.approx(float(norms[role])) for role in moved}
        assert (record["gradient_norm"] is not None) == ("student" in moved)
        if record["gradient_norm"]:
            whole = sum(norm**2 for norm in record["gradient_norm"].values()) ** 0.5
            assert whole == pytest.approx(record["gradient_norm_by_role"]["student"], rel=1e-4)


def test_a_critics_record_is_its_verdict_of_the_last_step(tmp_path: Path) -> None:
    module = dmd2(gan_weight=1.0)
    seen: list[Any] = []
    keep = At(10, lambda trainer, module: seen.append((module.verdicts["critic"], dict(module.gradient_norms))))
    fit(module, keep, watch(tmp_path))
    first, middle, _ = read_diagnostics(tmp_path / FILE)
    assert first["critics"] == first["gradient_ratio"] == {}
    (verdict, norms) = seen[0]
    assert verdict.real.shape == verdict.generated.shape == (32,)
    own = middle["critics"]["critic"]
    assert own["accuracy"] == pytest.approx(float(((verdict.real > 0).sum() + (verdict.generated < 0).sum()) / 64))
    assert own["real_loss"] == pytest.approx(float(torch.log1p((-verdict.real).exp()).mean()), rel=1e-5)
    assert own["generated_loss"] == pytest.approx(float(torch.log1p(verdict.generated.exp()).mean()), rel=1e-5)
    ratio = {role: float(norms[role] / norms["student"]) for role in ("fake", "critic")}
    assert middle["gradient_ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize(("margin", "won"), [(5.0, True), (None, False)])
def test_a_critic_that_is_always_right_raises_its_alarm_once(
    margin: float | None, won: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def win(trainer: lightning.Trainer, module: Any) -> None:
        if margin is not None:
            module.verdicts["critic"] = Verdict(real=torch.full((32,), margin), generated=torch.full((32,), -margin))

    fit(dmd2(gan_weight=1.0), At(None, win), watch(tmp_path, count=4))
    raised = [[alarm["kind"] for alarm in record["alarms"]] for record in read_diagnostics(tmp_path / FILE)]
    assert ["victory" in kinds for kinds in raised] == [False, False, won, won, won]
    assert capsys.readouterr().out.count("alarm: victory of the critic in dmd2") == won


def test_a_measurement_moves_no_random_state(tmp_path: Path) -> None:
    module = rung(4, "stochastic")
    diagnostics = watch(tmp_path)

    def measure(trainer: lightning.Trainer, module: Any) -> None:
        before = torch.get_rng_state()
        diagnostics.measure(trainer, module)
        assert torch.equal(torch.get_rng_state(), before)

    fit(module, diagnostics, At(3, measure))
    assert [record["images"] for record in read_diagnostics(tmp_path / FILE)] == [0, 96, 320, 640]


def test_none_are_none(tmp_path: Path) -> None:
    module = rung(1)
    fit(module, watch(tmp_path, count=0))
    assert not (tmp_path / FILE).exists()


def ends_as(make: Callable[[Denoise], DistillationModule], student: Denoise | None, folder: Path) -> list[str]:
    """The kinds of alarm in a training whose student begins perfect and becomes `student` half-way."""
    module = make(EXACT)
    module.student.denoise = perfect(module)

    def spoil(trainer: lightning.Trainer, module: Any) -> None:
        module.student.denoise = student or module.student.denoise

    fit(module, watch(folder), At(5, spoil))
    records = read_diagnostics(folder / FILE)
    assert records[0]["gap"] < 1e-3
    assert records[0]["alarms"] == []
    return [alarm["kind"] for alarm in records[-1]["alarms"]]


def guided(denoise: Denoise) -> DistillationModule:
    return guidance(Replaced(denoise))


def one_step(denoise: Denoise) -> DistillationModule:
    return rung(1, student=Replaced(denoise))


@pytest.mark.parametrize("make", [guided, one_step])
def test_a_healthy_student_raises_no_alarm(
    make: Callable[[Denoise], DistillationModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_as(make, None, tmp_path) == []
    assert "alarm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("student", "kind"),
    [
        (times(EXACT, 2.5), "saturation"),  # louder
        (times(EXACT, 0.0), "collapse"),  # predicts the mean of all
        (spoilt(EXACT, lambda t, w: (t > 0.89) & (t < 0.93), by=5.0), "divergence"),  # between the times of its samples
    ],
)
def test_an_ill_student_raises_its_alarm_once_in_the_log_and_always_in_the_file(
    student: Denoise, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kind in ends_as(guided, student, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"alarm: {kind}")]
    assert len(lines) == 1
    assert lines[0].startswith(f"alarm: {kind} in guidance at 320 images: ")
    kinds_by_record = [[alarm["kind"] for alarm in record["alarms"]] for record in read_diagnostics(tmp_path / FILE)]
    assert [kind in kinds for kinds in kinds_by_record] == [False, True, True]
    if kind == "divergence":
        assert kinds_by_record[-1] == ["divergence"]


def test_a_toy_run_raises_no_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = guidance(Replaced(times(EXACT, 0.0)))
    for alarming in (True, False):
        watched = watch(tmp_path)
        watched.alarming = alarming
        fit(module, watched)
        assert [bool(record["alarms"]) for record in read_diagnostics(tmp_path / FILE)] == [False, False, alarming]
        assert ("alarm" in capsys.readouterr().out) == alarming


def test_a_student_broken_in_one_bin_of_t_shows_there_only_in_the_file(tmp_path: Path) -> None:
    ends_as(guided, spoilt(EXACT, lambda t, w: (t > 0.5) & (t < 0.625)), tmp_path)
    last = read_diagnostics(tmp_path / FILE)[-1]
    wrong = [(bin["low"], bin["high"]) for bin in last["gap_by_t"] if bin["gap"] > 1e-3]
    assert wrong == [(0.5, 0.625)]


class Killed(Exception):
    pass


def ill_guidance() -> DistillationModule:
    """One that diverges at once."""
    return guidance(training=replace(TRAINING, learning_rate=1.0, gradient_clip=100.0))


@pytest.mark.parametrize(("make", "divergences"), [(ill_guidance, 1), (dmd2, 0)])
def test_a_resumed_run_leaves_the_same_file_and_raises_no_alarm_twice(
    make: Make, divergences: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    fit(make(), watch(tmp_path / "whole", count=5))
    assert capsys.readouterr().out.count("alarm: divergence") == divergences

    checkpoint, folder = tmp_path / "last.ckpt", tmp_path / "killed"

    def die(*_: Any) -> None:
        raise Killed

    saving = At(12, lambda trainer, module: trainer.save_checkpoint(checkpoint))
    with pytest.raises(Killed):
        fit(make(), watch(folder, count=5), saving, At(17, die))
    assert len(read_diagnostics(folder / FILE)) == 5
    with (folder / FILE).open("a") as file:
        file.write('{"images": 5')  # cut short
    fit(make(), watch(folder, count=5), checkpoint=checkpoint)
    assert (folder / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert capsys.readouterr().out.count("alarm: divergence") == divergences


def test_a_rung_begun_again_keeps_the_rungs_before_it(tmp_path: Path) -> None:
    four, two = rung(4), rung(2)
    fit(four, watch(tmp_path, count=1))
    kept = (tmp_path / FILE).read_bytes()
    fit(two, watch(tmp_path, count=1, images_before=640))
    again = (tmp_path / FILE).read_bytes()
    assert again.startswith(kept)
    assert [(record["rung"], record["images"]) for record in read_diagnostics(tmp_path / FILE)] == [
        (4, 0),
        (4, 640),
        (2, 640),
        (2, 1280),
    ]
    two = rung(2)
    fit(two, watch(tmp_path, count=1, images_before=640))
    assert (tmp_path / FILE).read_bytes() == again


def test_a_loss_that_is_not_finite_is_reported_before_anything_is_sampled(tmp_path: Path) -> None:
    module = guidance()

    def poison(trainer: lightning.Trainer, module: Any) -> None:
        next(module.student.parameters()).data.fill_(torch.nan)

    with pytest.raises(NonFiniteLossError):
        fit(module, watch(tmp_path), At(5, poison))
    assert [json.loads(line)["images"] for line in (tmp_path / FILE).read_text().splitlines()] == [0]


def test_the_file_is_json_whatever_was_found() -> None:
    found = {"gap": float("nan"), "by": [{"low": 0.5, "gap": float("inf")}], "rung": None, "images": 3}
    assert finite(found) == {"gap": None, "by": [{"low": 0.5, "gap": None}], "rung": None, "images": 3}
