"""logger=tensorboard: what `tensorboard --logdir outputs` reads of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep.artifacts.pictures import save_png
from fewstep.tracking.loggers import started
from fewstep.tracking.names import GAP, IMAGES, LOSS, QUALITY_TABLE, RUNG, SAMPLE_FID, SAMPLE_GRID
from fewstep.tracking.tensorboard import FOLDER
from fewstep.tracking.tracker import log_picture, log_quality, trackers

CONFIG = {"seed": 3, "stage": {"name": "teacher", "ladder": [4, 2], "weight": None}}


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / FOLDER), {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def points(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def open_loggers(folder: Path, earlier=()):
    chosen = {"wandb": False, "tensorboard": True}
    return started(folder, group="g", job_type="teacher", config=CONFIG, loggers=chosen, earlier=earlier)


def log(folder: Path, rows, *, picture_at: int | None = None, earlier=()) -> None:
    with open_loggers(folder, earlier) as loggers:
        for row in rows:
            for logger in trackers(loggers) if GAP in row else loggers:
                logger.log_metrics(row)
            if row[IMAGES] == picture_at:
                picture = Image.new("L", (40, 8), 100)
                save_png(picture, folder / "samples" / f"{picture_at:010d}.png")
                log_picture(loggers, SAMPLE_GRID, picture, images=picture_at)
        for logger in loggers:
            logger.finalize("success")  # as Lightning does after each phase


def test_the_same_names_over_images(tmp_path):
    rows = [{IMAGES: 128 * n, RUNG: 4, LOSS: 1 / n, SAMPLE_FID: 9.0 + n} for n in (1, 2, 3)]
    log(tmp_path, rows, picture_at=256)
    events = read(tmp_path)
    assert points(events, LOSS) == [(128, 1.0), (256, 0.5), (384, pytest.approx(1 / 3))]
    assert [step for step, _ in points(events, SAMPLE_FID)] == [128, 256, 384]
    assert {IMAGES, RUNG}.isdisjoint(events.Tags()["scalars"])
    (picture,) = events.Images(SAMPLE_GRID)
    assert (picture.step, picture.width, picture.height) == (256, 40, 8)
    assert "_hparams_/session_start_info" in events.summary_metadata
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"stage.name" in content
    assert b"teacher" in content


def test_a_resumed_run_has_each_row_once_and_lacks_none(tmp_path):
    rows = [{IMAGES: 100.0 * n, LOSS: 1 / n} for n in range(1, 9)]
    looks = [{IMAGES: 0, GAP: 1.0}, {IMAGES: 400, GAP: 0.5}]
    log(tmp_path, rows[:6], picture_at=300)
    for file in (tmp_path / FOLDER).iterdir():  # of a killed process the end is missing
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = [*rows[4:], {IMAGES: 800, GAP: 0.25}]  # from the checkpoint at 400 images on
    log(tmp_path, again, earlier=looks)
    events = read(tmp_path)
    assert [step for step, _ in points(events, LOSS)] == [int(row[IMAGES]) for row in rows]
    assert points(events, GAP) == [(0, 1.0), (400, 0.5), (800, 0.25)]
    assert [picture.step for picture in events.Images(SAMPLE_GRID)] == [300]


def test_the_first_row_of_a_phase_is_kept_beside_the_last_of_the_one_before(tmp_path):
    look = {IMAGES: 640, GAP: 0.5}
    log(tmp_path, [look | {RUNG: 4}, look | {RUNG: 4}, look | {RUNG: 2, GAP: 0.25}])
    assert points(read(tmp_path), GAP) == [(640, 0.5), (640, 0.25)]


def test_quality_is_text_and_the_students_are_among_the_hparams(tmp_path):
    row = {"w": 1.0, "kid": None, "protocol": "abc12345", "intervals": {"fid": [2, 4]}}
    rows = [{"model": "teacher", "steps": 64, "fid": 3.0, **row}, {"model": "tract", "steps": 4, "fid": 3.5, **row}]
    with open_loggers(tmp_path) as loggers:
        log_quality(loggers, rows)
    events = read(tmp_path)
    assert points(events, "quality/fid_4_steps") == [(0, 3.5)]
    assert points(events, "quality/fid_4_steps_w1") == [(0, 3.5)]
    (text,) = events.Tensors(f"{QUALITY_TABLE}/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert [line.split() for line in lines] == [
        ["model", "steps", "fid"],
        ["teacher", "64", "3"],
        ["tract", "4", "3.5"],
    ]
    assert b"quality/fid_4_steps" in events.summary_metadata["_hparams_/experiment"].plugin_data.content


def test_pictures_of_points_are_in_colour(tmp_path):
    with open_loggers(tmp_path) as loggers:
        log_picture(loggers, SAMPLE_GRID, Image.fromarray(np.zeros((8, 8, 3), np.uint8)), images=1)
    assert len(read(tmp_path).Images(SAMPLE_GRID)) == 1


def test_metrics_csv_alone_imports_neither(tmp_path):
    with started(tmp_path, group="g", job_type="teacher", config={}, loggers={"wandb": False}) as loggers:
        assert len(loggers) == 1
    assert not (tmp_path / FOLDER).exists()
    assert not (tmp_path / "wandb").exists()
