"""collect.html: a sweep on one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewstep.reports.report import _environment
from fewstep.system.files import atomic_write

TEMPLATE = Path(__file__).with_name("sweep_report.html")


def write_sweep_report(path: Path, content: Mapping[str, Any], charts: Sequence[Markup], front: Markup) -> None:
    """Write the page of a sweep: its settings best first, its charts, and what is worth its evaluations."""
    page = _environment().get_template(TEMPLATE.name).render(**content, charts=charts, front_chart=front, css=css())
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def css() -> Markup:
    """The report's own style."""
    text = TEMPLATE.with_name("report.html").read_text(encoding="utf-8")
    return Markup(text[text.index("<style>") + len("<style>") : text.index("</style>")])
