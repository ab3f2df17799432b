"""What to do about a line that Hydra refuses: the setting that was meant, quotes that are missing."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from fewstep.runs.overrides import conf_folder

MOST, MOST_OPTIONS = 3, 5  # settings that are proposed, and options that have one
ALIKE = 0.75
GROUPS = ("dataset", "model", "stage", "trainer")
SHOW_ALL = "`python train.py --cfg job` shows all settings"


@contextmanager
def explained(arguments: Sequence[str]) -> Iterator[None]:
    """Say of a setting that there is not which may be meant, and of a line that cannot be parsed what to quote.

    Args:
        arguments: of Hydra, as they were typed.

    Raises:
        ValueError: in place of Hydra's own errors of these kinds.
    """
    try:
        yield
    except OverrideParseException as error:
        key, _, value = error.override.partition("=")
        example = shlex.quote(f"{key}={QuotedString(value or 'a value', Quote.double).with_quotes()}")
        raise ValueError(
            f"settings must be KEY=VALUE, and values of more than letters, digits and _./+- in quotes within quotes, "
            f"like {example}, got {error.override}; {SHOW_ALL}"
        ) from error
    except (ConfigCompositionException, ConfigAttributeError, ConfigKeyError) as error:
        cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
        key = getattr(cause, "full_key", None)
        typed = [argument for argument in arguments if argument.partition("=")[0] == key]
        if not typed or f"~{key}" in arguments or "not in struct" not in str(cause):
            raise
        others = [argument for argument in arguments if argument not in typed]
        raise ValueError(f"{key} is no setting here{meant(str(key), others)}; {SHOW_ALL}") from error


def meant(key: str, arguments: Sequence[str]) -> str:
    """Which settings may be meant by `key`: its like in the same group, that name in others, or in other options."""
    parent, _, leaf = key.rpartition(".")
    keys = composed_keys(arguments)
    beside = [each for each in keys if parent and each.rpartition(".")[0] == parent]
    found = [
        f"{parent}.{each}" for each in get_close_matches(leaf, [b.rpartition(".")[2] for b in beside], MOST, ALIKE)
    ]
    found = found or [each for each in keys if each.rpartition(".")[2] == leaf]
    found = found or [each for each in keys if get_close_matches(leaf, [each.rpartition(".")[2]], 1, ALIKE)]
    if found:
        return f"; did you mean {', '.join(found[:MOST])}?"
    if beside:
        return f"; {parent} has {', '.join(each.rpartition('.')[2] for each in beside)}"
    return "".join(
        f"; {group}.{leaf} is a setting of {group}={listed(own)}" for group, own in options_with(leaf, parent)
    )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:MOST_OPTIONS]) + (f" and {n} more" if (n := len(names) - MOST_OPTIONS) > 0 else "")


def composed_keys(arguments: Sequence[str]) -> list[str]:
    """The keys of all settings that the arguments compose; none where they compose nothing either."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return [*keys_below(OmegaConf.to_container(compose("config", overrides)), "")]
    except Exception:  # the line is wrong in other places too
        return []


def keys_below(settings: Any, prefix: str) -> Iterator[str]:
    """The keys of nested settings, with dots."""
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        yield f"{prefix}{key}"
        yield from keys_below(value, f"{prefix}{key}.")


def options_with(name: str, parent: str) -> Iterator[tuple[str, list[str]]]:
    """The groups with options in conf/ that have a setting of that name themselves, and these options.

    Args:
        parent: a group, or empty for any.
    """
    for group in GROUPS if not parent else {parent} & {*GROUPS}:
        files = sorted((conf_folder() / group).glob("*.yaml"))
        if own := [f.stem for f in files if re.search(rf"^{re.escape(name)}:", f.read_text(), re.MULTILINE)]:
            yield group, own
