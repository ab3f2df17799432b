"""The callback in real trainings of seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from students import DATA, EXACT, Says, encoder, guidance_stage, perfect, rung, spoilt, teacher_stage, times

from fewstep.data.mixture import MixtureData
from fewstep.diagnostics import Diagnostics
from fewstep.diagnostics.file import FILE, read_diagnostics
from fewstep.diagnostics.watch import finite
from fewstep.diffusion.prediction import Denoise
from fewstep.methods import NonFiniteLossError, ProgressiveStage, Stage

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def fit(stage: Stage, *callbacks: lightning.Callback, checkpoint: Path | None = None) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=stage.training_plan.num_steps,
        max_epochs=-1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = MixtureData(num_classes=3, dim=2, std=0.1, num_reference=10, batch_size=32, stream=stage.stream)
    trainer.fit(stage, data, ckpt_path=checkpoint, weights_only=True)


def watch(folder: Path, stage: Stage, count: int = 2, images_before: int = 0) -> Diagnostics:
    number = getattr(stage, "num_steps", None)
    return Diagnostics(folder=folder, data=DATA, count=count, images_before=images_before, rung=number)


class At(lightning.Callback):
    """Does something to the stage after the batch that makes that many steps."""

    def __init__(self, step: int, action: Callable[[lightning.Trainer, Any], None]) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.action(trainer, pl_module)


def weights(stage: Stage) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(stage.student.parameters())


@pytest.mark.parametrize(
    "make", [teacher_stage, guidance_stage, lambda: rung(4), lambda: rung(4, "stochastic"), lambda: encoder(2)]
)
def test_training_is_the_same_with_and_without(make: Callable[[], Stage], tmp_path: Path) -> None:
    watched, plain = make(), make()
    fit(watched, watch(tmp_path, watched))
    fit(plain)
    assert torch.equal(weights(watched), weights(plain))
    assert [p.requires_grad for p in watched.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert watched.student.training == plain.student.training
    looks = read_diagnostics(tmp_path / FILE)
    assert [look["images"] for look in looks] == [0, 320, 640]
    assert looks[0]["gradient_norm"] is None
    assert looks[-1]["gradient_norm"]
    assert all(len(look["gap_by_t"]) in (2, 4, 8) for look in looks)
    assert bool(looks[-1]["step_errors"]) == isinstance(watched, ProgressiveStage)
    assert (looks[-1]["samples"] is None) == (watched.name == "encoder")
    assert (looks[-1]["teacher_samples"] is None) == (watched.name in ("encoder", "teacher"))
    assert (looks[-1]["gap_by_branch"] is not None) == (watched.name == "teacher")
    assert "NaN" not in (tmp_path / FILE).read_text()


def test_a_look_moves_no_random_state(tmp_path: Path) -> None:
    stage = rung(4, "stochastic")
    diagnostics = watch(tmp_path, stage)

    def look(trainer: lightning.Trainer, stage: Any) -> None:
        before = torch.get_rng_state()
        diagnostics.look(trainer, stage)
        assert torch.equal(torch.get_rng_state(), before)

    fit(stage, diagnostics, At(3, look))
    assert [look["images"] for look in read_diagnostics(tmp_path / FILE)] == [0, 96, 320, 640]


def test_none_are_none(tmp_path: Path) -> None:
    stage = rung(1)
    fit(stage, watch(tmp_path, stage, count=0))
    assert not (tmp_path / FILE).exists()


def ends_as(make: Callable[[Denoise], Stage], student: Denoise | None, folder: Path) -> list[str]:
    """The kinds of alarm in a training whose student begins perfect and becomes `student` half-way."""
    stage = make(EXACT)
    stage.student.denoise = perfect(stage)

    def spoil(trainer: lightning.Trainer, stage: Any) -> None:
        stage.student.denoise = student or stage.student.denoise

    fit(stage, watch(folder, stage), At(5, spoil))
    looks = read_diagnostics(folder / FILE)
    assert looks[0]["gap"] < 1e-3
    assert looks[0]["alarms"] == []
    return [alarm["kind"] for alarm in looks[-1]["alarms"]]


def guided(denoise: Denoise) -> Stage:
    return guidance_stage(Says(denoise))


def one_step(denoise: Denoise) -> Stage:
    return rung(1, student=Says(denoise))


@pytest.mark.parametrize("make", [guided, one_step])
def test_a_healthy_student_raises_no_alarm(
    make: Callable[[Denoise], Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_as(make, None, tmp_path) == []
    assert "alarm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("student", "kind"),
    [
        (times(EXACT, 2.5), "saturation"),  # louder
        (times(EXACT, 0.0), "collapse"),  # says the mean of all
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
    told = [[alarm["kind"] for alarm in look["alarms"]] for look in read_diagnostics(tmp_path / FILE)]
    assert [kind in kinds for kinds in told] == [False, True, True]
    if kind == "divergence":
        assert told[-1] == ["divergence"]


def test_a_toy_run_raises_no_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = guidance_stage(Says(times(EXACT, 0.0)))
    for alarming in (True, False):
        watched = watch(tmp_path, stage)
        watched.alarming = alarming
        fit(stage, watched)
        assert [bool(look["alarms"]) for look in read_diagnostics(tmp_path / FILE)] == [False, False, alarming]
        assert ("alarm" in capsys.readouterr().out) == alarming


def test_a_student_broken_in_one_bin_of_t_shows_there_only_in_the_file(tmp_path: Path) -> None:
    ends_as(guided, spoilt(EXACT, lambda t, w: (t > 0.5) & (t < 0.625)), tmp_path)
    last = read_diagnostics(tmp_path / FILE)[-1]
    wrong = [(bin["low"], bin["high"]) for bin in last["gap_by_t"] if bin["gap"] > 1e-3]
    assert wrong == [(0.5, 0.625)]


class Killed(Exception):
    pass


def test_a_resumed_run_leaves_the_same_file_and_raises_no_alarm_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = {"ema_decay": 0.0, "learning_rate": 1.0, "gradient_clip": 100.0}  # it diverges at once
    whole = guidance_stage(**ill)
    (tmp_path / "whole").mkdir()
    fit(whole, watch(tmp_path / "whole", whole, count=5))
    assert capsys.readouterr().out.count("alarm: divergence") == 1

    checkpoint, folder = tmp_path / "last.ckpt", tmp_path / "killed"

    def die(*_: Any) -> None:
        raise Killed

    killed = guidance_stage(**ill)
    saving = At(12, lambda trainer, stage: trainer.save_checkpoint(checkpoint))
    with pytest.raises(Killed):
        fit(killed, watch(folder, killed, count=5), saving, At(17, die))
    assert len(read_diagnostics(folder / FILE)) == 5
    with (folder / FILE).open("a") as file:
        file.write('{"images": 5')  # cut short
    resumed = guidance_stage(**ill)
    fit(resumed, watch(folder, resumed, count=5), checkpoint=checkpoint)
    assert (folder / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert capsys.readouterr().out.count("alarm: divergence") == 1


def test_a_rung_begun_again_keeps_the_rungs_before_it(tmp_path: Path) -> None:
    four, two = rung(4), rung(2)
    fit(four, watch(tmp_path, four, count=1))
    kept = (tmp_path / FILE).read_bytes()
    fit(two, watch(tmp_path, two, count=1, images_before=640))
    again = (tmp_path / FILE).read_bytes()
    assert again.startswith(kept)
    assert [(look["rung"], look["images"]) for look in read_diagnostics(tmp_path / FILE)] == [
        (4, 0),
        (4, 640),
        (2, 640),
        (2, 1280),
    ]
    two = rung(2)
    fit(two, watch(tmp_path, two, count=1, images_before=640))
    assert (tmp_path / FILE).read_bytes() == again


def test_a_loss_that_is_not_finite_is_said_before_anything_is_sampled(tmp_path: Path) -> None:
    stage = guidance_stage()

    def poison(trainer: lightning.Trainer, stage: Any) -> None:
        next(stage.student.parameters()).data.fill_(torch.nan)

    with pytest.raises(NonFiniteLossError):
        fit(stage, watch(tmp_path, stage), At(5, poison))
    assert [json.loads(line)["images"] for line in (tmp_path / FILE).read_text().splitlines()] == [0]


def test_the_file_is_json_whatever_was_found() -> None:
    found = {"gap": float("nan"), "by": [{"low": 0.5, "gap": float("inf")}], "rung": None, "images": 3}
    assert finite(found) == {"gap": None, "by": [{"low": 0.5, "gap": None}], "rung": None, "images": 3}
