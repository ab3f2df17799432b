"""Values that come from outside, from JSON or from a command line, held against the annotations of a dataclass."""

from dataclasses import is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def require_card_types(made: Any) -> None:
    """Refuse a dataclass of JSON whose values are not what its annotations say, down to those inside it.

    Raises:
        ValueError: names the first such value.
    """
    for name, hint in get_type_hints(type(made)).items():
        value = getattr(made, name)
        if not is_a(value, hint):
            known = f"one of {', '.join(get_args(hint))}" if get_origin(hint) is Literal else "of its own type"
            raise ValueError(f"its {name} must be {known}, got {value!r:.80}")
        for part in value if isinstance(value, tuple) else (value,):
            if is_dataclass(part):
                require_card_types(part)


def require_settings(made: Any, group: str) -> None:
    """Refuse settings whose values are not what the annotations of their dataclass say.

    Raises:
        ValueError: names the first such setting.
    """
    for name, hint in get_type_hints(type(made)).items():
        value = getattr(made, name)
        if not is_a(value, hint):
            kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            known = " or ".join(WORDS.get(kind, "a list of numbers") for kind in kinds)
            raise ValueError(f"{group}.{name} must be {known}, got {value!r:.80}")


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; numbers are finite, and true is no number."""
    arguments = get_args(hint)
    if hint is Any:
        return True
    if isinstance(hint, UnionType):
        return any(is_a(value, each) for each in arguments)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in arguments
    if get_origin(hint) is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... and isinstance(value, tuple) else arguments
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(is_a, value, kinds))
    if hint in (int, float):
        return (
            not isinstance(value, bool) and isinstance(value, int if hint is int else int | float) and isfinite(value)
        )
    return isinstance(value, hint)
