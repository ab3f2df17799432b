"""A sweep's overrides: what is fixed, what differs, and the jobs' names."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fewstep.runs.overrides import quoted
from fewstep.sweeps.jobs import Job, SweepOverrides, name_of, shortened


def parsed(*overrides: str) -> SweepOverrides:
    return SweepOverrides.of(OverridesParser.create().parse_overrides(list(overrides)))


def test_every_combination_is_a_job_named_by_what_differs():
    jobs = parsed("dataset=mixture", "stage.guidance.w_max=2,4", "seed=range(0,3)").jobs()
    assert [job.name for job in jobs] == [f"w_max={w},seed={seed}" for w in (2, 4) for seed in (0, 1, 2)]
    assert jobs[0].overrides == ("dataset=mixture", "stage.guidance.w_max=2", "seed=0")
    assert jobs[0].values == {"w_max": "2", "seed": "0"}


def test_the_last_of_one_key_counts_whether_it_sweeps_or_not():
    preset, typed = "stage.guidance.w_max=2,4,8", "stage.guidance.w_max=4"
    assert len(parsed(preset, "seed=0,1", typed).jobs()) == 2
    assert len(parsed(typed, "seed=0,1", preset).jobs()) == 6


def test_short_names_tell_keys_apart():
    keys = ["stage.guidance.training.learning_rate", "stage.progressive.training.learning_rate", "seed"]
    assert list(shortened(keys).values()) == [
        "guidance.training.learning_rate",
        "progressive.training.learning_rate",
        "seed",
    ]
    assert shortened(["+a.b"]) == {"+a.b": "b"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("[16,8,4]", "x=16-8-4"),
        ("{width: 64, num_blocks: 2}", "x=width-64-num_blocks-2"),
        ("'a b'", "x=ab"),
        ("outputs/a/b.safetensors", "x=outputs-a-b.safetensors"),
    ],
)
def test_a_value_becomes_part_of_a_folders_name(value: str, name: str):
    assert name_of({"x": value}) == name


def test_a_setting_by_reference_is_called_by_its_name():
    jobs = parsed("stage.student=null,${model.smaller.narrow}").jobs()
    assert [job.name for job in jobs] == ["student=null", "student=narrow"]


def test_names_that_would_be_the_same_are_made_different():
    names = [job.name for job in parsed("x='a b',ab").jobs()]
    assert len(set(names)) == 2
    assert len(name_of({"x": "y" * 300})) < 200


def test_what_is_fixed_names_the_sweeps_folder_and_what_is_swept_does_not():
    one, more = (
        parsed("seed=0,1", "trainer=debug"),
        parsed("seed=0,1,2", "trainer=debug", "logger=csv", "launcher=joblib"),
    )
    assert one.digest == more.digest != parsed("seed=0,1", "trainer=cpu").digest
    assert parsed("seed=0,1").digest == ""


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["seed=range(3,3)"], "no value"),
        (["lr=interval(0,1)"], "sweeper=optuna"),
        (["seed=3"], "something to sweep over"),
    ],
)
def test_overrides_without_jobs_are_refused(overrides: list[str], word: str):
    with pytest.raises(ValueError, match=word):
        parsed(*overrides).jobs()


@pytest.mark.parametrize("text", ["a,b=c", "it's", "back\\slash", "a b", "${x}"])
def test_quoting_keeps_any_text_but_interpolations(text: str):
    (override,) = OverridesParser.create().parse_overrides([f"name={quoted(text)}"])
    assert override.value() == text
    assert not override.is_sweep_override()


def test_an_override_takes_the_place_of_others_of_its_key():
    job = Job("a", ("teacher=x", "stage.teacher.label_dropout=0", "seed=1", "teacher=y"), {})
    assert job.with_override("teacher", "z").overrides == ("stage.teacher.label_dropout=0", "seed=1", "teacher=z")
