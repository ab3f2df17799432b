"""Files that earlier runs left or that came from elsewhere, validated against a type once, where they are read."""

import json
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fewstep.system.validation import adapter, validated

REASON = 300  # characters of a library's own words
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class PlainLoader(yaml.SafeLoader):
    """YAML as JSON has it: no objects, and no aliases, by which a few lines become gigabytes or a loop."""

    def compose_node(self, parent: Any, index: int) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name)")
        return super().compose_node(parent, index)


class PlainDumper(yaml.SafeDumper):
    """Writes what `PlainLoader` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_json(path: Path, hint: Any, remedy: str) -> Any:
    """The JSON in a file as a value of the type `hint`; keys that a dataclass or TypedDict lacks are left out.

    Args:
        remedy: what to do about a damaged file, for the message.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not JSON, or not of this type; one line with the path, the place and the value.
    """
    with one_line_errors(path, remedy):
        return parse_json(path.read_text(encoding="utf-8"), hint)


def parse_json(text: str, hint: Any) -> Any:
    """JSON text as a value of the type `hint`; raises what `one_line_errors` makes one line of."""
    plain_json(text)
    return adapter(hint).validate_json(text, strict=True)


def plain_json(text: str) -> Any:
    """JSON text as plain values, whose texts are printable; see `parse_json`."""
    value = json.loads(text)
    require_printable(value)
    return value


def read_yaml(path: Path, hint: Any, remedy: str) -> Any:
    """The YAML in a file as a value of the type `hint`; see `read_json`."""
    with one_line_errors(path, remedy):
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader)
        require_printable(value)
        return validated(value, hint)


def dump_yaml(value: Any) -> str:
    """YAML that `read_yaml` reads, keys in their order."""
    return yaml.dump(value, Dumper=PlainDumper, sort_keys=False, width=120)


@contextmanager
def one_line_errors(path: Path, remedy: str) -> Iterator[None]:
    """Make the errors of parsing and validating what is in a file one line.

    Raises:
        ValueError: with the path, the reason and the remedy.
    """
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged or not of fewstep: {reason_of(error)}; {remedy}") from error


def reason_of(error: Exception) -> str:
    """Why a value is refused, in one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        words = str(first.get("ctx", {}).get("error") or f"{first['msg']}, got {first['input']!r:.80}")
        return f"{place}: {words}" if place else words
    return " ".join(str(error).split())[:REASON]


def require_printable(value: Any) -> None:
    """Refuse texts that would steer a terminal: control characters and those that reverse its direction.

    Raises:
        ValueError: names the first.
    """
    if isinstance(value, str) and not is_printable(value):
        raise ValueError(f"a text holds control characters, {value!r:.80}")
    inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        require_printable(each)


def is_printable(text: str) -> bool:
    """Whether a text has no control characters but tabs and newlines, no surrogates, and none that turn its direction.

    Those that join others, as in emoji, are no harm.
    """
    return text.isprintable() or not any(
        (unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n") or unicodedata.bidirectional(c) in TURNS
        for c in text
    )


def leave_out(what: Path, error: Exception) -> None:
    """Say in one line that something is not used because it cannot be read; the rest goes on."""
    warnings.warn(f"{what} is left out: {reason_of(error)}", stacklevel=3)
