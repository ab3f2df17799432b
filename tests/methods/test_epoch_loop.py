"""Our loop over batches beside Lightning's own, which it replaces: the same hooks, weights, checkpoints and rows."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from small_methods import data_for, module, small, trainer_settings

from fewstep.tracking.names import IMAGES_PER_SECOND, PEAK_MEMORY
from fewstep.training.checkpointing import read_checkpoint
from fewstep.training.epoch_loop import EpochLoop
from fewstep.training.loop import build_trainer
from fewstep.training.module import DistillationModule

STEPS, MIDDLE = 9, 4
OF_THE_CLOCK = (IMAGES_PER_SECOND, PEAK_MEMORY)
OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
BOTH = pytest.mark.parametrize("lightnings", [False, True], ids=["ours", "lightning's"])


def trained(
    folder: Path,
    *callbacks: Callback,
    lightnings: bool,
    name: str = "teacher",
    resume: Path | None = None,
    kind: type[DistillationModule] = DistillationModule,
    **changes: Any,
) -> Trainer:
    """The trainer after a fit by our loop, or by Lightning's, which runs where there is a profiler."""
    made = module(small(name, {"images": 32 * STEPS}))
    made.__class__ = kind
    profiler = PassThroughProfiler() if lightnings else None
    logger, settings = CSVLogger(folder, name="", version=""), trainer_settings(**changes)
    trainer, *_ = build_trainer(made, folder, settings, "origin", [logger], callbacks, 0, profiler)
    assert isinstance(trainer.fit_loop.epoch_loop, EpochLoop) is not lightnings
    trainer.log_every_n_steps = 2
    trainer.fit(made, data_for(made), ckpt_path=resume, weights_only=True)
    return trainer


def recording(kind: type, calls: list[tuple[Any, ...]]) -> dict[str, Callable[..., Any]]:
    """Overrides of the hooks of a class, which note the step, the plain arguments and how far Lightning has counted."""

    def note(name: str) -> Callable[..., Any]:
        def hook(self: Any, *arguments: Any, **named: Any) -> Any:
            trainer = arguments[0] if kind is Callback else self.trainer
            losses = [each["loss"].item() for each in arguments if isinstance(each, dict) and "loss" in each]
            counted = trainer.fit_loop.epoch_loop.state_dict()
            plain = [each for each in arguments if isinstance(each, int)]
            calls.append((kind.__name__, name, trainer.global_step, plain, losses, repr(counted)))
            return getattr(kind, name)(self, *arguments, **named)

        return hook

    return {name: note(name) for name in ("on_train_start", *OF_A_STEP, "on_train_epoch_end", "on_train_end")}


def test_hooks_are_called_as_by_lightnings_own_loop(tmp_path: Path) -> None:
    seen: list[list[tuple[Any, ...]]] = []
    for lightnings in (False, True):
        calls: list[tuple[Any, ...]] = []
        everything = type("Everything", (Callback,), recording(Callback, calls))
        kind = type("Recorded", (DistillationModule,), recording(DistillationModule, calls))
        trained(tmp_path / str(lightnings), everything(), lightnings=lightnings, kind=kind)
        seen.append(calls)
    assert seen[0] == seen[1]
    for owner in ("Callback", "DistillationModule"):
        for hook in OF_A_STEP:
            assert [call[:2] for call in seen[0]].count((owner, hook)) == STEPS


@BOTH
def test_hooks_that_an_object_has_by_itself_are_called(lightnings: bool, tmp_path: Path) -> None:
    calls: list[str] = []
    hooks = {name: partial(lambda name, *_: calls.append(name), name) for name in OF_A_STEP}
    trained(tmp_path, LambdaCallback(**hooks), lightnings=lightnings)
    assert calls == [*OF_A_STEP] * STEPS


class Adds(Callback):
    """Adds another callback after a step."""

    def __init__(self, other: Callback) -> None:
        self.other = other

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == MIDDLE:
            trainer.callbacks.append(self.other)  # pyright: ignore[reportAttributeAccessIssue]


@BOTH
def test_callbacks_that_are_added_are_called(lightnings: bool, tmp_path: Path) -> None:
    calls: list[int] = []
    other = LambdaCallback(on_train_batch_start=lambda trainer, *_: calls.append(trainer.global_step))
    trained(tmp_path, Adds(other), lightnings=lightnings)
    assert calls == [*range(MIDDLE + 1, STEPS)]


class SaveAt(Callback):
    """Writes a checkpoint after a step, and may stop there."""

    def __init__(self, path: Path, stop: bool) -> None:
        self.path, self.stop = path, stop

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == MIDDLE:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = self.stop


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """The same content, tensors to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_equal(value, other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, value in enumerate(one):
            assert_equal(value, other[index], f"{where}/{index}")
    else:
        assert one == other, where


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["guidance", "dmd2"])
def test_checkpoints_are_those_of_lightnings_own_loop(name: str, precision: str, tmp_path: Path) -> None:
    """In the middle and at the end; and each loop goes on from the other's."""
    for lightnings, folder in ((False, tmp_path / "ours"), (True, tmp_path / "theirs")):
        trained(folder, SaveAt(folder / "middle.ckpt", False), lightnings=lightnings, name=name, precision=precision)
    for file in ("middle.ckpt", "last.ckpt"):
        ours, theirs = (read_checkpoint(tmp_path / each / file) for each in ("ours", "theirs"))
        assert ours["global_step"] == (MIDDLE if file == "middle.ckpt" else STEPS)
        assert_equal(ours, theirs)
    for lightnings, begun in ((True, "ours"), (False, "theirs")):
        folder = tmp_path / f"{begun} gone on"
        trained(folder, lightnings=lightnings, name=name, precision=precision, resume=tmp_path / begun / "middle.ckpt")
        gone_on, whole = (read_checkpoint(each / "last.ckpt") for each in (folder, tmp_path / begun))
        for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            assert_equal(gone_on[part], whole[part], part)


@BOTH
def test_training_stops_where_a_callback_says_so(lightnings: bool, tmp_path: Path) -> None:
    trainer = trained(tmp_path, SaveAt(tmp_path / "middle.ckpt", True), lightnings=lightnings)
    assert trainer.global_step == MIDDLE


class LogsSteps(Callback):
    """Logs by Lightning's own `log`, in a step and in an epoch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.log("loss", outputs["loss"], on_step=True, on_epoch=True, batch_size=32)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        pl_module.log("before", loss.detach(), on_step=True, batch_size=32)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        pl_module.student.register_forward_hook(lambda *_: pl_module.log("within", 1.0, batch_size=32))


def test_what_callbacks_log_is_in_the_same_rows(tmp_path: Path) -> None:
    rows = []
    for lightnings in (False, True):
        folder = tmp_path / str(lightnings)
        trainer = trained(folder, LogsSteps(), lightnings=lightnings)
        with (folder / "metrics.csv").open() as file:
            kept = [{name: row[name] for name in row if name not in OF_THE_CLOCK} for row in csv.DictReader(file)]
        rows.append(kept)
        assert set(trainer.callback_metrics) == {"loss", "loss_step", "loss_epoch", "before", "within"}
    assert rows[0] == rows[1]
    assert [bool(row["before"]) for row in rows[0]].count(True) == STEPS // 2


def test_batches_are_moved_to_every_device_but_the_cpu(tmp_path: Path) -> None:
    moved: list[int] = []

    class Elsewhere(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            place.start()

    def move(self: Any, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        moved.append(dataloader_idx)
        return batch

    place = patch.object(SingleDeviceStrategy, "root_device", SimpleNamespace(type="cuda"))
    with patch.object(SingleDeviceStrategy, "batch_to_device", move):
        trained(tmp_path / "cpu", lightnings=False)
        assert not moved
        try:
            trained(tmp_path / "elsewhere", Elsewhere(), lightnings=False)
        finally:
            place.stop()
    assert moved == [0] * STEPS


def test_where_batches_are_accumulated_lightnings_own_loop_runs(tmp_path: Path) -> None:
    made = module(small("teacher"))
    trainer, *_ = build_trainer(made, tmp_path, trainer_settings(accumulate_grad_batches=2), "origin", [], [], 0)
    assert not isinstance(trainer.fit_loop.epoch_loop, EpochLoop)
