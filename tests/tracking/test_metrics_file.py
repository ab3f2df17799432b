import pytest

from fewstep.tracking import names
from fewstep.tracking.metrics_file import MetricsFile, read_metrics
from fewstep.tracking.names import COLUMNS, IMAGES, LOSS, RUNG


def strings_of_names() -> list[str]:
    return [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]


def test_every_name_is_defined_once():
    assert len(set(strings_of_names())) == len(strings_of_names())
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert set(COLUMNS) <= set(strings_of_names())
    assert COLUMNS[0] == IMAGES


def test_rows_are_in_the_file_as_soon_as_they_are_logged(tmp_path):
    log = MetricsFile(tmp_path / "run")
    log.log_metrics({IMAGES: 128, LOSS: 0.5}, step=1)
    log.log_metrics({IMAGES: 256, RUNG: 4, LOSS: None})
    header, first, second = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert header.split(",") == list(COLUMNS)
    assert first.startswith("128,,0.5,")
    assert second.startswith("256,4,,")
    assert read_metrics(log.path) == [{IMAGES: 128.0, LOSS: 0.5}, {IMAGES: 256.0, RUNG: 4.0}]


def test_truncation_drops_what_is_written_again_and_a_torn_line(tmp_path):
    log = MetricsFile(tmp_path)
    for images in (100, 200, 300):
        log.log_metrics({IMAGES: images, LOSS: 1 / images})
    before = log.path.read_text()
    with log.path.open("a") as file:
        file.write("400,,0.00")  # kill -9 in the middle of a row
    assert [row[IMAGES] for row in read_metrics(log.path)] == [100, 200, 300]

    log.truncate(1000)
    assert log.path.read_text() == before

    log.truncate(200)
    assert [row[IMAGES] for row in read_metrics(log.path)] == [100, 200]
    log.log_metrics({IMAGES: 300, LOSS: 1 / 300})
    assert log.path.read_text() == before

    log.truncate(0)
    assert read_metrics(log.path) == []
    log.log_metrics({IMAGES: 100, LOSS: 0.01})
    assert log.path.read_text() == "".join(before.splitlines(keepends=True)[:2])


def test_a_file_cut_in_its_header_starts_anew(tmp_path):
    log = MetricsFile(tmp_path)
    log.path.write_text("images,ru")
    log.truncate(500)
    log.log_metrics({IMAGES: 600})
    assert [row[IMAGES] for row in read_metrics(log.path)] == [600]


@pytest.mark.parametrize(("row", "says"), [({IMAGES: 1, "epoch": 0}, "'epoch'"), ({LOSS: 1.0}, "'images'")])
def test_a_row_that_does_not_fit_the_columns_is_refused(tmp_path, row, says):
    with pytest.raises(ValueError, match=says):
        MetricsFile(tmp_path).log_metrics(row)
    assert not (tmp_path / "metrics.csv").exists()
