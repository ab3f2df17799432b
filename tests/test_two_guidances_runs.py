"""Two guidances from the command line: teacher, student of two weights, fewer steps, the grid, samples, bad input."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import TINY, Commands, run_as_composed

import fewstep

pytest_plugins = ("running",)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users_run")]
FAST = (*TINY, "trainer.max_images=256", "stage.training.batch_size=32", "stage.training.warmup_images=0")
GRID = ("stage.w=[0,2]", "stage.w2=[1]", "stage.teacher_steps=[2]", "stage.guided_steps=[2]", "stage.num_images=60")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, as_users_run: None) -> Path:
    """The outputs of all stages."""
    outputs = tmp_path_factory.mktemp("outputs")
    own = ["dataset=digits_styled", f"outputs={outputs}", "name=one"]
    for stage in ("teacher", "two_guidances"):
        run_as_composed(f"stage={stage}", *own, *FAST)
    run_as_composed("stage=progressive", *own, *FAST, "stage.ladder=[4,2]")
    run_as_composed("stage=evaluate", *own, *TINY, *GRID)
    return outputs / "digits_styled"


def test_the_grid_goes_over_both_weights(chain: Path) -> None:
    rows = json.loads((chain / "evaluate" / "one" / "quality.json").read_text())
    cells = {(row["model"], row["steps"], row["nfe"], row["w"], row["w2"]) for row in rows}
    models = (("teacher", 2, 6), ("guided", 2, 2), ("progressive", 2, 2))
    assert cells == {(*model, w, 1.0) for model in models for w in (0.0, 2.0)}
    for row in rows:
        assert 0 <= row["style_accuracy"] <= 1
        low, high = row["intervals"]["style_accuracy"]
        assert low <= row["style_accuracy"] <= high
    page = (chain / "evaluate" / "one" / "report.html").read_text()
    assert "w = 2 of the class, 1 of the style" in page
    assert "style<br>accuracy" in page
    assert (chain / "evaluate" / "one" / "samples" / "same-noise" / "guided-2-w2-1.png").is_file()


def test_students_are_sampled_with_a_weight_for_each_condition(chain: Path, commands: Commands, tmp_path: Path) -> None:
    model = chain / "progressive" / "one" / "model-2.safetensors"
    asked = ("--w", "2", "--w2", "1", "--label", "3", "--style", "1", "--num", "4")
    result = commands.fewstep("sample", model, *asked, "--out", tmp_path / "a.png")
    assert result.status == 0, result
    assert "2 steps of 1 evaluation(s), w = 2 of the class and 1 of the style (scales 3 and 2)" in result.out
    assert Image.open(tmp_path / "a.png").size[0] > 32
    loaded = fewstep.load(model)
    label = [13] * 4
    assert not torch.equal(loaded.sample(label, w=2, w2=1), loaded.sample(label, w=2, w2=2))
    assert torch.equal(loaded.sample(label, w=2), loaded.sample(label, w=2, w2=2))  # one stands for both
    teacher = fewstep.load(chain / "teacher" / "one" / "model.safetensors")
    assert (teacher.evaluations_per_step, teacher.card.has_two_weights) == (3, True)


def test_bad_input_is_one_line(chain: Path, commands: Commands, tmp_path: Path) -> None:
    model, out = chain / "two_guidances" / "one" / "model.safetensors", ("--out", tmp_path / "a.png")
    sample = ("sample", model, *out)
    commands.fewstep(*sample, "--label", "3", "--style", "3").is_one_error("the style must be in 0..2", "3")
    commands.fewstep(*sample, "--label", "10").is_one_error("the class must be in 0..9", "10")
    commands.fewstep(*sample, "--style", "1").is_one_error("--style needs --label")
    commands.fewstep(*sample, "--w2", "-1").is_one_error("w2 must be finite and at least 0", "-1")
    commands.fewstep("export", model, tmp_path / "e").is_one_error("inputs beside w (w2)", "safetensors")
    own = ("dataset=digits_styled", f"outputs={chain.parent}", *TINY, "name=bad")
    commands.train(*own, *GRID, "stage=evaluate", "stage.w2=[]").is_one_error("w2", "use stage.w2=[0,1,2]")
    commands.train(*own, "stage=reflow", *FAST[6:]).is_one_error("pairs at one guidance weight")
    commands.train(*own, "stage=two_guidances", "stage.w2_min=3").is_one_error("w_min <= w_max", "w_min=3")
    commands.train(*own, "dataset.any_style=1.0", "stage=teacher").is_one_error("dataset.any_style", "1.0")
    plain = ("dataset=digits", f"outputs={tmp_path}", *TINY)
    wrong = commands.train(*plain, "stage=teacher", "stage.guided_by=three_evaluations")
    wrong.is_one_error("have no styles", "dataset=digits_styled")
    commands.train(*plain, "stage=two_guidances").is_one_error("teacher guided by three evaluations")
    commands.train(*own).is_one_error("stage=guidance needs a teacher", "[teacher,two_guidances,evaluate]")


def test_the_exact_mixture_is_distilled_and_judged(tmp_path: Path) -> None:
    own = ("dataset=mixture_styled", f"outputs={tmp_path}", "name=one")
    run_as_composed("stage=two_guidances", *own, *FAST)
    made = tmp_path / "mixture_styled" / "two_guidances" / "one" / "model.safetensors"
    run_as_composed("stage=evaluate", *own, *TINY, *GRID, "stage.teacher_steps=[16]", f"teacher={made}")
    rows = json.loads((tmp_path / "mixture_styled" / "evaluate" / "one" / "quality.json").read_text())
    teacher = [row for row in rows if row["model"] == "teacher"]
    assert {(row["w"], row["w2"], row["nfe"]) for row in teacher} == {(0.0, 1.0, 48), (2.0, 1.0, 48)}
    assert all(row["exact_rmse"] is not None for row in rows)
    assert teacher[1]["style_accuracy"] > 0.8
