"""The stochastic ladder, the encoder and the variants as a user runs them, on the exact mixture."""

import json
from math import isfinite
from pathlib import Path

import pytest
import torch
from running import TINY, Commands, files_below, run_as_composed

import fewstep
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampling import Sampling

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")

MIXTURE = (*TINY, "dataset=mixture", "dataset.num_reference=60", "trainer.max_images=64")


def go(outputs: Path, stage: str, *settings: str) -> Path:
    """Run a stage of the mixture; give its folder."""
    known = set((outputs / "mixture" / stage).glob("*/"))
    run_as_composed(f"stage={stage}", *MIXTURE, f"outputs={outputs}", *settings)
    (made,) = set((outputs / "mixture" / stage).glob("*/")) - known
    return made


@pytest.fixture(scope="module")
def outputs(as_users_run, tmp_path_factory) -> Path:
    """With a guided student and a deterministic ladder."""
    folder = tmp_path_factory.mktemp("outputs")
    go(folder, "guidance", "stage.guidance_interval=[0.2,0.9]", "stage.w_draw=list", "stage.w_values=[0,1,2]")
    go(folder, "progressive", "stage.ladder=[4,2,1]")
    return folder


@pytest.fixture(scope="module")
def stochastic(outputs: Path) -> Path:
    return go(outputs, "progressive", "stage.ladder=[4,2,1]", "stage.sampler=stochastic")


@pytest.fixture(scope="module")
def encoder(outputs: Path) -> Path:
    return go(outputs, "encoder", "stage.ladder=[4,2,1]")


def test_a_students_card_says_how_w_was_drawn_and_where_its_teacher_was_guided(outputs, stochastic):
    (guided,) = outputs.glob("mixture/guidance/*/model.safetensors")
    for path in (guided, stochastic / "model-1.safetensors"):
        card = fewstep.load(path).card
        assert (card.w_min, card.w_max, card.w_draw, card.w_values) == (0, 2, "list", (0, 1, 2))
        assert card.guidance_interval == (0.2, 0.9)


def test_a_stochastic_student_samples_by_its_own_sampler(stochastic):
    model = fewstep.load(stochastic / "model-2.safetensors")
    made_for = Sampling.uniform(2, sampler="stochastic", guidance="input")
    assert (model.card.method, model.card.sampling, model.card.num_steps) == ("progressive", made_for, 2)
    x = model.sample([0, 1, 2, 3], seed=1)
    assert torch.equal(x, model.sample([0, 1, 2, 3], seed=1, sampler="stochastic"))
    assert torch.equal(x, model.sample([0, 1, 2, 3], seed=1, batch_size=3))  # noise is the image's, not the batch's
    with pytest.warns(UserWarning, match="made for the stochastic sampler, not the deterministic one"):
        assert not torch.equal(x, model.sample([0, 1, 2, 3], seed=1, sampler="deterministic"))


def test_a_w_between_those_of_the_list_is_a_warning(stochastic):
    model = fewstep.load(stochastic / "model-2.safetensors")
    with pytest.warns(UserWarning, match="made for w of 0, 1, 2, not 1.5"):
        model.sample([0], w=1.5)


def test_the_sampler_of_the_command_line(stochastic, tmp_path, commands: Commands):
    model, out = stochastic / "model-2.safetensors", tmp_path / "a.npz"
    assert commands.fewstep("sample", model, "--num", "4", "--sampler", "ancestral", "--out", out).status == 0
    result = commands.fewstep("sample", model, "--num", "4", "--sampler", "euler", "--out", out)
    result.is_one_error("must be one of deterministic, stochastic, ancestral", "'euler'")


def test_chains_are_not_mixed(outputs, stochastic, commands: Commands):
    (deterministic,) = (p for p in outputs.glob("mixture/progressive/*/model-2.*") if p.parent != stochastic)
    common = ("stage=progressive", *MIXTURE, f"outputs={outputs}", "stage.ladder=[2,1]")
    result = commands.train(*common, "stage.sampler=stochastic", f"teacher={deterministic}")
    other = "is a progressive model of 2 steps (sampler {}, guidance input, direction decode)"
    needed = "or a student of 2 steps of its own chain (sampler {}, guidance input), where it begins"
    result.is_one_error(
        "does not fit", other.format("deterministic"), "needs a guided student", needed.format("stochastic")
    )
    result = commands.train(*common, f"teacher={stochastic / 'model-2.safetensors'}")
    result.is_one_error("does not fit", other.format("stochastic"), needed.format("deterministic"))
    made = go(
        outputs,
        "progressive",
        "stage.ladder=[2,1]",
        "stage.sampler=stochastic",
        f"teacher={stochastic}/model-2.safetensors",
    )
    assert fewstep.load(made / "model-1.safetensors").card.sampling.sampler == "stochastic"


def test_what_an_encoder_leaves(encoder):
    made = {name for name in files_below(encoder) if not name.startswith("samples/")}
    assert made == {
        ".lock",
        "config.yaml",
        "cycle.json",
        "last.ckpt",
        "diagnostics.jsonl",
        "metrics.csv",
        "products.json",
        "threads.json",
        *(f"model-{n}.safetensors" for n in (2, 1)),
    }
    card = fewstep.load(encoder / "model-1.safetensors").card
    assert (card.method, card.num_steps, card.w_min, card.w_max) == ("encoder", 1, 0, 0)
    assert (card.sampling.direction, card.sampling.guidance) == ("encode", "input")
    assert [parent.method for parent in card.parents] == ["encoder", "guidance"]


def test_the_cycle_is_measured_with_both_decoders(encoder, stochastic):
    rows = json.loads((encoder / "cycle.json").read_text())
    pairs = [(row["encoder"], row["encoder_steps"], row["decoder"], row["decoder_steps"]) for row in rows]
    assert pairs == [
        ("guided", 64, "guided", 64),
        ("encoder", 2, "guided", 64),
        ("encoder", 2, "progressive", 2),
        ("encoder", 1, "guided", 64),
        ("encoder", 1, "progressive", 1),
    ]
    assert (rows[0]["ratio"], rows[0]["code_rmse"]) == (1, 0)
    for row in rows:
        assert row["num_images"] == 60
        assert row["ratio"] == pytest.approx(row["cycle_rmse"] / rows[0]["cycle_rmse"])
        assert isfinite(row["cycle_rmse"])
        assert row["w"] == 0


def test_a_finished_encoder_is_kept_and_a_lost_rung_made_again(outputs, encoder):
    before = {path.name: path.read_bytes() for path in encoder.glob("*.safetensors")}
    (encoder / "cycle.json").unlink()
    (encoder / "model-1.safetensors").unlink()
    run_as_composed("stage=encoder", *MIXTURE, f"outputs={outputs}", "stage.ladder=[4,2,1]")
    assert {path.name: path.read_bytes() for path in encoder.glob("*.safetensors")} == before
    assert (encoder / "cycle.json").is_file()


def test_an_encoder_is_not_sampled_nor_judged_nor_told_another_w(outputs, encoder, tmp_path, commands: Commands):
    model = encoder / "model-1.safetensors"
    commands.fewstep("sample", model, "--out", tmp_path / "a.npz").is_one_error("is an encoder")
    common = (*MIXTURE, f"outputs={outputs}")
    result = commands.train("stage=evaluate", *common, f"teacher={encoder}")
    result.is_one_error("encoders make no samples", "cycle.json")
    result = commands.train("stage=encoder", *common, "stage.w_max=3")
    result.is_one_error("stage.w_min and stage.w_max must lie in the parent's range [0, 2], got 0 and 3")
    result = commands.train(
        "stage=encoder", *common, "stage.ladder=[2,1]", "stage.w_min=1", "stage.w_max=1", f"teacher={model}"
    )
    result.is_one_error("does not fit")


def test_two_students_come_from_the_teacher_and_are_guided_outside(tmp_path):
    go(tmp_path, "teacher", "teacher=null")
    made = go(tmp_path, "progressive", "stage.variant=two_student", "stage.ladder=[4,2,1]", "teacher=null")
    model = fewstep.load(made / "model-2.safetensors")
    assert (model.card.w_min, model.evaluations_per_step) == (None, 2)
    assert model.card.sampling == Sampling.uniform(2, guidance="two_evaluations")
    assert isinstance(model.denoise, Guided)
    assert [parent.method for parent in model.card.parents] == ["teacher"]
    judged = go(
        tmp_path,
        "evaluate",
        f"teacher={made}",
        "stage.w=[1]",
        "stage.teacher_steps=[4]",
        "stage.baselines=[ancestral]",
        "stage.baseline_steps=[8,4]",
    )
    rows = json.loads((judged / "quality.json").read_text())
    assert {(row["model"], row["sampler"], row["steps"], row["nfe"]) for row in rows} == {
        ("teacher", "ddim", 4, 8),
        ("teacher", "ancestral", 8, 16),
        ("teacher", "ancestral", 4, 8),
        ("progressive", "ddim", 2, 4),
        ("progressive", "ddim", 1, 2),
    }


def test_a_stochastic_ladder_is_judged_by_its_sampler_beside_the_baselines(outputs, stochastic):
    judged = go(
        outputs,
        "evaluate",
        f"teacher={stochastic}",
        "stage.w=[1]",
        "stage.teacher_steps=[8]",
        "stage.guided_steps=[8]",
        "stage.baseline_steps=[4]",
    )
    rows = json.loads((judged / "quality.json").read_text())
    assert [(row["model"], row["sampler"], row["steps"], row["nfe"]) for row in rows] == [
        ("teacher", "ddim", 8, 16),
        ("teacher", "dpmsolver++", 4, 8),
        ("teacher", "unipc", 4, 8),
        ("guided", "ddim", 8, 8),
        ("guided", "dpmsolver++", 4, 4),
        ("guided", "unipc", 4, 4),
        ("progressive", "stochastic", 2, 2),
        ("progressive", "stochastic", 1, 1),
    ]
    page = (judged / "report.html").read_text()
    assert "teacher, unipc" in page
    assert (judged / "samples" / "same-noise" / "guided-dpmsolver++-4-w1.png").is_file()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stage.sampler=euler", "stage.sampler must be one of deterministic, stochastic"),
        ("stage.variant=three", "stage.variant must be one of joint, two_student"),
        ("stage.clip_target=1", "must be true or false"),
    ],
)
def test_bad_chains_are_refused(outputs, commands: Commands, setting, words):
    commands.train("stage=progressive", *MIXTURE, f"outputs={outputs}", setting).is_one_error(words)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stage.guidance_interval=[0.5]", "two times [low, high]"),
        ("stage.guidance_interval=0.5", "must be a list"),
        ("stage.w_draw=normal", "must be one of uniform, log_uniform, list"),
        ("stage.w_draw=list", "list alone has stage.w_values"),
    ],
)
def test_bad_guidance_is_refused(outputs, commands: Commands, setting, words):
    commands.train("stage=guidance", *MIXTURE, f"outputs={outputs}", setting).is_one_error(words)


def test_unknown_baselines_are_refused(outputs, commands: Commands):
    result = commands.train("stage=evaluate", *MIXTURE, f"outputs={outputs}", "stage.baselines=[heun]")
    result.is_one_error("baselines must be of stochastic, ancestral", "'heun'")


def test_two_students_have_no_exact_teacher(tmp_path, commands: Commands):
    result = commands.train(*MIXTURE, f"outputs={tmp_path}", "stage.progressive.variant=two_student")
    result.is_one_error("teacher=exact is none")


def test_targets_may_be_clipped(tmp_path):
    made = go(tmp_path, "guidance", "stage.clip_target=true", "stage.w_draw=log_uniform")
    assert fewstep.load(made / "model.safetensors").card.w_draw == "log_uniform"
