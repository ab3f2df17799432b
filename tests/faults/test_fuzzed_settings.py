"""Any value of any setting is accepted, or refused in one line and without a traceback; nothing is trained."""

from pathlib import Path

import lightning
import pytest
from fuzzing import fuzz
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from running import TINY, config_of

from fewstep.training.callbacks import snapshots

pytest_plugins = ("running",)
pytestmark = pytest.mark.integration

STAGES = ("pipeline", "teacher", "guidance", "progressive", "encoder", "evaluate")
OWN = (*TINY, "dataset=mixture", "teacher=exact")
NOT_CHANGED = ("outputs", "logger.wandb", "plan", "trainer.generated_data")
LARGE = 10**4  # larger values would need gigabytes


def keys_of(*overrides: str) -> list[str]:
    """The keys of all settings and groups, nested ones with dots."""

    def below(config: object, prefix: str) -> list[str]:
        keys = []
        for key, value in config.items() if isinstance(config, dict) else ():
            keys += [f"{prefix}{key}", *below(value, f"{prefix}{key}.")]
        return keys

    config = config_of(*overrides)
    OmegaConf.resolve(config)
    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    return [key for key in below(values, "") if key not in NOT_CHANGED]


SETTING = st.deferred(  # composed when the first is drawn
    lambda: st.sampled_from([(stage, key) for stage in STAGES for key in keys_of(f"stage={stage}", *OWN)])
)
NUMBERS = st.one_of(
    st.integers(-LARGE, LARGE), st.floats(-LARGE, LARGE), st.sampled_from(["nan", "inf", "-inf", "1e400", "0", "-0.0"])
)
WORDS = st.sampled_from(
    [
        "null",
        "true",
        "no",
        "''",
        "x",
        "é",
        "[]",
        "{}",
        "[[]]",
        "[null]",
        "[true]",
        "{a:1}",
        "{a:[1,{}]}",
        "exact",
        "[x]",
        "[1,2]",
        "[2,1]",
        "[1.5]",
        "[nan]",
        "[-1]",
        "0x10",
        "1_000",
        "~",
        "../..",
        "/dev/null",
        "a.b",
        "os.system",
        "builtins.print",
        "fewstep.runs.pipeline.run",
        "torch.nn.Linear",
        "digits",
        "uniform",
    ]
)
VALUES = st.one_of(NUMBERS, WORDS, st.lists(NUMBERS, max_size=3))


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The guided students that the other stages start from."""
    from fewstep.runs.config import Settings
    from fewstep.runs.pipeline import run

    outputs = tmp_path_factory.mktemp("parents")
    small = ("trainer.max_images=64", "stage.training.batch_size=32")
    run(Settings.read(config_of(*OWN, *small, "stage=guidance", f"outputs={outputs}")))
    (guided,) = outputs.rglob("model.safetensors")
    return dict.fromkeys(("progressive", "encoder", "evaluate"), guided)


@fuzz(30)
@example(("teacher", "trainer.max_images"), "x")
@example(("teacher", "trainer.snapshots"), "null")
@example(("teacher", "trainer.checkpoint_seconds"), "[]")
@example(("evaluate", "stage.w"), "[null]")
@example(("teacher", "trainer"), "3")
@example(("teacher", "model"), "null")
@example(("teacher", "schedule.log_snr_min"), "nan")
@example(("pipeline", "stage.teacher"), "3")
@example(("guidance", "stage.name"), 0)
@example(("guidance", "stage.w_values"), "[]")
@example(("teacher", "dataset.name"), "../..")
@given(SETTING, VALUES)
def test_any_value_is_accepted_or_refused_in_one_line(commands, parents, monkeypatch, tmp_path, setting, value):
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *_, **__: None)  # no training
    monkeypatch.setattr(snapshots.Snapshots, "take", lambda *_: None)
    stage, key = setting
    text = str(value).replace(" ", "") if isinstance(value, list) else value
    if key.startswith("hydra"):
        return
    own = [*TINY, "dataset=mixture", "trainer.max_images=64", f"outputs={tmp_path}", f"stage={stage}"]
    own += [f"teacher={parents[stage]}"] if stage in parents else ["teacher=exact"] if stage != "teacher" else []
    result = commands.train(*own, f"{key}={text}")
    assert result.status in (0, 2), result
    assert "Traceback" not in result.err, result
    if result.status:
        lines = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, result
        assert lines[0].startswith("error: "), result
