"""Each mistake a user can make: one line that says rule, value and what to do, exit status 2, nothing left behind."""

import errno
import os
import pickle
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf
from running import ROOT, TINY, Commands, config_of, files_below, make_chain, run_as_composed
from safetensors.torch import save_file

from fewstep.runs.build import build_method
from fewstep.runs.config import Settings
from fewstep.runs.pipeline import check_pipeline
from fewstep.training.checkpointing import SaveCheckpoint, read_checkpoint

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")

STAGES = ROOT / "conf" / "stage"  # read, since composing each would take every process of the tests seconds
UNGUIDED = {"guidance", "two_guidances", "flow_trajectory", "noise_aware_judge"}  # their parent has no weight
STUDENTS = sorted({file.stem for file in STAGES.glob("*.yaml") if "\nadapter: null" in file.read_text()} - UNGUIDED)


@pytest.fixture(scope="module")
def chain(as_users_run, tmp_path_factory) -> dict[str, Path]:
    """Files of a teacher, a guided student and the rungs of 2 and 1 steps."""
    return make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def train(commands: Commands, tmp_path: Path):
    """`python train.py ...` into an empty outputs folder; refused, it must leave no file there."""

    def run(*settings: str, words: tuple[str, ...]) -> None:
        commands.train(*TINY, f"outputs={tmp_path / 'outputs'}", *settings).is_one_error(*words)
        assert files_below(tmp_path / "outputs") == []

    return run


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--nonsense"], ["--nonsense", "--help"]),
        (["stage=nonsense"], ["stage/nonsense", "evaluate", "pipeline progressive", "--cfg job"]),
        (["dataset=nonsense"], ["dataset/nonsense", "digits"]),
        (["recipe=nonsense"], ["recipe", "digits_teacher", "nonsense", "~recipe"]),
        (["stagee=teacher"], ["stagee", "--cfg job"]),
        (["stage.teacher.training.imagess=3"], ["imagess", "--cfg job"]),
        (["stage=teacher", "stage.label_dropout=2"], ["stage.label_dropout must be a number from 0 to 1", "2"]),
        (
            ["stage=teacher", "stage.training.images=0"],
            ["stage.training.images must be a whole number of at least 1", "0"],
        ),
        (["stage=teacher", "stage.training.images=many"], ["stage.training.images must be a whole number", "'many'"]),
        (["stage=teacher", "stage.label_dropout=x"], ["stage.label_dropout must be a number", "'x'"]),
        (
            ["stage=teacher", "stage.training.batch_size=2.5"],
            ["batch_size must be a whole number", "2.5"],
        ),
        (["stage=progressive", "stage.ladder=8"], ["stage.ladder must be a list", "8"]),
        (
            ["stage=progressive", "stage.ladder=[4.5,2.25]"],
            ["ladder must be a list of whole numbers", "[4.5, 2.25]"],
        ),
        (["seed=abc"], ["seed must be a whole number", "'abc'"]),
        (["seed=-1"], ["seed must be a whole number from 0", "-1"]),
        (["seed=" + "1" * 23], ["seed must be a whole number", "1" * 23]),
        (["trainer.precision=16-mixed"], ["trainer.precision=16-mixed", "on a GPU", "bf16-mixed"]),
        (["stage=teacher", "stage.training.weight=heavy"], ["snr_plus_one", "'heavy'"]),
        (["stage=teacher", "model.prediction=z"], ["x, eps, v", "'z'"]),
        (["stage=guidance", "stage.w_min=5"], ["0 <= w_min <= w_max", "w_min=5", "w_max=4"]),
        (["stage=guidance", "stage.w_min=-1"], ["0 <= w_min <= w_max", "w_min=-1"]),
        (["stage.guidance.w_min=5"], ["0 <= w_min <= w_max", "w_min=5"]),
        (["stage=progressive", "stage.ladder=[32,16,5]"], ["must halve", "[32, 16, 5]"]),
        (["stage.progressive.ladder=[8]"], ["must halve", "[8]"]),
        (["stage.progressive.ladder=[4,2,1,0]"], ["must halve", "[4, 2, 1, 0]"]),
        (["stage.evaluate.w=[-1]"], ["w >= 0", "[-1]"]),
        (["stage.evaluate.teacher_steps=[]"], ["steps of at least 1", "[]"]),
        (["method=nonsense"], ["stage/nonsense", "tract"]),
        (["stage=tract", "stage.time_schedule=[64,10,1]"], ["divisor", "[64, 10, 1]"]),
        (["stage=tract", "stage.self_teacher_decay=1.5"], ["self_teacher_decay", "below 1", "1.5"]),
        (["method=tract", "stage.tract.time_schedule=[8]"], ["stage.time_schedule must fall", "[8]"]),
        (["stage=consistency", "stage.levels=[1.0,1.5]"], ["stage.levels", "(0, 1]", "1.5"]),
        (["stage=consistency", "stage.levels=[0.5,1.0]"], ["stage.levels", "strictly decrease", "1 after 0.5"]),
        (["stage=consistency", "stage.levels=[1.0,0.0]"], ["stage.levels", "(0, 1]", "got 0"]),
        (["stage=consistency", "stage.metric=lpips"], ["stage.metric must be one of l2, pseudo_huber", "'lpips'"]),
        (["stage=consistency", "stage.num_levels=1"], ["stage.num_levels must be a whole number of at least 2", "1"]),
        (["stage=dmd2", "teacher=none"], ["stage=dmd2 needs a teacher", "teacher=null"]),
        (["method=dmd2", "teacher=none"], ["stage=dmd2 needs a teacher", "teacher=null"]),
        (["stage=dmd2", "~stage.training.roles.fake"], ["stage.training.roles.fake.learning_rate must be given"]),
        (["stage=dmd2", "stage.fake_updates=0"], ["stage.fake_updates must be a whole number of at least 1", "0"]),
        (["stage=dmd2", "stage.t_min=-0.5"], ["0 <= t_min < t_max <= 1", "-0.5"]),
        (["model.prediction=eps"], ["the teacher of stage=progressive", "t = 1", "eps", "stage.clip_target=true"]),
        (
            ["model.prediction=eps", "stage.guidance.prediction=v", "stage.progressive.prediction=eps"],
            ["a student of stage=progressive", "t = 1", "use stage.prediction=v"],
        ),
        (["stage.stages=[teacher,nowhere]"], ["stage.stages", "'nowhere'"]),
        (["+stage.seeds.nowhere=1"], ["stage.seeds.nowhere", "no stage", "progressive"]),
        (["stage.seeds.teacher=x"], ["stage.seeds", "'x'"]),
        (["stage=guidance"], ["needs a teacher", "stage=teacher dataset=digits", "teacher=PATH"]),
        (["stage=progressive"], ["needs a guided", "stage=guidance dataset=digits", "teacher=PATH"]),
        (["stage=evaluate"], ["needs finished few-step students", "stage=progressive dataset=digits", "teacher=PATH"]),
        (["stage=guidance", "teacher=exact"], ["closed form", "digits has none", "dataset=mixture"]),
        (["teacher=exact"], ["closed form", "digits has none", "dataset=mixture"]),
        (["stage=guidance", "teacher=/no/such/file"], ["/no/such/file", "fewstep info"]),
        (["trainer.max_images=0"], ["trainer.max_images must be at least 1", "0"]),
        (["trainer.checkpoint_seconds=-1", "stage=teacher"], ["checkpoint_seconds", "-1"]),
        (["trainer.log_every_images=0", "stage=teacher"], ["log_every_images", "0"]),
    ],
    ids=lambda value: " ".join(value) if value[0] == value[-1] or "=" in value[0] else "",
)
def test_settings(train, settings, words):
    train(*settings, words=tuple(words))


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("teacher", ["stage=guidance", "dataset=mixture"], ["it makes digits", "mixture"]),
        ("teacher", ["stage=guidance", "model.network.width=48"], ["network is another", "model="]),
        ("teacher", ["stage=guidance", "model.prediction=eps"], ["it predicts v", "model.prediction is eps"]),
        ("teacher", ["stage=guidance", "schedule.log_snr_max=10"], ["its schedule is", "log_snr_max=10"]),
        ("teacher", ["stage=progressive"], ["it is a teacher model", "guided"]),
        ("guided", ["stage=guidance"], ["it is a guided model", "teacher"]),
        ("2", ["stage=progressive", "stage.ladder=[4,2]"], ["model of 2 steps", "student of 4 steps", "begins"]),
        ("2", ["stage=consistency"], ["it is a progressive model of 2 steps", "needs a guided student or a teacher"]),
        ("teacher", ["stage=dmd2"], ["stage.w_min and stage.w_max must be given", "guided by two evaluations"]),
        ("guided", ["stage=tract", "stage.w_max=9", "stage.w_min=0"], ["parent's range [0, 4]", "0 and 9"]),
        ("guided", ["stage=lcm", "stage.prediction=eps"], ["evaluated at t = 1", "from eps", "use stage.prediction=v"]),
        ("guided", ["stage=progressive", "stage.prediction=eps"], ["evaluated at t = 1", "use stage.prediction=v"]),
        ("guided", ["stage=boot", "stage.prediction=eps"], ["evaluated at t = 1", "use stage.prediction=v"]),
        ("guided", ["stage=scm", "stage.prediction=x"], ["predicts x", "identity at t = 0", "stage.prediction=v"]),
        ("guided", ["stage=ect", "stage.prediction=x"], ["predicts x", "identity at t = 0", "stage.prediction=v"]),
        ("1", ["stage=evaluate", "dataset=mixture"], ["makes digits", "mixture"]),
    ],
)
def test_parents_that_do_not_fit(train, chain, model, settings, words):
    train(*settings, f"teacher={chain[model]}", words=tuple(words))


@pytest.fixture
def refused(tmp_path: Path):
    """Run what settings compose, refused in one line with no file left; without a command line, which is faster."""

    def run(*settings: str, words: tuple[str, ...]) -> None:
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            run_as_composed(*TINY, f"outputs={tmp_path / 'outputs'}", *settings)
        line = str(refusal.value)
        assert "\n" not in line
        assert all(word in line for word in words), line
        assert files_below(tmp_path / "outputs") == []

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_every_method_refuses_what_none_can_do(refused, chain, name):
    """Weights outside its parent's range, a student that is no network, levels and steps that do not fall."""
    stage = config_of(f"stage={name}", "~recipe").stage
    wanted = build_method(cast(dict[str, Any], OmegaConf.to_container(stage, resolve=True))).parent()
    takes_w = wanted is not None and wanted.guidance[0] == "input"
    own = (f"stage={name}", f"teacher={chain['guided' if takes_w else 'teacher']}")
    assert {"w_max", "student"} & {*stage}  # so that there is something to refuse
    if "w_max" in stage and takes_w:
        refused(*own, "stage.w_min=0", "stage.w_max=9", words=("parent's range [0, 4]", "0 and 9"))
    if "student" in stage:
        refused(*own, "stage.student={wide:16}", words=("stage.student", "'wide'", "width"))
        refused(*own, "stage.student={width:16}", "stage.adapter=lora", words=("stage.adapter", "use one of them"))
    for key, words in {
        "levels": ("stage.levels", "strictly decrease"),
        "ladder": ("stage.ladder", "must halve"),
        "time_schedule": ("stage.time_schedule", "must fall"),
    }.items():
        if key in stage:
            refused(*own, f"stage.{key}=[1,1]", words=words)


@pytest.mark.parametrize(
    "settings", [("progressive.clip_target=true", "progressive.prediction=v"), ("guidance.prediction=v",)]
)
def test_a_chain_from_eps_that_can_be_read_is_accepted(settings):
    check_pipeline(Settings.read(config_of("model.prediction=eps", *(f"stage.{each}" for each in settings))))


def test_a_parent_below_outputs_that_does_not_fit_is_named(commands, chain, tmp_path):
    outputs = chain["teacher"].parents[3]
    before = files_below(outputs)
    result = commands.train(*TINY, "stage=guidance", f"outputs={outputs}", "model.network.width=48")
    result.is_one_error("needs a teacher", str(chain["teacher"]), "network is another")
    assert files_below(outputs) == before


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def as_pickle(path: Path, model: bytes) -> None:
    path.write_bytes(pickle.dumps(Malicious(path.with_name("opened"))))


def as_checkpoint(path: Path, model: bytes) -> None:
    torch.save({"state_dict": Malicious(path.with_name("opened"))}, path)


def truncated(path: Path, model: bytes) -> None:
    path.write_bytes(model[: len(model) // 2])


def corrupted(path: Path, model: bytes) -> None:
    path.write_bytes(model[:20] + b"#" * 40 + model[60:])


def foreign(path: Path, model: bytes) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def no_model(path: Path, model: bytes) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (as_pickle, "pickle, which could run code"),
        (as_checkpoint, "pickle, which could run code"),
        (truncated, "truncated"),
        (corrupted, "damaged"),
        (foreign, "not made by fewstep"),
        (no_model, "truncated, damaged or no safetensors"),
    ],
)
def test_files_that_are_no_models(train, commands, chain, tmp_path, make, word):
    path = tmp_path / "model.safetensors"
    make(path, chain["teacher"].read_bytes())
    train("stage=guidance", f"teacher={path}", words=(str(path), word))
    for command in (["info", path], ["sample", path, "--out", tmp_path / "a.png"], ["evaluate", path]):
        commands.fewstep(*command).is_one_error(str(path), word)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(train):
    train("trainer=gpu", words=("trainer=gpu", "CUDA", "trainer=cpu"))


@pytest.mark.parametrize("stage", ["pipeline", "teacher"])
def test_outputs_that_cannot_be_written(commands, tmp_path, stage):
    (tmp_path / "file").write_text("mine")
    for outputs in (tmp_path / "file", tmp_path / "file" / "below", "/dev/null/below"):
        result = commands.train(*TINY, f"stage={stage}", f"outputs={outputs}")
        result.is_one_error(str(outputs), "choose another path")
    assert (tmp_path / "file").read_text() == "mine"


SMALL = (
    *TINY,
    "trainer.checkpoint_seconds=0",
    "trainer.max_images=640",
    "stage=teacher",
    "stage.training.batch_size=64",
)


@pytest.mark.parametrize("moment", ["write", "flush", "metrics"])
def test_a_full_disk_keeps_the_last_good_checkpoint(commands, tmp_path, monkeypatch, moment):
    """/dev/full is the kernel's own: what is written there finds no room."""
    settings = (*SMALL, "trainer.log_every_images=64", f"outputs={tmp_path}")
    saved = SaveCheckpoint.on_train_batch_end

    made = Path.mkdir

    def full(folder, *given, **named):
        made(folder, *given, **named)
        if folder.suffix == ".tmp":
            (folder / "content").symlink_to("/dev/full")

    def fill(self, trainer, *others):
        if trainer.global_step == 5 and moment == "write":
            patched.setattr(Path, "mkdir", full)
        if trainer.global_step == 5 and moment == "metrics":
            metrics = self.path.with_name("metrics.csv")
            metrics.rename(metrics.with_name("kept"))
            metrics.symlink_to("/dev/full")
        if trainer.global_step == 5 and moment == "flush":
            patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no room")))
        saved(self, trainer, *others)

    with monkeypatch.context() as patched:
        patched.setattr(SaveCheckpoint, "on_train_batch_end", fill)
        result = commands.train(*settings)
    result.is_one_error("No space left on device", "make room", str(tmp_path) if moment != "metrics" else "")
    (folder,) = (tmp_path / "digits" / "teacher").glob("*/")
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == (5 if moment == "metrics" else 4)
    assert not [*folder.rglob(".*.tmp")]
    assert not (folder / "model.safetensors").exists()

    if moment == "metrics":
        (folder / "metrics.csv").unlink()
        (folder / "kept").rename(folder / "metrics.csv")
    assert commands.train(*settings).status == 0  # there is room again
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["teacher", "guidance", "progressive"])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(commands, chain, tmp_path, stage):
    parent = {"guidance": chain["teacher"], "progressive": chain["guided"]}.get(stage)
    settings = [f"stage={stage}", "stage.training.learning_rate=1e30", f"outputs={tmp_path}"]
    settings += [f"teacher={parent}"] if parent else []
    settings += ["stage.ladder=[4,2,1]"] if stage == "progressive" else []
    result = commands.train(*SMALL[:-2], *settings, "stage.training.batch_size=64", "stage.training.warmup_images=0")
    (folder,) = (tmp_path / "digits" / stage).glob("*/")
    place = ("t = ",) if stage == "teacher" else ("t = ", "w = ")
    result.is_one_error(
        "must stay finite", f"stage {stage} at step ", *place, "learning_rate", f"{folder / 'last.ckpt'}"
    )
    checkpoint = read_checkpoint(folder / "last.ckpt")
    assert checkpoint["global_step"] >= 1
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint["state_dict"].values())
    assert not list(folder.glob("*.safetensors"))


def test_a_loss_that_is_not_finite_before_any_checkpoint(commands, tmp_path):
    result = commands.train(
        *SMALL, "stage.training.learning_rate=1e30", "trainer.checkpoint_seconds=60", f"outputs={tmp_path}"
    )
    result.is_one_error("must stay finite", "stage teacher at step ", "no checkpoint had been written yet")


def test_the_traceback_is_shown_when_asked_for(commands, monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_TRACEBACK", "1")
    for result in (commands.train("stage=guidance", f"outputs={tmp_path}"), commands.fewstep("info", "/no/model")):
        assert result.status == 2
        assert result.err.startswith("Traceback (most recent call last):")
        assert result.err.splitlines()[-1].startswith("error: ")


def test_our_own_mistakes_show_themselves(commands, monkeypatch):
    monkeypatch.setitem(sys.modules, "fewstep.runs.pipeline", None)  # importing it fails, which is no user's doing
    result = commands.train("stage=teacher")
    assert result.status == 1
    assert "Traceback" in result.err


@pytest.mark.parametrize("arguments", [["--steps", "4"], ["--w", "9"]])
def test_what_a_student_was_not_made_for_is_a_warning(commands, chain, tmp_path, arguments):
    out = tmp_path / "out.png"
    result = commands.fewstep("sample", chain["2"], "--out", out, "--num", "4", *arguments)
    assert result.status == 0
    (line,) = result.err.strip().splitlines()
    assert line.startswith("warning: this student was made for ")
    assert arguments[1] in line
    assert out.is_file()
    quiet = commands.fewstep("sample", chain["2"], "--out", out, "--num", "4", "--steps", "2", "--w", "3")
    assert (quiet.status, quiet.err) == (0, "")
