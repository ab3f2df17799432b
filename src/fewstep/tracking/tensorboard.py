"""TensorBoard: the same names, x-axis, pictures and table as W&B, in files below the run's folder."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL.Image import Image
from torch.utils.tensorboard.summary import hparams

from fewstep.artifacts.run_folder import flat
from fewstep.system.files import remove
from fewstep.tracking.names import IMAGES, LOSS, QUALITY_TABLE, SAMPLE_FID
from fewstep.tracking.tracker import AXES, Position, Row, Tracker, students_fid

FOLDER = "tensorboard"


class TensorBoardRun(TensorBoardLogger, Tracker):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Lightning's TensorBoardLogger, with images as its steps.

    Its files are written anew by every process, from `history`: those of a process that was killed lack their end.

    Args:
        folder: of the run.
        config: the resolved configuration, shown among HPARAMS.
        history: rows that the run has logged before.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], history: Iterable[Row] = ()) -> None:
        remove(folder / FOLDER)
        super().__init__(folder, name="", version=FOLDER, default_hp_metric=False, purge_step=0)
        self._position = Position()
        self._config = {
            key: value if isinstance(value, bool | int | float) else str(value) for key, value in flat(config)
        }
        self._compared: list[str] = []  # metrics among HPARAMS
        for row in history:
            self.log_metrics(row)

    @rank_zero_only
    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        if (found := self._position.new(metrics)) is None:
            return
        self._compare([LOSS, SAMPLE_FID])
        for name, value in found[1].items():
            if isinstance(value, Image):
                pixels = np.asarray(value.convert("RGB"))
                self.experiment.add_image(name, pixels, int(metrics[IMAGES]), dataformats="HWC")
            elif name not in AXES:
                self.experiment.add_scalar(name, value, int(metrics[IMAGES]))

    @rank_zero_only
    def log_quality(self, rows: Sequence[Mapping[str, Any]]) -> None:
        students = students_fid(rows)
        self._compare([*students])
        self.experiment.add_text(QUALITY_TABLE, _table(rows), 0)
        for name, value in students.items():
            self.experiment.add_scalar(name, value, 0)

    @rank_zero_only
    def alert(self, title: str, text: str) -> None:
        self.experiment.add_text("alerts", f"**{title}**: {text}", self._position.step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush; the next phase of the stage logs on."""
        self.experiment.flush()

    @rank_zero_only
    def finish(self) -> None:
        self.experiment.close()

    def _compare(self, metrics: list[str]) -> None:
        """Show the configuration among HPARAMS, beside these metrics; the first call counts."""
        if not self._compared and metrics:
            self._compared = metrics
            for summary in hparams(self._config, dict.fromkeys(metrics, 0.0)):
                self.experiment._get_file_writer().add_summary(summary)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as preformatted Markdown in aligned columns, without intervals and columns that are the same in all rows."""
    names = [name for name in (rows[0] if rows else ()) if name != "intervals"]
    columns = [name for name in names if len({row.get(name) for row in rows}) > 1]
    lines = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("    " + "  ".join(map(str.rjust, line, widths)) for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
