"""Shared trainings: the longest prefixes of stages that several jobs would train alike, whatever the stages are."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from running import config_of

from fewstep.runs.config import Settings
from fewstep.sweeps.jobs import Job
from fewstep.sweeps.shared import prefix_keys, shared_keys, with_shared_trainings

pytest_plugins = ("running",)


def shared(*jobs: Sequence[str], fixed: Sequence[str] = ()) -> tuple[list[Job], list[Job]]:
    """The shared trainings and the jobs of a sweep over these overrides."""
    own = [Job(f"job{number}", (*fixed, *each, "name=x"), {}) for number, each in enumerate(jobs)]
    settings = {job.name: Settings.read(config_of(*job.overrides)) for job in own}
    trainings, children = with_shared_trainings(own, settings)
    return list(trainings.values()), children


def value(job: Job, key: str) -> str:
    (text,) = [text for text in job.overrides if text.startswith(f"{key}=")]
    return text.partition("=")[2].strip("'")


def test_methods_start_from_one_guided_student():
    (training,), jobs = shared(("method=progressive",), ("method=tract",), ("method=consistency",), ("method=dmd2",))
    assert training.stages == ("teacher", "guidance")
    assert value(training, "stage.stages") == "[teacher,guidance]"
    assert [job.parent for job in jobs] == [training.name] * 4
    assert value(jobs[1], "teacher") == f"outputs/digits/guidance/{training.name}/model.safetensors"
    assert value(jobs[1], "stage.stages") == "[tract,evaluate]"


def test_a_method_that_the_guided_student_does_not_fit_starts_from_the_teacher():
    """Whose guided student it then trains for itself, as the pipeline does."""
    (teacher,), jobs = shared(("stage.progressive.variant=joint",), ("stage.progressive.variant=two_student",))
    assert teacher.stages == ("teacher",)
    assert [value(job, "stage.stages") for job in jobs] == ["[guidance,progressive,evaluate]"] * 2
    trainings, jobs = shared(("method=tract",), ("method=dmd2",), ("stage.progressive.variant=two_student",))
    assert [training.stages for training in trainings] == [("teacher",), ("guidance",)]
    assert trainings[1].parent == trainings[0].name
    assert [job.parent for job in jobs] == [trainings[1].name] * 2 + [trainings[0].name]


def test_jobs_that_differ_in_their_evaluation_share_the_last_student():
    (training,), jobs = shared(("stage.evaluate.seed=0",), ("stage.evaluate.seed=1",), fixed=("method=tract",))
    assert training.stages == ("teacher", "guidance", "tract")
    assert value(jobs[0], "teacher") == f"outputs/digits/tract/{training.name}/model-1.safetensors"
    assert value(jobs[0], "stage.stages") == "[evaluate]"


def test_a_chain_of_few_step_methods_shares_its_first_one():
    """TRACT goes on from a progressive student of as many steps as its schedule begins with."""
    stages = "++stage.stages=[teacher,guidance,progressive,tract,evaluate]"
    fixed = ("method=tract", stages, "+stage@stage.progressive=progressive", "stage.progressive.ladder=[64,32]")
    fixed = (*fixed, "stage.tract.time_schedule=[32,1]")
    (training,), jobs = shared(("stage.tract.w_max=1",), ("stage.tract.w_max=2",), fixed=fixed)
    assert training.stages == ("teacher", "guidance", "progressive")
    assert value(jobs[0], "teacher").endswith("/model-32.safetensors")
    other = [*fixed[:-1], "stage.tract.time_schedule=[64,1]"]  # starts from the guided student
    keys = prefix_keys(Settings.read(config_of(*other)))
    assert [stage for stage, key in keys.items() if key] == ["teacher", "guidance", "tract"]
    (guided,), _ = shared(("stage.tract.w_max=1",), ("stage.tract.w_max=2",), fixed=other)
    assert guided.stages == ("teacher", "guidance")


@pytest.mark.parametrize(
    ("fixed", "differs", "stages"),
    [
        (["dataset=mixture"], "stage.progressive.few_steps", [("guidance",)]),  # its teacher is exact
        (["teacher=somewhere/model"], "stage.progressive.few_steps", [("guidance",)]),
        (["stage=progressive"], "stage.few_steps", []),
        (["method=consistency", "teacher=none"], "stage.evaluate.seed", [("consistency",)]),
    ],
)
def test_what_is_given_is_not_trained(fixed: list[str], differs: str, stages: list[tuple[str, ...]]):
    trainings, _ = shared([f"{differs}=1"], [f"{differs}=2"], fixed=fixed)
    assert [training.stages for training in trainings] == stages


def test_stages_of_another_seed_are_shared_by_all_seeds():
    """Each seed's method starts from the same guided student, and has its own random numbers."""
    own = [(f"method={method}", f"seed={seed}") for seed in (0, 1) for method in ("tract", "dmd2")]
    (training,), jobs = shared(*own, fixed=("stage.seeds={teacher:3,guidance:3}",))
    assert training.stages == ("teacher", "guidance")
    assert [job.parent for job in jobs] == [training.name] * 4
    settings = Settings.read(config_of(*jobs[2].overrides))
    assert [settings.of_stage(stage).seed for stage in ("teacher", "guidance", "tract")] == [3, 3, 1]
    trainings, _ = shared(*own)
    assert len(trainings) == 2  # by itself, a seed is of the whole pipeline


def test_what_branches_is_shared_once():
    chains = {"a": ("t", "g1"), "b": ("t", "g1"), "c": ("t", "g2"), "d": ("u", "g3"), "e": ("u", "g3"), "f": ("v",)}
    assert shared_keys(chains) == {"t", "g1", "g3"}  # u is trained with g3, v by its only job


def test_settings_of_other_stages_do_not_count(tmp_path: Path):
    one, other = (Settings.read(config_of("method=tract", f"outputs={tmp_path}", f"seed={s}")) for s in (0, 1))
    more = Settings.read(config_of("method=tract", "stage.tract.training.images=300", "stage.evaluate.num_images=7"))
    keys = [prefix_keys(each) for each in (one, other, more)]
    assert keys[0].keys() == {"teacher", "guidance", "tract"}
    assert not set(keys[0].values()) & set(keys[1].values())
    assert [keys[0][stage] == keys[2][stage] for stage in keys[0]] == [True, True, False]
