"""The methods that a stage can be: every file of the group `stage` whose target is one."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from fewstep.methods import Method
from fewstep.runs.build import build_method
from fewstep.runs.overrides import conf_folder


def composed_methods(config_dirs: Sequence[Path] = ()) -> Iterator[tuple[str, Method]]:
    """Each stage's name and its method with the settings of its file, by name.

    Args:
        config_dirs: folders of settings beside conf, as in `python train.py --config-dir DIR`.

    Raises:
        ValueError: a folder without stages, or a stage whose class or settings are refused.
    """
    conf = conf_folder()
    sys.path.append(str(conf.parent))  # where train.py lies, whose imports begin there too
    for folder in config_dirs:
        if not (folder / "stage").is_dir():
            raise ValueError(f"--config-dir must hold a folder stage with the YAML of methods, and {folder} has none")
    names = sorted({file.stem for folder in (conf, *config_dirs) for file in (folder / "stage").glob("*.yaml")})
    places = ",".join(f"file://{folder.resolve()}" for folder in config_dirs)
    with initialize_config_dir(str(conf), version_base="1.3"):
        for name in names:
            config = compose("config", [f"stage={name}", "~recipe", f"hydra.searchpath=[{places}]"])
            stage = cast(dict[str, Any], OmegaConf.to_container(config.stage, resolve=True))
            if is_method(stage, name):
                yield name, build_method(stage)


def is_method(stage: dict[str, Any], name: str) -> bool:
    """Whether a stage's target is a method; pipelines have none, and the evaluation's is another class.

    Raises:
        ValueError: the target cannot be imported.
    """
    if "_target_" not in stage:
        return False
    try:
        return issubclass(get_class(stage["_target_"]), Method)
    except Exception as error:  # whatever the import of a user's module raises
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"stage={name}: its class {stage['_target_']} cannot be imported: {reason}") from error
