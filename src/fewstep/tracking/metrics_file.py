"""metrics.csv: one row each time something is logged, always with the same columns, intact after any interruption."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fewstep.system.files import atomic_write
from fewstep.tracking.names import COLUMNS, IMAGES

FILE = "metrics.csv"


class MetricsFile(Logger):
    """Appends to `folder/metrics.csv`; a row is written when `log_metrics` returns.

    Lightning's CSVLogger deletes the file of the run it resumes, rewrites it whenever a new column appears, and keeps
    rows in memory.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / FILE

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Append one row. `step` is not used: the x-axis is `metrics["images"]`.

        Raises:
            ValueError: a metric has no column, or there is no `images`.
        """
        unknown = sorted(set(metrics) - set(COLUMNS))
        if unknown or IMAGES not in metrics:
            raise ValueError(
                f"a row of {FILE} needs {IMAGES!r} and otherwise only columns of fewstep/tracking/names.py, "
                f"got {', '.join(sorted(metrics))}; add "
                + (f"{unknown[0]!r} to the columns" if unknown else f"{IMAGES!r} to the row")
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(metrics)

    @rank_zero_only
    def truncate(self, images: int) -> None:
        """Drop the rows after `images` (all of them for 0), which a resumed run writes again, and a torn last line."""
        kept = [row for row in read_metrics(self.path) if images and row[IMAGES] <= images]
        if not kept:
            self.path.unlink(missing_ok=True)
            return
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            # 12800.0 as 12800, so that rewriting a row does not change it
            writer.writerows({name: int(x) if x.is_integer() else x for name, x in row.items()} for row in kept)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is config.yaml."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, each with the columns it has a number for; none without a file.

    Damaged rows, and a last line that was torn, are left out.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text(errors="replace").rpartition("\n")
    rows = csv.DictReader(line for line in whole.splitlines() if "\0" not in line)
    return [read for row in rows if (read := _numbers(row))]


def _numbers(row: Mapping[str | None, Any]) -> dict[str, float] | None:
    """A row's numbers; None if it is damaged."""
    try:
        numbers = {key: float(text) for key, text in row.items() if key in COLUMNS and text}
    except (TypeError, ValueError):
        return None
    return numbers if 0 <= numbers.get(IMAGES, -1) < inf else None
