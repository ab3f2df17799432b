"""Data without labels: no guidance, and students made of the teacher as it is."""

from pathlib import Path

import pytest
from running import TINY, Commands, config_of, run_as_composed

from fewstep.artifacts.model_file import load_model
from fewstep.runs.config import Settings
from fewstep.runs.parent import find_parent, method_of, open_evaluator
from fewstep.runs.pipeline import check_pipeline, trained_stages

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")


@pytest.mark.parametrize("method", ["progressive", "tract", "consistency", "dmd2", "ect"])
def test_the_stage_of_guidance_is_left_out(method: str) -> None:
    settings = Settings.read(config_of("dataset.labels=none", f"method={method}"))
    assert trained_stages(settings) == ["teacher", method]
    check_pipeline(settings)
    teacher = method_of(settings.of_stage("teacher"))
    assert [phase.sampling.guidance for phase in teacher.phases()] == ["none"]
    parent = method_of(settings.of_stage(method)).parent()
    assert parent is not None
    assert "none" in parent.accepted


@pytest.mark.parametrize(
    "settings", [["stage=guidance"], ["stage.stages=[teacher,guidance]"], ["method=two_guidances"]]
)
def test_guidance_is_refused(commands: Commands, tmp_path: Path, settings: list[str]) -> None:
    result = commands.train("dataset.labels=none", *settings, f"outputs={tmp_path}")
    result.is_one_error("needs labels", "leave the stage out", "fewstep data label", "self_labelled.md")
    assert not list(tmp_path.iterdir())


def test_a_student_of_an_unguided_teacher_is_for_w_0(tmp_path: Path) -> None:
    own = ("dataset.labels=none", f"outputs={tmp_path}", *TINY, "trainer.max_images=32", "trainer.diagnostics=0")
    run_as_composed("stage.stages=[teacher,progressive]", "stage.progressive.ladder=[2,1]", "name=plain", *own)
    made = [tmp_path / f"digits/{file}.safetensors" for file in ("teacher/plain/model", "progressive/plain/model-1")]
    teacher, student = (load_model(file)[1] for file in made)
    assert (teacher.sampling.guidance, teacher.data.num_classes) == ("none", 1)
    assert (student.sampling.guidance, student.w_min, student.w_max) == ("input", 0.0, 0.0)
    assert len(student.parents) == 1

    def parent(*settings: str) -> Path | None:
        read = Settings.read(config_of("stage=consistency", *own, *settings))
        method = method_of(read)
        return find_parent(read, method, open_evaluator(read, method))

    assert parent() == made[0]  # where others look for a guided student
    with pytest.raises(ValueError, match="guided student"):
        parent("dataset.labels=own")
