"""Pipelines of any method as a user runs them: without a teacher, from a run folder, side by side; wrong settings."""

import json
from pathlib import Path

import pytest
from running import TINY, Commands, run_as_composed

import fewstep

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")

MIXTURE = (*TINY, "dataset=mixture", "dataset.num_reference=60", "trainer.max_images=64")


@pytest.fixture(scope="module")
def outputs(as_users_run: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a guided student and two runs of consistency distillation, one of them with the newest guided student."""
    folder = tmp_path_factory.mktemp("outputs")
    run_as_composed("stage=guidance", *MIXTURE, f"outputs={folder}", "name=run")
    for name in ("one", "two"):
        run_as_composed("stage=consistency", *MIXTURE, f"outputs={folder}", f"name={name}")
    return folder


def rows(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "quality.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["consistency", "meanflow"])
def test_without_a_teacher_a_pipeline_trains_on_data_whatever_lies_below_outputs(outputs: Path, method: str) -> None:
    own = ["stage.meanflow.w_min=0", "stage.meanflow.w_max=2"] if method == "meanflow" else []
    run_as_composed(f"method={method}", "teacher=none", *MIXTURE, *own, f"outputs={outputs}", f"name={method}")
    card = fewstep.load(outputs / "mixture" / method / method / "model.safetensors").card
    assert card.parents == ()
    assert card.sampling.guidance == ("none" if method == "consistency" else "input")


def test_on_data_with_an_exact_teacher_a_student_starts_as_the_guided_one_or_says_its_weights(outputs: Path) -> None:
    found = fewstep.load(outputs / "mixture/consistency/one/model.safetensors").card
    assert [each.method for each in found.parents] == ["guidance"]
    own = ("stage.w_min=0", "stage.w_max=1", "name=exact")
    run_as_composed("stage=consistency", *MIXTURE, f"outputs={outputs}", *own)
    exact = fewstep.load(outputs / "mixture/consistency/exact/model.safetensors").card
    assert exact.parents == ()
    assert (exact.w_min, exact.w_max) == (0, 1)


def test_a_pipeline_starts_from_a_run_folder(outputs: Path) -> None:
    guided = outputs / "mixture/guidance/run"
    own = ("stage.tract.time_schedule=[4,1]", "name=folder")
    run_as_composed("method=tract", *MIXTURE, f"teacher={guided}", f"outputs={outputs}", *own)
    card = fewstep.load(outputs / "mixture/tract/folder/model-1.safetensors").card
    assert [each.method for each in card.parents] == ["guidance"]


def test_an_encoders_pipeline_judges_the_models_that_make_samples(outputs: Path) -> None:
    guided = outputs / "mixture/guidance/run/model.safetensors"
    own = ("stage.encoder.ladder=[4,2]", "name=encoder", "stage.evaluate.baselines=[]")
    run_as_composed("method=encoder", *MIXTURE, f"teacher={guided}", f"outputs={outputs}", *own)
    assert {row["model"] for row in rows(outputs / "mixture/pipeline/encoder")} == {"teacher", "guided"}


def test_models_of_one_method_are_told_apart_and_none_is_left_out(outputs: Path) -> None:
    one, two = (outputs / "mixture/consistency" / name for name in ("one", "two"))
    own = (f"teacher={one}", f"stage.models=[{two}]", "stage.baselines=[]", "name=both")
    run_as_composed("stage=evaluate", *MIXTURE, f"outputs={outputs}", *own)
    found = rows(outputs / "mixture/evaluate/both")
    assert {row["model"] for row in found} == {"teacher", "guided", "consistency one", "consistency two"}
    cells = [(row["model"], row["sampler"], row["steps"], row["w"]) for row in found]
    assert len(set(cells)) == len(cells)


def test_roles_that_are_not_trained_and_old_names_are_refused(commands: Commands, outputs: Path) -> None:
    mixture = ("dataset=mixture", f"outputs={outputs}")
    own = "+stage.training.roles.fake={learning_rate: 1.0}"
    commands.train("stage=tract", own, *mixture).is_one_error("roles.fake", "student")
    own = "stage.training.roles.fake.learning_rate=null"
    commands.train("stage=dmd2", own, *mixture).is_one_error("stage.training.roles.fake.learning_rate", "None")
    commands.train("stage.until=guidance", *mixture).is_one_error("stage.stages", "[teacher,guidance]")
    guided = outputs / "mixture/guidance/run/model.safetensors"
    commands.fewstep("sample", guided, "--sampler", "flow_map", "--out", outputs / "x.png").is_one_error(
        "flow_map", "where a step ends"
    )
    baselines = "stage.evaluate.baselines=[flow_map]"
    commands.train(baselines, *mixture).is_one_error("baselines", "flow_map")


def test_a_plan_counts_roles_that_move_seldom(commands: Commands, tmp_path: Path) -> None:
    own = ("stage=dmd2", "teacher=exact", "stage.w_min=0", "stage.w_max=2", "stage.fake_updates=80")
    result = commands.train(*own, "plan=true", *MIXTURE, f"outputs={tmp_path}")
    assert result.status == 0, result
    evaluations = ("stage.training.evaluations=2000", f"outputs={tmp_path}")
    assert commands.train(*own, *MIXTURE, *evaluations).status == 0


def test_a_policy_samples_and_opens_in_fewstep_alone(commands: Commands, outputs: Path, tmp_path: Path) -> None:
    run_as_composed("stage=pi_flow", *MIXTURE, "teacher=null", f"outputs={outputs}", "name=run")
    file = outputs / "mixture/pi_flow/run/model-4.safetensors"
    model = fewstep.load(file)
    assert (model.card.sampling.sampler, model.card.sampling.steps, model.denoiser.components) == ("policy", (4,), 4)
    x = model.sample([0, 1], w=1.0)
    assert fewstep.edit(model, x, [1, 1], strength=0.5).shape == x.shape
    with pytest.raises(ValueError, match="does not encode: give an encoder"):
        fewstep.transfer(model, x, [0, 1], [1, 0])
    commands.fewstep("sample", file, "--sampler", "ancestral", "--out", tmp_path / "x.png").is_one_error(
        "know where a step ends", "got ancestral; use policy"
    )
    guided = outputs / "mixture/guidance/run/model.safetensors"
    commands.fewstep("sample", guided, "--sampler", "policy", "--out", tmp_path / "x.png").is_one_error(
        "know where a step ends", "got policy; use deterministic"
    )
    for form in ("onnx", "diffusers"):
        commands.fewstep("export", file, tmp_path / form, "--format", form).is_one_error("opens in fewstep alone")
    assert commands.fewstep("export", file, tmp_path / "own", "--format", "safetensors").status == 0


def test_states_are_settings_of_a_stage(commands: Commands, outputs: Path) -> None:
    states = "stage.states={data: 0.5, teacher: 0.25, student: 0.25}"
    run_as_composed("stage=lcm", states, *MIXTURE, "teacher=null", f"outputs={outputs}", "name=states")
    mixture = ("dataset=mixture", f"outputs={outputs}")
    commands.train("stage=ddil", "stage.states.student=0.5", *mixture).is_one_error("sum to 1", "0.5, 0.25, 0.5")
    commands.train("stage=lcm", "stage.states={data: 1.0}", *mixture).is_one_error("stage.states.teacher must be given")


def test_a_flow_map_samples_and_edits_and_does_not_encode(outputs: Path) -> None:
    run_as_composed("stage=flow_map", *MIXTURE, "teacher=null", f"outputs={outputs}", "name=run")
    model = fewstep.load(outputs / "mixture/flow_map/run/model.safetensors")
    assert model.card.sampling.steps == (1, 2, 4, 8)
    x = model.sample([0, 1], steps=2, w=1.0)
    assert fewstep.edit(model, x, [1, 1], strength=0.5).shape == x.shape
    with pytest.raises(ValueError, match="does not encode: give an encoder"):
        fewstep.transfer(model, x, [0, 1], [1, 0])
    guided = fewstep.load(outputs / "mixture/guidance/run/model.safetensors")
    assert fewstep.transfer(model, x, [0, 1], [1, 0], encoder=guided, encode_steps=4).shape == x.shape


@pytest.mark.slow
def test_policies_are_run_in_closed_loop_and_drawn(tmp_path: Path, commands: Commands) -> None:
    """A diffusion policy, its mixture of experts and the expert that made the data; sampling asks for states."""
    own = ("dataset=obstacles", "dataset.num_demonstrations=40", "dataset.num_reference=60", "dataset.num_rollouts=4")
    run_as_composed("method=vdd", *TINY, *own, "trainer.max_images=64", f"outputs={tmp_path}", "name=run")
    folder = tmp_path / "obstacles/pipeline/run"
    found = json.loads((folder / "policies.json").read_text())
    assert {row["model"] for row in found} == {"expert", "teacher", "guided", "vdd"}
    assert (found[0]["success"], found[0]["evaluations"]) == (1, 0)
    assert {row["evaluations"] for row in found if row["model"] == "vdd"} == {1}
    assert (folder / "policies.png").stat().st_size > 10_000
    refused = commands.fewstep("sample", tmp_path / "obstacles/vdd/run/model.safetensors", "--out", tmp_path / "x.png")
    assert refused.status == 2
    assert "this model takes states, not labels or prompts" in refused.err
