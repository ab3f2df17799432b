"""Settings as a user types them, before anything is built from them."""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

FORCE = "force"
STAGE_TEXTS = ("sampler", "variant", "w_draw", "prediction", "adapter", "until")
TEXTS = ("name", "_target_", "weight", "guidance_weight", *STAGE_TEXTS)
SWITCHES = ("clip_target",)
FOLDER = r"[\w.,=+-]*\w[\w.,=+-]*"
STAGES = ("pipeline", "teacher", "guidance", "progressive", "encoder", "evaluate")
GROUPS = ("training", "teacher", "guidance", "progressive", "evaluate")
MAY_BE_NULL = ("guidance_interval", "w_values")
LISTS = ("ladder", "w", "teacher_steps", "guided_steps", "baseline_steps", *MAY_BE_NULL)
LISTS_OF_TEXTS = ("baselines",)

DATA_SWITCHES = ("strict", "flip", "generated")
DATA_COUNTS = ("size", "hold_out_every", "num_reference", "held_out_shards", "walks", "buffer", "num_workers")


def require_top(settings: Mapping[str, Any]) -> None:
    """Refuse top-level settings of another type.

    Raises:
        ValueError: names the setting and its value.
    """
    seed, resume, name = settings["seed"], settings["resume"], settings["name"]
    for group in ("dataset", "model", "stage", "trainer", "schedule", "logger"):
        if not isinstance(settings.get(group), Mapping):
            raise ValueError(f"{group} must be one of its options or a group of settings, got {settings.get(group)!r}")
    texts = {key: settings[key] for key in ("teacher", "outputs")} | {"dataset.name": settings["dataset"].get("name")}
    for key, value in texts.items():
        if not (isinstance(value, str) or (value is None and key == "teacher")):
            raise ValueError(f"{key} must be text, got {value!r}")
    if (stage := settings["stage"].get("name")) not in STAGES:
        raise ValueError(f"stage.name must be one of {', '.join(STAGES)}, got {stage!r}; choose it by stage=")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if not isinstance(settings["plan"], bool):
        raise ValueError(f"plan must be true or false, got {settings['plan']!r}")
    if not isinstance(wandb := settings["logger"].get("wandb", False), bool):
        raise ValueError(f"logger.wandb must be true or false, got {wandb!r}")
    if resume not in ("auto", FORCE):
        raise ValueError(f"resume must be auto or {FORCE}, got {resume!r}")
    for key, value in {"name": name, "dataset.name": settings["dataset"]["name"]}.items():
        if value is not None and not re.fullmatch(FOLDER, str(value)):
            or_null = " or null" if key == "name" else ""
            raise ValueError(f"{key} must be a folder's name of letters, digits and .,=+-_{or_null}, got {value!r}")


def require_data(settings: Mapping[str, Any]) -> None:
    """Switches of a data set are true or false, which "no" is not, and counts are whole numbers.

    Raises:
        ValueError: one is not; names it and its value.
    """
    for key, value in settings.items():
        if key in DATA_SWITCHES and not isinstance(value, bool):
            raise ValueError(f"dataset.{key} must be true or false, got {value!r}")
        may_be_null = key == "size" and "encoder" in settings  # text in shards of latents
        if key in DATA_COUNTS and type(value) is not int and not (value is None and may_be_null):
            raise ValueError(f"dataset.{key} must be a whole number, got {value!r}")


def require_numbers(settings: Mapping[str, Any], where: str) -> None:
    """All settings but a few names and switches are numbers, lists of numbers, or groups of such.

    Raises:
        ValueError: one is not; names it and its value.
    """
    for key, value in settings.items():
        if key == "student":  # arguments of a network, which checks them
            continue
        if (key in GROUPS) != isinstance(value, Mapping):
            kind = "a group of settings" if key in GROUPS else "no group of settings"
            raise ValueError(f"{where}.{key} must be {kind}, got {value!r}")
        if isinstance(value, Mapping):
            require_numbers(value, f"{where}.{key}")
        elif key in SWITCHES:
            if not isinstance(value, bool):
                raise ValueError(f"{where}.{key} must be true or false, got {value!r}")
        elif key in LISTS_OF_TEXTS:
            if not isinstance(value, list):
                raise ValueError(f"{where}.{key} must be a list, like [{value}], got {value!r}")
        elif key not in TEXTS and not (value is None and key in MAY_BE_NULL):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    kind = "a list of numbers" if isinstance(value, list) else "a number"
                    raise ValueError(f"{where}.{key} must be {kind}, got {value!r}")
                if isinstance(number, float) and not isfinite(number):
                    raise ValueError(f"{where}.{key} must be finite, got {value!r}")
            if key in LISTS and not isinstance(value, list):
                raise ValueError(f"{where}.{key} must be a list, like [{value}], got {value!r}")
