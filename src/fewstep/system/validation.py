"""Values from a command line or JSON, validated by pydantic against the annotations of the constructor they go to."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
Count = Annotated[int, Field(ge=0, lt=2**63, description="from 0 to 2^63 - 1")]
"""A number of things, or a seed, as torch takes it."""
AtLeastOne = Annotated[int, Field(ge=1, description="of at least 1")]
AtLeastTwo = Annotated[int, Field(ge=2, description="of at least 2")]
Positive = Annotated[float, Field(gt=0, description="above 0")]
NotNegative = Annotated[float, Field(ge=0, description="of at least 0")]
Share = Annotated[float, Field(ge=0, le=1, description="from 0 to 1")]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, description="of at least 0 and below 1")]
ShareAboveZero = Annotated[float, Field(gt=0, le=1, description="above 0 and at most 1")]
Filled = Annotated[str, Field(pattern=r"\S", description="that is not empty")]
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


class Bounded:
    """A dataclass of settings whose values lie within the bounds of their annotations, however it is constructed.

    Bounds that are inherited hold too, of a field that a subclass declares anew as well.

    Attributes:
        settings_key: name of the settings in error messages.

    Raises:
        ValueError: one does not; a line with its name, the rule and the value.
    """

    settings_key: ClassVar[str] = "stage"

    def __post_init__(self) -> None:
        for name, hint in bounds_of(type(self)):
            checked(getattr(self, name), hint, f"{self.settings_key}.{name}")


@cache
def bounds_of(kind: type) -> tuple[tuple[str, Any], ...]:
    """The fields with bounds, and their annotations, of a class and of each that it inherits from."""
    hints = (hint for base in kind.__mro__ if issubclass(base, Bounded) for hint in annotations(base).items())
    return tuple(dict.fromkeys((name, hint) for name, hint in hints if is_bounded(hint)))


def is_bounded(hint: Any) -> bool:
    """Whether an annotation, or one of its alternatives, has bounds."""
    return Annotated in (get_origin(hint), *map(get_origin, get_args(hint)))


def build(constructor: Callable[..., T], settings: Mapping[str, Any], group: str) -> T:
    """An object built from its settings, each validated against the annotation of the constructor's parameter.

    Args:
        group: name of the settings in error messages, as "stage.training".

    Raises:
        ValueError: a setting is unknown, missing or of another type, or the constructor refuses its value.
    """
    return constructor(**checked_arguments(constructor, settings, group))


def checked_arguments(
    constructor: Callable[..., Any], settings: Mapping[str, Any], group: str, given: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings that a class or function is called with, each validated against the parameter's annotation.

    Args:
        given: parameters that the caller gives.

    Raises:
        ValueError: see `build`.
    """
    parameters, hints = signature(constructor).parameters, annotations(constructor)
    named = {key: p for key, p in parameters.items() if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)}
    open_ended = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    if unknown := [key for key in settings if key not in named and not open_ended]:
        raise ValueError(f"{group}.{unknown[0]} is no setting; {group} has {', '.join(named)}")
    required = [key for key, p in named.items() if p.default is Parameter.empty and key not in given]
    if missing := [key for key in required if key not in settings]:
        raise ValueError(f"{group}.{missing[0]} must be given, {expected(hints.get(missing[0], Any))}, and is missing")
    return {key: checked(value, hints.get(key, Any), f"{group}.{key}") for key, value in settings.items()}


def checked(value: Any, hint: Any, name: str) -> Any:
    """`value` converted to the annotated type `hint`: lists to tuples; numbers must be finite, and a bool is no number.

    Raises:
        ValueError: it is of another type; one line with the name, the rule and the value.
    """
    try:
        return validated(value, hint)
    except PydanticUserError:  # an annotation of another library that says nothing here
        return value
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
        if type(value).__module__ == "numpy":
            return validated(value.tolist(), hint)
        return adapter(hint).validate_python(value, strict=True)
    return adapter(hint).validate_json(text, strict=True)


@cache
def adapter(hint: Any) -> TypeAdapter[Any]:
    """Pydantic's validator of an annotation, strict; pydantic accepts no configuration from outside for a dataclass."""
    has_its_own = hasattr(hint, "__pydantic_config__") or hasattr(hint, "__dataclass_fields__")
    return TypeAdapter(hint) if has_its_own else TypeAdapter(hint, config=STRICT)


def annotations(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> annotation, of a dataclass's fields, of __init__ or of a function."""
    is_plain = isinstance(constructor, type) and not hasattr(constructor, "__dataclass_fields__")
    try:
        return get_type_hints(constructor.__init__ if is_plain else constructor, include_extras=True)
    except (NameError, TypeError):  # annotations of another library that cannot be resolved
        return {}


def expected(hint: Any) -> str:
    """An annotation in a user's words, as "a number or null"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join(
            [expected(arguments[0]), *filter(None, (getattr(each, "description", None) for each in arguments[1:]))]
        )
    if origin in (UnionType, Union):
        return " or ".join(dict.fromkeys(expected(each) for each in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = arguments[0] if arguments else str
        if get_origin(inner) is Mapping:
            return "a list of groups of settings, like [{_target_: CLASS}]"
        kinds = {str: "texts", int: "whole numbers, like [1]"}
        return f"a list of {kinds.get(inner, 'numbers, like [1]')}"
    return "a value" if hint is Any else EXPECTED.get(hint, "a group of settings")
