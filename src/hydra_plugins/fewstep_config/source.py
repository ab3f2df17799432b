"""The group `method`, and the recipes of pipelines: settings that follow from the files of `stage` and `recipe`.

Hydra's defaults lists cannot put an interpolated name into a package, which `method=NAME` needs: the settings of
stage/NAME.yaml at stage.NAME. So the few lines that would say it for each method are made here, for any name:

    method/NAME                 {name: NAME}, and stage/NAME at stage.NAME
    recipe/DATASET_pipeline     the recipes of the data set for each stage of a pipeline, in their places
    recipe/method/DATASET/NAME  the recipe of the data set for the chosen method, at stage.NAME
    recipe/DATASET_STAGE        of a data set whose model is `auto`, where it has none: that of `imagefolder`
    recipe/imagefolder_NAME     of a method, where there is none: budgets that follow from the data and the machine
"""

import copyreg
import re
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from fewstep.runs.overrides import OWN_DATA

# Hydra deep-copies its search path, and so this singleton, a hundred times for `--help`: a second of processor time.
copyreg.pickle(ConfigStore, lambda store: (ConfigStore.instance, ()))

SCHEME = "fewstep-config"
MAIN = "main"  # Hydra's name of the folder that the program gives
PIPELINE = "stage/pipeline.yaml"
FIXED = ("teacher", "guidance", "evaluate")  # a pipeline's stages but the method

AUTO = "auto"
BUDGETS = ("images", "batch_size", "warmup_images")  # settings of a training that follow from the data
NO_METHOD = ("pipeline", *FIXED)
NAME = r"(?P<{}>[\w-]+)"
METHOD = re.compile(rf"method/{NAME.format('name')}")
PIPELINE_RECIPE = re.compile(rf"recipe/{NAME.format('dataset')}_pipeline")
OF_ONE_STAGE = re.compile(rf"recipe/{NAME.format('name')}")
METHOD_RECIPE = re.compile(rf"recipe/method/{NAME.format('dataset')}/{NAME.format('name')}")


class FewstepSearchPath(SearchPathPlugin):
    """Adds the source to the search path of programs whose settings have a pipeline."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source, which lists the stages of the program's own folder."""
        for element in list(search_path.get_path()):
            folder = element.path.removeprefix("file://")
            if element.provider == MAIN and Path(folder, PIPELINE).is_file():
                search_path.append("fewstep", f"{SCHEME}://{folder}")


class FewstepConfigSource(ConfigSource):
    """Serves settings that are made from their names; its path is the folder of settings."""

    @staticmethod
    def scheme() -> str:
        """Begins the source's address in a search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The settings of that name.

        Raises:
            ConfigLoadError: there are none.
        """
        settings, package = generated(config_path), "_global_"
        if settings is None:
            settings, package = own_recipe(config_path, Path(self.path)), "stage"
        if settings is None:
            raise ConfigLoadError(f"no settings follow from the name {config_path}")
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(settings), {"package": package})

    def available(self) -> bool:
        """Whether the folder of settings is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether it is the group of methods; recipes are a group of files."""
        return config_path.rstrip("/") in ("", "method")

    def is_config(self, config_path: str) -> bool:
        """Whether settings follow from the name."""
        return (generated(config_path) or own_recipe(config_path, Path(self.path))) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The group, or the methods of the program's own folder; others may be in folders that a user adds."""
        if not config_path:
            return ["method"] if results_filter in (None, ObjectType.GROUP) else []
        if config_path.rstrip("/") != "method" or results_filter is ObjectType.GROUP:
            return []
        return sorted(file.stem for file in Path(self.path, "stage").glob("*.yaml") if file.stem not in NO_METHOD)


def generated(config_path: str) -> dict[str, object] | None:
    """The settings that follow from a name in the search path; None where none do."""
    path = config_path.removesuffix(".yaml")
    if (found := METHOD.fullmatch(path)) and (name := found["name"]) not in NO_METHOD:
        return {"defaults": [{f"/stage@_global_.stage.{name}": name}, "_self_"], "name": name}
    if found := METHOD_RECIPE.fullmatch(path):
        dataset, name = found["dataset"], found["name"]
        return {"defaults": [{f"optional /recipe@_global_.stage.{name}": f"{dataset}_{name}"}]}
    if found := PIPELINE_RECIPE.fullmatch(path):
        dataset = found["dataset"]
        stages = [{f"optional /recipe@_global_.stage.{stage}": f"{dataset}_{stage}"} for stage in FIXED]
        return {"defaults": [*stages, {"/recipe/method@_global_": f"{dataset}/${{method}}"}]}
    return None


def own_recipe(config_path: str, conf: Path) -> dict[str, object] | None:
    """The recipe of a stage for data of one's own that follows from its name; None where none does.

    Args:
        conf: the folder of settings.
    """
    found = OF_ONE_STAGE.fullmatch(config_path.removesuffix(".yaml"))
    dataset = found and next((each for each in own_data_sets(conf) if found["name"].startswith(f"{each}_")), None)
    if not found or dataset is None:
        return None
    stage = found["name"].removeprefix(f"{dataset}_")
    if dataset != OWN_DATA:
        return {"defaults": [f"{OWN_DATA}_{stage}@_here_"]}
    return None if stage in NO_METHOD else {"training": dict.fromkeys(BUDGETS, AUTO)}


@cache
def own_data_sets(conf: Path) -> tuple[str, ...]:
    """The data sets whose network is chosen by the data: those whose file in the group model begins with `auto`."""

    def begins_with(name: str) -> set[str]:
        file = conf / "model" / f"{name}.yaml"
        defaults: Any = OmegaConf.select(OmegaConf.load(file), "defaults") or [] if file.is_file() else []
        return {name}.union(*(begins_with(each) for each in defaults if isinstance(each, str) and each != "_self_"))

    names = (file.stem for file in Path(conf, "dataset").glob("*.yaml"))
    return tuple(sorted((name for name in names if AUTO in begins_with(name)), key=len, reverse=True))
