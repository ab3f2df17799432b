"""plan=true as a user has it: what it prints, what it leaves, and that what it says is what a run takes."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from planning import EVALUATION, UPDATE, planned
from running import ROOT, TINY, Commands, config_of, files_below, run_as_composed

from fewstep.artifacts.model_file import load_model
from fewstep.estimate.machine import Machine
from fewstep.estimate.plan import Planner
from fewstep.estimate.table import Estimate
from fewstep.runs.config import Settings
from fewstep.tracking.metrics_file import FILE, read_metrics
from fewstep.tracking.names import IMAGES_PER_SECOND

pytest_plugins = ("running", "planning")
Plan = Callable[..., Estimate]
pytestmark = pytest.mark.usefixtures("as_users_run")
PEAK = """
import runpy, sys
from fewstep.system.hardware import peak_memory
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("peak", peak_memory(), flush=True)
"""
FAST = ("trainer.max_images=256", "trainer.snapshots=0", "trainer.diagnostics=0")


def test_a_mistake_is_one_line_before_anything_is_tried(commands: Commands, tmp_path: Path) -> None:
    result = commands.train("stage=guidance", "stage.w_max=-1", "plan=true", f"outputs={tmp_path}", *TINY)
    result.is_one_error("w_max=-1")


def test_batches_that_do_not_divide_are_refused(commands: Commands, tmp_path: Path) -> None:
    several = ("trainer.devices=3", "stage.training.batch_size=256")
    result = commands.train("stage=teacher", "plan=true", f"outputs={tmp_path}", *TINY, *several)
    result.is_one_error("batch", "256", "3")


def test_counts_and_files_are_those_of_a_run(tmp_path: Path) -> None:
    settings = ("stage=teacher", "trainer.channels_last=true", *FAST)  # as trainer=gpu has it
    (row,) = planned(tmp_path / "plan", *settings).rows
    run_as_composed(*TINY, *settings, f"outputs={tmp_path / 'outputs'}")
    (folder,) = (tmp_path / "outputs" / "digits" / "teacher").iterdir()
    denoiser, card = load_model(folder / "model.safetensors")
    assert row.parameters == sum(weight.numel() for weight in denoiser.parameters())
    assert (row.images, row.updates) == (card.images, card.images // (row.batch_size or 0))
    assert row.checkpoint == pytest.approx((folder / "last.ckpt").stat().st_size, rel=0.2)
    model = (folder / "model.safetensors").stat().st_size
    assert row.disk - row.checkpoint == pytest.approx(model, rel=0.2)
    assert row.seconds > 0
    assert row.memory > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["progressive", "tract", "consistency", "dmd2"])
def test_every_method_is_planned_and_a_missing_parent_is_stood_in_for(method: str, tmp_path: Path) -> None:
    found = planned(tmp_path, f"stage={method}", *FAST)
    phases = Settings.read(config_of(*TINY, f"stage={method}", *FAST))
    names = [row.name for row in found.rows]
    assert names[0].split()[0] == method
    assert len(set(names)) == len(names)
    assert all((row.parameters or 0) > 0 and row.images for row in found.rows)
    assert any("fresh network as the parent" in note for note in found.notes)
    assert phases.name == method


def test_what_is_too_large_to_be_tried_is_estimated_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "to_try", lambda *_, **__: 0)
    found = planned(tmp_path, "stage=teacher", *FAST)
    assert [row.how for row in found.rows] == ["estimated"]
    assert any("too large to be tried" in note for note in found.notes)
    assert any(line.startswith("time: at least") for line in found.lines)


def test_budgets_are_those_of_the_settings_in_whole_batches(untimed: Plan) -> None:
    (row,) = untimed("stage=teacher", "stage.training.images=1000", "stage.training.batch_size=300", *FAST[1:]).rows
    assert (row.updates, row.images, row.batch_size) == (4, 1200, 300)
    assert row.seconds == pytest.approx(4 * UPDATE)
    assert row.seconds_per_update == UPDATE


def test_each_phase_has_its_factor_and_the_first_the_checkpoint(untimed: Plan) -> None:
    ladder = ("stage=progressive", "stage.ladder=[8,4,2,1]", "stage.few_steps=2", "stage.few_steps_factor=1.5")
    rows = untimed(*ladder, "stage.training.images=512", *FAST[1:]).rows
    assert [row.name for row in rows] == ["progressive 4", "progressive 2", "progressive 1"]
    assert [row.updates for row in rows] == [2, 3, 3]
    assert [row.disk > row.checkpoint for row in rows] == [True, False, False]


@pytest.mark.slow
def test_snapshots_and_diagnostics_count_by_their_evaluations(untimed: Plan) -> None:
    def seconds(stage: str, snapshots: int, diagnostics: int) -> float:
        own = (f"trainer.snapshots={snapshots}", f"trainer.diagnostics={diagnostics}", "trainer.max_images=1024")
        return untimed(f"stage={stage}", *own).rows[0].seconds

    plain = seconds("teacher", 0, 0)
    # two snapshots of 20 images, 16 steps of two evaluations
    assert seconds("teacher", 2, 0) - plain == pytest.approx(2 * 20 * 16 * 2 * EVALUATION)
    # one look at the start and three more: the probe, and paths of 16 steps of which 16 samples are compared
    assert seconds("teacher", 0, 3) - plain == pytest.approx(4 * (256 + 16 * 16 + 16 * 64) * EVALUATION)
    # an encoder of 4 steps has no samples, and a target of two evaluations
    assert seconds("encoder", 2, 0) == seconds("encoder", 0, 0)
    looks = seconds("encoder", 0, 3) - seconds("encoder", 0, 0)
    assert looks == pytest.approx(4 * ((256 + 4 * 16) * 3 + 4 * 64) * EVALUATION)


GRID = (
    "stage.evaluate.num_images=10",
    "stage.evaluate.w=[0,1]",
    "stage.evaluate.teacher_steps=[4,1]",
    "stage.evaluate.guided_steps=[2]",
    "stage.evaluate.baselines=[unipc]",
    "stage.evaluate.baseline_steps=[8,4,2,1]",
    "stage.evaluate.batch_size=4",
)


def test_an_evaluation_counts_cells_and_evaluations(untimed: Plan) -> None:
    found = untimed("stage.progressive.ladder=[4,2,1]", *GRID, *FAST)
    assert [row.name for row in found.rows] == ["teacher", "guidance", "progressive 2", "progressive 1", "evaluate"]
    cells = 2 * (2 + 4 + 1 + 4 + 2)
    assert f"the evaluation has {cells} cells of 10 images" in found.notes
    assert found.rows[-1].images == 10 * cells
    # ten images, and four that warm up in one step: teacher and unipc of it, the same of the guided student
    teacher = 2 * ((4 + 1 + 15) * 10 + (1 + 1) * 4)
    students = (2 + 15) * 10 + (1 + 1) * 4 + (2 * 10 + 4) + (10 + 4)
    assert found.rows[-1].seconds == pytest.approx(2 * (teacher + students) * EVALUATION)


@pytest.mark.parametrize("method", ["tract", "consistency", "dmd2"])
def test_a_pipeline_has_any_method(method: str, untimed: Plan) -> None:
    found = untimed(f"method={method}", *GRID, *FAST)
    assert [row.name.split()[0] for row in found.rows[:2]] == ["teacher", "guidance"]
    assert found.rows[2].name.split()[0] == method
    assert found.rows[-1].name == "evaluate"
    assert not any("fresh" in note for note in found.notes)


def test_an_exact_teacher_is_no_row_and_no_fresh_network(untimed: Plan) -> None:
    found = untimed("dataset=mixture", *GRID, *FAST)
    assert found.rows[0].name == "guidance"
    assert found.rows[-1].name == "evaluate"
    assert not any("fresh" in note for note in found.notes)


def test_what_is_there_is_found_and_only_the_rest_is_planned(tmp_path: Path, untimed: Plan) -> None:
    run_as_composed(*TINY, "stage=teacher", *FAST, f"outputs={tmp_path / 'outputs'}")
    before = files_below(tmp_path / "outputs")
    (teacher,) = (tmp_path / "outputs").rglob("model.safetensors")
    assert not any("fresh" in note for note in untimed("stage=guidance", *FAST).notes)
    found = untimed(*GRID, *FAST, f"teacher={teacher}")
    assert found.rows[0].name == "guidance"
    judged = untimed("stage=evaluate", f"teacher={teacher}", "stage.teacher_steps=[4,1]", "stage.baselines=[]")
    assert [row.name for row in judged.rows] == ["evaluate"]
    assert any(note.startswith("the evaluation has 4 cells") for note in judged.notes)
    assert files_below(tmp_path / "outputs") == before


def test_what_a_run_refuses_is_refused(tmp_path: Path, untimed: Plan) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        untimed("stage=guidance", "teacher=no-such-file.safetensors")
    with pytest.raises(ValueError, match="needs finished few-step students"):
        untimed("stage=evaluate")
    with pytest.raises(ValueError, match="learning_rate"):
        untimed("stage=teacher", "stage.training.learning_rate=-1")
    config = config_of("dataset=imagefolder", "dataset.root=nowhere", "stage=teacher", f"outputs={tmp_path}")
    planner = Planner(Settings.read(config), tmp_path)
    with pytest.raises((ValueError, OSError), match="nowhere"):
        planner.estimate()


def test_several_processes_share_the_cores(untimed: Plan) -> None:
    found = untimed("stage=teacher", "trainer.devices=2", "trainer.strategy=ddp", *FAST)
    assert found.rows[0].seconds_per_update == 2 * UPDATE
    assert found.needs["memory"][0] == 2 * 5000
    assert "2 processes" in found.title
    assert any(line.startswith("memory: 10 KiB for 2 processes") for line in found.lines)


@pytest.mark.slow
def test_data_and_an_extractor_that_are_not_there_are_said(tmp_path: Path, untimed: Plan) -> None:
    missing = ("dataset=cifar10", f"dataset.root={tmp_path / 'cifar10'}", "stage=teacher", "trainer=debug")
    config = config_of(*missing, "trainer.features=auto", "trainer.generated_data=false", f"outputs={tmp_path}")
    found = Planner(Settings.read(config), tmp_path / "plan").estimate()
    assert any("is not there: planned with generated files" in note for note in found.notes)
    assert any("small feature extractor" in note for note in found.notes)
    assert not (tmp_path / "cifar10").exists()


@pytest.mark.slow
def test_a_pipeline_is_planned_and_nothing_is_left(commands: Commands, tmp_path: Path) -> None:
    result = commands.train("plan=true", f"outputs={tmp_path / 'outputs'}", *TINY)
    assert result.status == 0, result
    for row in ("teacher", "guidance", "progressive 4", "progressive 1", "evaluate", "all"):
        assert re.search(rf"│ {row} +│", result.out), row
    assert re.search(r"│ teacher +│ +0\.\d+ M │ +1,024 │ +256 │ +4 │", result.out), result.out
    assert files_below(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "patches"])
def test_memory_and_time_are_what_a_run_takes(dataset: str, tmp_path: Path) -> None:
    few = ("trainer.max_images=128", "trainer.diagnostics=1", "trainer.snapshots=1", "trainer.snapshot_images=100")
    settings = ["stage=teacher", f"dataset={dataset}", f"outputs={tmp_path / 'outputs'}", "logger=csv", *few]
    settings += ["trainer.features=patches", "stage.training.batch_size=32", "trainer.log_every_images=32"]

    def ran(program: list[str], *more: str) -> str:
        line = shlex.join([sys.executable, *program, *settings, *more])
        # By a shell: the peak of a process begins at that of the one that starts it.
        return subprocess.run(
            ["sh", "-c", f"{line}; exit $?"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    plan = ran(["train.py"], "plan=true")
    number, unit = re.findall(r"^memory: ([\d.,]+) (MiB|GiB)", plan, re.MULTILINE)[0]
    peak = re.search(r"^peak (\d+)$", ran(["-c", PEAK]), re.MULTILINE)
    assert peak
    expected = float(number.replace(",", "")) * (2**20 if unit == "MiB" else 2**30)
    assert expected == pytest.approx(int(peak[1]), rel=0.15)
    value, unit = re.findall(r"│ teacher +(?:│[^│]*){4}│ +([\d.]+) (ms|s) │", plan)[0]
    (metrics,) = (tmp_path / "outputs").rglob(FILE)
    rates = [row[IMAGES_PER_SECOND] for row in read_metrics(metrics) if IMAGES_PER_SECOND in row]
    ratio = float(value) / (1000 if unit == "ms" else 1) / (32 / median(rates[1:]))
    assert 0.4 < ratio < 2.5  # of other processes too
