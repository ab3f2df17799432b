"""Interrupted equals uninterrupted: the same weights to the last bit, the same numbers, nothing done twice."""

import csv
import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import TINY, files_below, run_as_composed, train_as_typed
from safetensors.torch import load_file

from fewstep import load
from fewstep.runs import folders, pipeline
from fewstep.runs.config import Settings
from fewstep.system.threads import number_of_threads
from fewstep.tracking.names import IMAGES_PER_SECOND, PEAK_MEMORY
from fewstep.training.callbacks.training_log import TrainingLog
from fewstep.training.checkpointing import SaveCheckpoint, read_checkpoint

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")

BATCH, STEPS, RUNG_STEPS = 50, 100, 70
LEARNS = ("warmup_images=100", f"batch_size={BATCH}")  # weights that move, so that equality says something
PIPELINE = [
    *TINY,
    "model.network.dropout=0.1",
    f"trainer.max_images={BATCH * STEPS}",
    f"trainer.log_every_images={BATCH}",
    *(f"stage.{stage}.training.{setting}" for stage in ("teacher", "guidance", "progressive") for setting in LEARNS),
    f"stage.progressive.training.images={BATCH * RUNG_STEPS}",
    "stage.progressive.ladder=[8,4,2,1]",
    "stage.progressive.few_steps_factor=1",
    "stage.evaluate.w=[1]",
    "stage.evaluate.num_images=50",
    "stage.evaluate.teacher_steps=[2]",
    "stage.evaluate.guided_steps=[2]",
]
LAST_STEP = {"teacher": STEPS, "guidance": STEPS, "progressive": RUNG_STEPS}


class Interrupted(Exception):
    """Stands for whatever ends a process from outside."""


def rows_of(metrics: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, less the one column that is a matter of the clock."""
    with metrics.open(newline="") as file:
        return [
            {key: text for key, text in row.items() if key not in (IMAGES_PER_SECOND, PEAK_MEMORY)}
            for row in csv.DictReader(file)
        ]


def assert_same_models(ours: Path, theirs: Path) -> None:
    """The safetensors files below both folders hold the same tensors, to the last bit."""
    models, others = sorted(ours.rglob("*.safetensors")), sorted(theirs.rglob("*.safetensors"))
    assert [model.name for model in models] == [other.name for other in others] != []
    for model, other in zip(models, others, strict=True):
        tensors, expected = load_file(model), load_file(other)
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[name]), (model.name, name)


def kill_when(training: Callable[[], bool], settings: list[str]) -> None:
    """Run `python train.py *settings` in a process and SIGKILL it as soon as `training()`.

    Fails if it ends by itself or takes two minutes. The processes are forked from one that has done the imports.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fewstep.runs.pipeline", "hydra", "pytest"])
    process = processes.Process(target=train_as_typed, args=settings)
    process.start()
    try:
        deadline = time.monotonic() + 120
        while not training():
            assert process.is_alive(), "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_a_pipeline_killed_in_every_stage_ends_as_an_undisturbed_one(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    settings = [*PIPELINE, "trainer.checkpoint_seconds=0", f"outputs={killed}"]
    before: dict[str, tuple[str, dict[str, int]]] = {}

    for stage, first_kept in (("teacher", None), ("guidance", None), ("progressive", "model-4.safetensors")):
        found = lambda stage=stage: list((killed / "digits" / stage).glob("*/"))  # noqa: E731

        def in_training(folders=found, first_kept=first_kept) -> bool:
            # A checkpoint of some steps; on a ladder, of a rung after the first.
            return any(
                (folder / "metrics.csv").is_file()
                and (folder / "last.ckpt").is_file()
                and (first_kept is None or (folder / first_kept).is_file())
                and len(rows_of(folder / "metrics.csv")) > (5 if first_kept is None else RUNG_STEPS + 5)
                for folder in folders()
            )

        kill_when(in_training, settings)
        (folder,) = found()
        # Between the two renames of a save there is the one before alone.
        saved = next(file for file in (folder / "last.ckpt", folder / "previous.ckpt") if file.exists())
        checkpoint = read_checkpoint(saved)
        assert 0 < checkpoint["global_step"] < LAST_STEP[stage]
        assert not (folder / ("model.safetensors" if first_kept is None else "model-2.safetensors")).exists()
        finished = {str(path): path.stat().st_mtime_ns for path in killed.rglob("*.safetensors")}
        seen = checkpoint["global_step"] + (0 if first_kept is None else RUNG_STEPS)
        lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
        before[stage] = "".join(lines[: 1 + seen]), finished

    run_as_composed(*settings)
    run_as_composed(*PIPELINE, f"outputs={undisturbed}")  # checkpoints once a minute: that changes nothing either

    assert_same_models(killed, undisturbed)
    for stage, (metrics, finished) in before.items():
        (folder,), (expected,) = (list((root / "digits" / stage).glob("*/")) for root in (killed, undisturbed))
        # Rates are times: had any step before the checkpoint been done again, its row would read otherwise.
        assert metrics.count("\n") > 5
        assert (folder / "metrics.csv").read_text().startswith(metrics)
        assert rows_of(folder / "metrics.csv") == rows_of(expected / "metrics.csv")
        assert {path: Path(path).stat().st_mtime_ns for path in finished} == finished  # what was finished was let be
        assert files_below(folder) == files_below(expected)  # no temporary file is left
    assert len(list((killed / "digits" / "pipeline").glob("*/"))) == 1


STAGE_SETTINGS = [
    *TINY,
    "trainer.checkpoint_seconds=0",
    f"trainer.max_images={20 * BATCH}",
    f"trainer.log_every_images={3 * BATCH}",
    *(f"stage.training.{setting}" for setting in LEARNS),
]


def teacher(outputs: Path, *settings: str) -> None:
    run_as_composed("stage=teacher", *STAGE_SETTINGS, f"outputs={outputs}", *settings)


def folder_of(outputs: Path, stage: str = "teacher") -> Path:
    (folder,) = (outputs / "digits" / stage).glob("*/")
    return folder


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, *, saved: bool = True) -> None:
    """Make the next training end at `step`, just after or just before its checkpoint."""
    whole = SaveCheckpoint.on_train_batch_end

    def broken(self, trainer, *others):
        if saved or trainer.global_step < step:
            whole(self, trainer, *others)
        if trainer.global_step == step:
            raise Interrupted

    monkeypatch.setattr(SaveCheckpoint, "on_train_batch_end", broken)


def interrupted_teacher(monkeypatch: pytest.MonkeyPatch, outputs: Path, *settings: str, step: int = 3) -> None:
    """Train until `step` is saved, and no further."""
    with monkeypatch.context() as patched:
        interrupt(patched, step)
        with pytest.raises(Interrupted):
            teacher(outputs, *settings)


@pytest.fixture(scope="module")
def undisturbed(as_users_run, tmp_path_factory) -> dict[float, Path]:
    """Folders of undisturbed teachers, by dropout."""
    made = {}
    for dropout in (0.0, 0.3):
        outputs = tmp_path_factory.mktemp("undisturbed")
        teacher(outputs, f"model.network.dropout={dropout}")
        made[dropout] = folder_of(outputs)
    return made


def test_what_must_be_equal_is_not_trivial(undisturbed):
    plain, dropped = (load_file(folder / "model.safetensors") for folder in undisturbed.values())
    assert any(not torch.equal(plain[name], dropped[name]) for name in plain)  # dropout does something
    state = read_checkpoint(undisturbed[0.3] / "last.ckpt")["state_dict"]
    for name, tensor in dropped.items():
        assert torch.equal(tensor, state[f"averages.model.network.network.{name}"])  # what is saved is the average ...
    assert any(
        not torch.equal(tensor, state[f"student.network.{name}"]) for name, tensor in dropped.items()
    )  # ... which


@pytest.mark.parametrize(
    ("step", "saved", "dropout"),
    [(1, True, 0.0), (7, True, 0.3), (8, False, 0.0), (20, True, 0.3), (20, False, 0.0)],
    ids=["first-step", "dropout", "unsaved-step", "trained-but-no-model", "last-step-unsaved"],
)
def test_a_teacher_goes_on_from_any_step(tmp_path, monkeypatch, undisturbed, step, saved, dropout):
    with monkeypatch.context() as patched:
        interrupt(patched, step, saved=saved)
        with pytest.raises(Interrupted):
            teacher(tmp_path, f"model.network.dropout={dropout}")
    folder = folder_of(tmp_path)
    checkpoint = folder / "last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == (step if saved else step - 1)
    assert not (folder / "model.safetensors").exists()

    done = []
    counted = TrainingLog.on_train_batch_end
    monkeypatch.setattr(TrainingLog, "on_train_batch_end", lambda *a: (done.append(1), counted(*a))[1])
    teacher(tmp_path, f"model.network.dropout={dropout}")
    assert len(done) == 20 - (step if saved else step - 1)
    assert_same_models(tmp_path, undisturbed[dropout])
    assert rows_of(folder / "metrics.csv") == rows_of(undisturbed[dropout] / "metrics.csv")
    assert folder_of(tmp_path) == folder


def test_interrupted_twice(tmp_path, monkeypatch, undisturbed):
    for step in (5, 11):
        interrupted_teacher(monkeypatch, tmp_path, step=step)
    teacher(tmp_path)
    assert_same_models(tmp_path, undisturbed[0.0])


def test_it_goes_on_with_the_threads_that_it_began_with(tmp_path, monkeypatch, undisturbed, capsys):
    """Sums that two threads divide round otherwise than those of one."""
    interrupted_teacher(monkeypatch, tmp_path)
    began, seen = torch.get_num_threads(), []
    counted = TrainingLog.on_train_batch_end
    monkeypatch.setattr(
        TrainingLog, "on_train_batch_end", lambda *a: (seen.append(torch.get_num_threads()), counted(*a))[1]
    )
    monkeypatch.setattr(folders, "cores", lambda: began + 1)
    with number_of_threads(began + 1):
        teacher(tmp_path)
        assert torch.get_num_threads() == began + 1
    assert {*seen} == {began}
    assert f"{began} thread(s), as the run began with and not {began + 1}" in capsys.readouterr().out
    assert_same_models(tmp_path, undisturbed[0.0])


@pytest.mark.slow
def test_a_pipeline_that_was_stopped_goes_on_in_its_folders(tmp_path, monkeypatch):
    """Not killed but stopped, as by Ctrl-C: clearing up must not take the pipeline's folder with it."""
    settings = (*PIPELINE, "trainer.max_images=200", "trainer.checkpoint_seconds=0", f"outputs={tmp_path}")
    train = pipeline.train

    def interrupted(settings: Settings, name: str) -> list[Path]:
        if settings.name == "progressive":
            raise KeyboardInterrupt
        return train(settings, name)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_as_composed(*settings)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model*.safetensors")}
    assert len(made) == 2
    run_as_composed(*settings)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    for stage in ("pipeline", "teacher", "guidance", "progressive"):
        folder_of(tmp_path, stage)
    assert (folder_of(tmp_path, "pipeline") / "quality.json").is_file()


def test_a_run_with_other_settings_is_another_run(tmp_path, monkeypatch):
    interrupted_teacher(monkeypatch, tmp_path)
    first = folder_of(tmp_path)
    kept = (first / "last.ckpt").read_bytes()
    teacher(tmp_path, "seed=1")
    assert len(list((tmp_path / "digits" / "teacher").glob("*/"))) == 2
    assert (first / "last.ckpt").read_bytes() == kept


def guidance(outputs: Path) -> Path:
    """Distil the newest teacher; give the folder."""
    run_as_composed("stage=guidance", *STAGE_SETTINGS, f"outputs={outputs}")
    return folder_of(outputs, "guidance")


@pytest.mark.slow
def test_a_student_does_not_go_on_under_another_teacher(tmp_path, monkeypatch):
    """A newer teacher was made meanwhile: the same command starts the student anew, as if there were no older one."""
    teacher(tmp_path / "a", "seed=1")
    teacher(tmp_path / "a")
    teacher(tmp_path / "b")
    for outputs in ("a", "b"):  # equal configurations but for the outputs
        assert len(list((tmp_path / outputs).rglob("model.safetensors"))) == (2 if outputs == "a" else 1)
    newer, older = sorted((tmp_path / "a" / "digits" / "teacher").glob("*/"), reverse=True)
    newer.rename(tmp_path / "later")
    with monkeypatch.context() as patched:
        interrupt(patched, 3)
        with pytest.raises(Interrupted):
            guidance(tmp_path / "a")
    assert (folder_of(tmp_path / "a", "guidance") / "last.ckpt").is_file()
    (tmp_path / "later").rename(newer)
    made = guidance(tmp_path / "a")
    (parent,) = load(made / "model.safetensors").card.parents
    assert (made / parent.path).resolve() == newer / "model.safetensors" != older / "model.safetensors"
    assert_same_models(made, guidance(tmp_path / "b"))


@pytest.mark.slow
def test_a_finished_ladder_is_kept_while_its_parent_is_the_same(tmp_path):
    teacher(tmp_path)
    guidance(tmp_path)
    command = ("stage=progressive", *STAGE_SETTINGS, "stage.ladder=[4,2,1]", f"outputs={tmp_path}")
    run_as_composed(*command)
    rungs = {path: path.stat().st_mtime_ns for path in folder_of(tmp_path, "progressive").glob("model-*.safetensors")}
    assert len(rungs) == 2
    run_as_composed(*command)
    assert {path: path.stat().st_mtime_ns for path in folder_of(tmp_path, "progressive").glob("model-*")} == rungs
    guided = folder_of(tmp_path, "guidance") / "model.safetensors"
    guided.unlink()
    run_as_composed("stage=guidance", *STAGE_SETTINGS, "stage.w_max=2", f"outputs={tmp_path}")
    run_as_composed(*command)
    assert len(list((tmp_path / "digits" / "progressive").glob("*/"))) == 2


@pytest.mark.slow
def test_a_damaged_newer_parent_does_not_hide_an_older_one(tmp_path):
    teacher(tmp_path)
    good = folder_of(tmp_path)
    damaged = good.with_name("9999-01-01_00-00-00")
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:1000])
    made = guidance(tmp_path)
    (parent,) = load(made / "model.safetensors").card.parents
    assert (made / parent.path).resolve() == good / "model.safetensors"


class Malicious:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def pickled(folder: Path) -> None:
    (folder / "last.ckpt").write_bytes(pickle.dumps(Malicious(folder / "opened")))


def saved_with_code(folder: Path) -> None:
    torch.save({"global_step": 3, "hook": Malicious(folder / "opened")}, folder / "last.ckpt")


def truncated(folder: Path) -> None:
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])


def emptied(folder: Path) -> None:
    (folder / "last.ckpt").write_bytes(b"")


def flipped(folder: Path) -> None:
    last = folder / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)


DAMAGES = pytest.mark.parametrize("damage", [pickled, saved_with_code, truncated, emptied, flipped])


@pytest.mark.slow
@DAMAGES
def test_the_checkpoint_before_serves_for_one_that_cannot_be_trusted(
    tmp_path, monkeypatch, commands, undisturbed, damage
):
    interrupted_teacher(monkeypatch, tmp_path)
    folder = folder_of(tmp_path)
    good = (folder / "previous.ckpt").read_bytes()
    damage(folder)
    bad = (folder / "last.ckpt").read_bytes()
    monkeypatch.setattr(SaveCheckpoint, "on_train_batch_end", lambda *_: None)
    monkeypatch.setattr(SaveCheckpoint, "on_train_end", lambda *_: None)
    result = commands.train("stage=teacher", *STAGE_SETTINGS, f"outputs={tmp_path}")
    (line,) = result.err.splitlines()
    assert line.startswith(f"warning: {folder / 'last.ckpt'} is damaged")
    assert line.endswith("it is now damaged.ckpt, and the one before it is used, of step 2")
    assert result.status == 0
    assert_same_models(tmp_path, undisturbed[0.0])
    assert (folder / "last.ckpt").read_bytes() == good  # it took the damaged one's place before anything else was done
    assert (folder / "damaged.ckpt").read_bytes() == bad
    assert not (folder / "opened").exists()


def test_between_the_two_renames_of_a_checkpoint_nothing_is_lost(tmp_path, monkeypatch, undisturbed):
    interrupted_teacher(monkeypatch, tmp_path)
    folder = folder_of(tmp_path)
    (folder / "last.ckpt").unlink()
    seen = []
    started = TrainingLog.on_train_start
    monkeypatch.setattr(TrainingLog, "on_train_start", lambda s, t, m: (seen.append(t.global_step), started(s, t, m)))
    teacher(tmp_path)
    assert seen == [2]
    assert_same_models(tmp_path, undisturbed[0.0])


@pytest.mark.slow
@DAMAGES
def test_a_checkpoint_that_cannot_be_trusted_is_refused(tmp_path, monkeypatch, commands, damage):
    """Where there is none before it."""
    interrupted_teacher(monkeypatch, tmp_path, step=1)
    folder = folder_of(tmp_path)
    assert not (folder / "previous.ckpt").exists()
    damage(folder)
    before = files_below(tmp_path)
    settings = ["stage=teacher", *STAGE_SETTINGS, f"outputs={tmp_path}"]
    result = commands.train(*settings)
    result.is_one_error(str(folder / "last.ckpt"), "delete it and run the same command again")
    assert files_below(tmp_path) == before
    assert not (folder / "opened").exists()
    (folder / "last.ckpt").unlink()  # what the line says to do works
    assert commands.train(*settings).status == 0
    assert (folder / "model.safetensors").is_file()
