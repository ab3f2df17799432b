"""Results do not depend on the number of processes: losses, weights, figures of snapshots, quality.json."""

import csv
import json
from pathlib import Path

import pytest
import torch
from launching import run_processes
from running import TINY, files_below
from safetensors.torch import load_file

pytest_plugins = ("running",)
pytestmark = pytest.mark.slow

BATCH, STEPS = 32, 12
LEARNS = ("warmup_images=64", f"batch_size={BATCH}", "gradient_clip=0.2")  # which clips
TIMES = ("train/images_per_second", "train/peak_memory", "images_per_second")
PIPELINE = [
    *TINY,
    "name=run",
    f"trainer.max_images={BATCH * STEPS}",
    f"trainer.log_every_images={2 * BATCH}",
    "trainer.snapshot_images=21",  # shares of 11 and 10, and of 6, 5, 5 and 5
    *(f"stage.{stage}.training.{setting}" for stage in ("teacher", "guidance", "progressive") for setting in LEARNS),
    "stage.progressive.ladder=[4,2,1]",
    "stage.guidance.w_draw=log_uniform",
    "stage.evaluate.w=[1]",
    "stage.evaluate.num_images=51",
    "stage.evaluate.batch_size=20",
    "stage.evaluate.teacher_steps=[2]",
    "stage.evaluate.guided_steps=[2]",
    "stage.evaluate.baselines=[ancestral]",
    "stage.evaluate.baseline_steps=[2]",
]


def rows_of(file: Path) -> list[dict[str, float]]:
    with file.open(newline="") as lines:
        rows = csv.DictReader(lines)
        return [{key: float(text) for key, text in row.items() if text and key not in TIMES} for row in rows]


def is_close(ours: Path, expected: Path) -> None:
    """All that a run has written is the same, to rounding."""
    assert files_below(ours) == files_below(expected)
    for file in sorted(expected.rglob("*.safetensors")):
        tensors, wanted = load_file(ours / file.relative_to(expected)), load_file(file)
        assert tensors.keys() == wanted.keys()
        for name, tensor in wanted.items():
            rounding = 1e-3 if tensor.dtype == torch.float16 else 1e-4  # 1e-3 is its last bit: the samples of pairs
            torch.testing.assert_close(tensors[name], tensor, rtol=rounding, atol=1e-5)
    for file in sorted(expected.rglob("metrics.csv")):
        for row, wanted in zip(rows_of(ours / file.relative_to(expected)), rows_of(file), strict=True):
            assert row == pytest.approx(wanted, rel=1e-3)
    for file in sorted(expected.rglob("diagnostics.jsonl")):
        looks, wanted = (
            [json.loads(line) for line in path.open()] for path in (ours / file.relative_to(expected), file)
        )
        assert [look["images"] for look in looks] == [look["images"] for look in wanted]
        assert [look["gap"] is None for look in looks] == [look["gap"] is None for look in wanted]
        gaps, others = ([look["gap"] for look in each if look["gap"] is not None] for each in (looks, wanted))
        assert gaps == pytest.approx(others, rel=1e-3)
    for file in sorted(expected.rglob("quality.json")):
        cells, wanted = (json.loads(path.read_text()) for path in (ours / file.relative_to(expected), file))
        for cell, other in zip(cells, wanted, strict=True):
            assert cell.keys() == other.keys()
            own, others = cell.pop("intervals"), other.pop("intervals")
            assert own.keys() == others.keys()
            for key, ends in own.items():
                assert ends == pytest.approx(others[key], rel=1e-3, abs=1e-6)
            for key in cell.keys() - set(TIMES):
                near = pytest.approx(other[key], rel=1e-3, abs=1e-6) if isinstance(other[key], float) else other[key]
                assert cell[key] == near, (key, cell, other)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline in one process."""
    outputs = tmp_path_factory.mktemp("alone")
    assert run_processes(1, outputs / "logs", *PIPELINE, f"outputs={outputs / 'out'}").statuses == [0]
    return outputs / "out"


@pytest.mark.parametrize("count", [2, 4])
def test_the_whole_pipeline_in_several_processes_is_that_of_one(alone, tmp_path, count):
    run = run_processes(count, tmp_path / "logs", *PIPELINE, "trainer.strategy=ddp", f"outputs={tmp_path / 'out'}")
    assert run.statuses == [0] * count, run
    assert "progressive 1: " in run.printed[0]  # rank 0 alone prints
    assert run.printed[1:] == [""] * (count - 1)
    is_close(tmp_path / "out", alone)


def test_sharded_networks_learn_the_same(alone, tmp_path):
    run = run_processes(2, tmp_path / "logs", *PIPELINE, "trainer.strategy=fsdp", f"outputs={tmp_path / 'out'}")
    assert run.statuses == [0, 0], run
    assert run.printed[1] == ""
    for shards in (tmp_path / "out").rglob("*.shards"):
        for file in shards.iterdir():
            file.unlink()
        shards.rmdir()
    is_close(tmp_path / "out", alone)
