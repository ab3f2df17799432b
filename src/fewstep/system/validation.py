"""Values from a command line or JSON, validated by pydantic against the annotations of the constructor they go to."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def build(constructor: type[T], settings: Mapping[str, Any], group: str) -> T:
    """An object built from its settings, each validated against the annotation of the constructor's parameter.

    Args:
        group: name of the settings in error messages, as "stage.training".

    Raises:
        ValueError: a setting is unknown, missing or of another type, or the constructor refuses its value.
    """
    parameters, hints = signature(constructor).parameters, annotations(constructor)
    if unknown := [key for key in settings if key not in parameters]:
        raise ValueError(f"{group}.{unknown[0]} is no setting; {group} has {', '.join(parameters)}")
    if missing := [k for k, p in parameters.items() if p.default is Parameter.empty and k not in settings]:
        raise ValueError(f"{group}.{missing[0]} must be given, {expected(hints[missing[0]])}, and is missing")
    return constructor(**{key: checked(value, hints[key], f"{group}.{key}") for key, value in settings.items()})


def checked(value: Any, hint: Any, name: str) -> Any:
    """`value` converted to the annotated type `hint`: lists to tuples; numbers must be finite, and a bool is no number.

    Raises:
        ValueError: it is of another type; one line with the name, the rule and the value.
    """
    try:
        return validated(value, hint)
    except ValidationError as error:
        first = error.errors()[0]
        if cause := first.get("ctx", {}).get("error"):  # raised by a __post_init__
            raise ValueError(str(cause)) from error
        finite = any(each["type"] == "finite_number" for each in error.errors())
        raise ValueError(f"{name} must be {'finite' if finite else expected(hint)}, got {value!r:.80}") from error


def validated(value: Any, hint: Any) -> Any:
    """`value` through pydantic in strict mode: as JSON where it can be, else as a Python object.

    Raises:
        ValidationError: pydantic's.
    """
    try:
        text = json.dumps(value)
    except TypeError:
        return adapter(hint).validate_python(value, strict=True)
    return adapter(hint).validate_json(text, strict=True)


@cache
def adapter(hint: Any) -> TypeAdapter[Any]:
    """Pydantic's validator of an annotation, strict; pydantic accepts no configuration from outside for a dataclass."""
    has_its_own = hasattr(hint, "__pydantic_config__") or hasattr(hint, "__dataclass_fields__")
    return TypeAdapter(hint) if has_its_own else TypeAdapter(hint, config=STRICT)


def annotations(constructor: type) -> dict[str, Any]:
    """Parameter -> annotation, of a dataclass's fields or of __init__."""
    is_dataclass = hasattr(constructor, "__dataclass_fields__")
    return get_type_hints(constructor if is_dataclass else constructor.__init__)


def expected(hint: Any) -> str:
    """An annotation in a user's words, as "a number or null"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType or (arguments and NoneType in arguments):
        return " or ".join(dict.fromkeys(expected(each) for each in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = arguments[0] if arguments else str
        kinds = {str: "texts", int: "whole numbers, like [1]"}
        return f"a list of {kinds.get(inner, 'numbers, like [1]')}"
    return EXPECTED.get(hint, "a group of settings")
