"""collect.html: a sweep on one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewstep.reports.page import write_page


def write_sweep_report(path: Path, content: Mapping[str, Any], charts: Sequence[Markup], front: Markup) -> None:
    """Write the page of a sweep: its settings best first, its charts, and its Pareto front."""
    write_page(path, "sweep_report.html", {**content, "charts": charts, "front_chart": front})
