"""The arguments of train.py before Hydra reads them. Imports nothing slow."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

# An agent of W&B gives each setting as --key=value, as scripts with a parser of their own take it. These are Hydra's.
FLAGS_OF_HYDRA = ("cfg", "package", "config-path", "config-name", "config-dir", "info", "experimental-rerun")
NEEDED = {  # what a launcher or sweeper needs: the package, and the extra that installs it
    "launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "launchers"),
    "launcher=local": ("hydra_plugins.hydra_submitit_launcher", "launchers"),
    "launcher=slurm": ("hydra_plugins.hydra_submitit_launcher", "launchers"),
    "sweeper=optuna": ("optuna", "search"),
    "sweeps=search": ("optuna", "search"),
}


OWN_DATA = "imagefolder"  # whose recipes are those of all data of one's own: they fit any data and machine
OPTIONS = ("dataset", "model", "stage", "method", "trainer", "logger", "recipe", "launcher", "sweeper")
RENAMED = {"stage.until": "stage.stages, a list like [teacher,guidance]"}


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with W&B's made Hydra's, those of a preset's sweep marked as one, and --config-dir in front.

    Hydra's parser takes no settings after a flag that came after settings.

    Raises:
        ValueError: a launcher or sweeper is asked for whose package is not installed, or the recipe of a pipeline, or
            files where a data set is named.
    """
    read = [hydra_override(argument) for argument in arguments]
    refuse_paths(read)
    read = [quoted_value(argument) for argument in read]
    for argument in read:
        if argument.startswith("="):
            raise ValueError(f"settings must be KEY=VALUE, got {argument!r}")
        if (group := argument.removesuffix("=null")) in OPTIONS and group != argument:
            raise ValueError(f"{group} must be one of its options, got null; `python train.py --help` shows them")
        if argument == "outputs=null":  # Hydra's own folder, before anything of ours reads it
            raise ValueError("outputs must be text that is not empty, got null")
        package, extra = NEEDED.get(argument.replace("hydra/", ""), ("", ""))
        if package and not is_installed(package):
            raise ValueError(f"{argument} needs a package that is not installed; pip install 'fewstep[{extra}]' has it")
        if new := RENAMED.get(argument.lstrip("+").partition("=")[0]):
            raise ValueError(f"{argument} is now {new}")
        if re.fullmatch(r"recipe=[\w-]+_pipeline", argument):
            raise ValueError(
                f"the recipes of a pipeline's stages follow from dataset= and method=, got {argument}; ~recipe is none"
            )
    has_preset = any(a.startswith("sweeps=") and a not in ("sweeps=null", "sweeps=") for a in read)
    has_mode = any(a.startswith(("-", "hydra.mode=")) and not a.startswith("--config-dir") for a in read)
    return flags_first([*read, "--multirun"] if has_preset and not has_mode else read)


def refuse_paths(arguments: Sequence[str]) -> None:
    """Refuse files in the place of a data set's name.

    Raises:
        ValueError: says what they probably are, and the line to type.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "dataset" and (path := path_named(value)) is not None:
            from fewstep.data.identify import identify

            raise identify(path).error(path, command="python train.py", name="dataset=", prefix="dataset.")


def path_named(value: str) -> Path | None:
    """The file or folder that is named where a data set should be; None for what can be the name of one."""
    plain = value.strip("\"'")
    path = Path(plain).expanduser()
    is_name = re.fullmatch(r"\w[\w-]*(,\w[\w-]*)*", plain) is not None  # or several, of a sweep
    if not plain or (is_name and not path.exists()):
        return None
    known = (Path(__file__).parents[3] / "conf" / "dataset", Path("conf/dataset"))
    return None if is_name and any((folder / f"{plain}.yaml").is_file() for folder in known) else path


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with --config-dir and its folder in front of the settings."""
    ours = {n for n, argument in enumerate(arguments) if argument.partition("=")[0] == "--config-dir"}
    ours |= {n + 1 for n in ours if arguments[n] == "--config-dir"}
    return [a for n, a in enumerate(arguments) if n in ours] + [a for n, a in enumerate(arguments) if n not in ours]


def hydra_override(argument: str) -> str:
    """--stage.w_max=4 as stage.w_max=4, and Python's None as null."""
    flag = re.match(r"--([A-Za-z_+~][\w.@/+~-]*)=(.*)", argument, flags=re.DOTALL)
    if flag is None or flag[1] in FLAGS_OF_HYDRA:
        return argument
    return f"{flag[1]}={'null' if flag[2] == 'None' else flag[2]}"


def quoted_value(argument: str) -> str:
    """KEY=VALUE with quotes around what Hydra's grammar cannot read: paths that exist, #rrggbb, letters not of ASCII.

    "~/" at the start of a path is the home folder, as in a shell.
    """
    key, equals, value = argument.partition("=")
    if not (re.fullmatch(r"[+~]{0,2}[A-Za-z_][\w.@/-]*", key) and equals) or value[:1] in ("", "'", '"', "[", "{", "$"):
        return argument
    value = os.path.expanduser(value) if value.startswith("~/") else value
    is_path = re.fullmatch(r"[\w./+-]+", value, re.ASCII) is None and os.path.lexists(value)
    parts = [value] if is_path else value.split(",")  # several values of a sweep
    plain = [not is_path and part.isascii() and re.fullmatch(r"#[0-9a-fA-F]{6}", part) is None for part in parts]
    return f"{key}={','.join(part if is_plain else quoted(part) for part, is_plain in zip(parts, plain, strict=True))}"


def quoted(value: object) -> str:
    """A text as an override's value, whatever it holds."""
    return QuotedString(str(value), Quote.single).with_quotes()


def preset_overrides(config: DictConfig) -> list[str]:
    """The parameters of a sweep's preset as they would be typed; ${...} is for each job to resolve."""
    params = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(params, dict)
    return [f"{key}={'null' if value is None else value}" for key, value in (params["params"] or {}).items()]


def is_installed(package: str) -> bool:
    """Whether a package can be imported; finds out without importing it."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # what it lies in
        return False


def require_known_recipe(overrides: Sequence[str], conf: Sequence[Path]) -> None:
    """A recipe that follows from data set and stage need not exist, which Hydra takes to hold for a named one too.

    Args:
        conf: the folders that Hydra reads.

    Raises:
        ValueError: a recipe is named that is not there; says which are.
    """
    named = [o.removeprefix("recipe=") for o in overrides if o.startswith("recipe=")]
    known = sorted({file.stem for folder in conf for file in (folder / "recipe").glob("*.yaml")})
    if named and named[-1] not in known and not named[-1].startswith(f"{OWN_DATA}_"):
        raise ValueError(f"recipe must be one of {', '.join(known)}, got {named[-1]}; ~recipe is none")


def conf_folder() -> Path:
    """The folder of settings: beside the source, or here.

    Raises:
        ValueError: it is in neither place.
    """
    places = (Path(__file__).parents[3] / "conf", Path("conf").resolve())
    conf = next((place for place in places if (place / "dataset").is_dir()), None)
    if conf is None:
        raise ValueError(f"settings are read from {places[-1]}, which is not there; change to fewstep's folder")
    return conf
