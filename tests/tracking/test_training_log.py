"""TrainingLog and Progress under a real Trainer."""

import io
import logging
import re

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from torch.utils.data import DataLoader

from fewstep.tracking.metrics_file import MetricsFile, read_metrics
from fewstep.tracking.names import GRADIENT_NORM, IMAGES, IMAGES_PER_SECOND, LEARNING_RATE, LOSS, PEAK_MEMORY, RUNG
from fewstep.training.callbacks.progress import Progress
from fewstep.training.callbacks.training_log import TrainingLog

BATCH = 10


class Falling(lightning.LightningModule):
    """Its loss at step i (from 0) is i + 1, its learning rate 1 / (i + 1)."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.gradient_norms = {"student": torch.tensor(7.0)}

    def training_step(self, batch, batch_index):
        return self.weight * 0 + self.global_step + 1

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Interrupted(Exception):
    pass


class Stop(lightning.Callback):
    """Ends the process after `step`, its checkpoint included."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Interrupted


def train(folder, steps, *, images_before=0, rung=None, resume=None, console=None, stop=None):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    progress = Progress(stage="teacher", batch_size=BATCH, rung=rung, console=console or Console(file=io.StringIO()))
    log = TrainingLog(
        batch_size=BATCH, every_images=25, images_before=images_before, rung=rung, on_loss=progress.show_loss
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=[MetricsFile(folder)],
        callbacks=[
            log,
            progress,
            Stop(stop),
            ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Falling(), DataLoader(torch.zeros(100), batch_size=None), ckpt_path=resume, weights_only=True)
    return read_metrics(folder / "metrics.csv")


def without_speed(rows):
    return [{key: value for key, value in row.items() if key not in (IMAGES_PER_SECOND, PEAK_MEMORY)} for row in rows]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_are_means_over_their_images_and_the_rest_is_logged_at_the_end(tmp_path):
    rows = train(tmp_path, 7, images_before=1000, rung=4)
    assert [row[IMAGES] for row in rows] == [1030, 1050, 1070]  # the first steps past 25, 50 and, the end, 75
    assert [row[LOSS] for row in rows] == [2.0, 4.5, 6.5]
    assert [row[LEARNING_RATE] for row in rows] == pytest.approx([1 / 3, 1 / 5, 1 / 7])
    assert all(row[RUNG] == 4 and row[GRADIENT_NORM] == 7.0 and row[IMAGES_PER_SECOND] > 0 for row in rows)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_interrupted_run_leaves_the_rows_of_an_uninterrupted_one(tmp_path):
    whole = train(tmp_path / "whole", 9)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", 9, stop=4)
    cut = MetricsFile(tmp_path / "cut")
    cut.log_metrics({IMAGES: 60, LOSS: 0.0})  # past the checkpoint
    with cut.path.open("a") as file:
        file.write("70,,0.")
    rows = train(tmp_path / "cut", 9, resume=tmp_path / "cut" / "last.ckpt")
    assert [row[IMAGES] for row in rows] == [30, 50, 80, 90]
    assert without_speed(rows) == without_speed(whole)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_outside_a_terminal_progress_is_one_plain_line_at_the_end_of_a_short_stage(tmp_path):
    console = Console(file=io.StringIO(), width=20)
    train(tmp_path, 5, console=console)
    text = console.file.getvalue()
    assert text.startswith("teacher: 50 images in 0:00, ")
    assert re.search(r", loss 4\.5, peak memory \d+\.\d\d GiB\n$", text)
    assert text.count("\n") == 1
    assert "\x1b" not in text


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_in_a_terminal_progress_is_a_bar_that_goes_on_where_the_run_was(tmp_path):
    train(tmp_path, 3)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    train(tmp_path, 6, console=console, resume=tmp_path / "last.ckpt", rung=8)
    text = console.file.getvalue()
    assert "teacher 8" in text
    assert "60 images" in text
    assert "loss 6" in text


def test_progress_reads_a_clock_and_no_more_between_two_looks():
    class Untouchable:
        is_global_zero, max_steps, global_step = True, 10, 3

    trainer = Untouchable()
    shown = io.StringIO()
    progress = Progress(stage="teacher", batch_size=BATCH, console=Console(file=shown))
    progress.on_train_start(trainer, None)
    del Untouchable.global_step
    progress.on_train_batch_end(trainer, None, None, None, 0)
    assert shown.getvalue() == ""
