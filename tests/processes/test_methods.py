"""Methods of several networks, of relations, with a self-teacher or on pairs: the same alone, in two and sharded."""

from pathlib import Path

import pytest
from launching import run_processes
from running import TINY
from test_same_numbers import BATCH, LEARNS, STEPS, is_close

pytest_plugins = ("running",)
pytestmark = pytest.mark.slow

METHODS = ("tract", "consistency", "reflow", "dmd2", "rdd", "ddil", "pi_flow", "o2mkd", "dp_dmd", "sid")
CHAIN = [
    *TINY,
    "name=run",
    "method=tract",
    *(f"+stage@stage.{method}={method}" for method in METHODS[1:]),
    f"stage.stages=[teacher,guidance,{','.join(METHODS)}]",
    f"trainer.max_images={BATCH * STEPS}",
    f"trainer.log_every_images={2 * BATCH}",
    "trainer.snapshots=0",  # nor pictures nor diagnostics, which take longer than the training
    "trainer.diagnostics=0",
    *(f"stage.{stage}.training.{setting}" for stage in ("teacher", "guidance", *METHODS) for setting in LEARNS),
    "stage.tract.time_schedule=[8,2,1]",
    "stage.rdd.ladder=[4,2,1]",
    "stage.o2mkd.training.learning_rate=5.0e-4",  # the others'; Adam turns rounding into a share of it
    "stage.consistency.self_teacher_decay=0.9",
    "stage.reflow.steps=[2,1]",
    "stage.reflow.teacher_steps=4",
    "stage.dmd2.gan_weight=0.003",
    "stage.dmd2.divergence=js",
    "stage.dmd2.guidance_t_max=0.5",
    "stage.ddil.ladder=[4,2,1]",
    "stage.ddil.states={data: 0.3, teacher: 0.3, student: 0.4, warmup: 0.0, teacher_steps: 16}",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain in one process."""
    outputs = tmp_path_factory.mktemp("alone")
    run = run_processes(1, outputs / "logs", *CHAIN, f"outputs={outputs / 'out'}")
    assert run.statuses == [0], run
    return outputs / "out"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_method_in_two_processes_is_that_of_one(alone: Path, tmp_path: Path, strategy: str) -> None:
    run = run_processes(2, tmp_path / "logs", *CHAIN, f"trainer.strategy={strategy}", f"outputs={tmp_path / 'out'}")
    assert run.statuses == [0, 0], run
    for file in [*(tmp_path / "out").rglob("*.shards/*")]:
        file.unlink()
    for folder in [*(tmp_path / "out").rglob("*.shards")]:
        folder.rmdir()
    is_close(tmp_path / "out", alone)
    for method in METHODS:
        assert [*(tmp_path / "out").glob(f"digits/{method}/run/model*.safetensors")], method
