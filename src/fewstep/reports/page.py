"""What all pages share: templates, the style, and how numbers are written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fewstep.system.files import atomic_write
from fewstep.system.hardware import GIB

TEMPLATES = Path(__file__).parent


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write `template`, filled with `content`, to `path`; the style of all pages is style.css."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, times=times, memory=memory)
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    page = environment.get_template(template).render(content, css=css)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def number(value: float | None) -> str:
    """Three significant digits without an exponent where that is short: 3.02, 0.0121, 12,300."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def percent(share: float | None) -> str:
    """0.123 as 12.3 %."""
    return "–" if share is None else f"{100 * share:.1f} %"


def memory(size: float | None) -> str:
    """Bytes as 1.23 GiB."""
    return "–" if size is None else f"{size / GIB:.2f} GiB"


def times(ratio: float | None) -> str:
    """A ratio: 1.03×, 31×, 0.97×."""
    if ratio is None:
        return "–"
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:,.0f}×"
