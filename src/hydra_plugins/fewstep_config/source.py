"""The group `method`, and the recipes of pipelines: settings that follow from the files of `stage` and `recipe`.

Hydra's defaults lists cannot put an interpolated name into a package, which `method=NAME` needs: the settings of
stage/NAME.yaml at stage.NAME. So the few lines that would say it for each method are made here, for any name:

    method/NAME                 {name: NAME}, and stage/NAME at stage.NAME
    recipe/DATASET_pipeline     the recipes of the data set for each stage of a pipeline, in their places
    recipe/method/DATASET/NAME  the recipe of the data set for the chosen method, at stage.NAME
"""

import copyreg
import re
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

# Hydra deep-copies its search path, and so this singleton, a hundred times for `--help`: a second of processor time.
copyreg.pickle(ConfigStore, lambda store: (ConfigStore.instance, ()))

SCHEME = "fewstep-config"
MAIN = "main"  # Hydra's name of the folder that the program gives
PIPELINE = "stage/pipeline.yaml"
FIXED = ("teacher", "guidance", "evaluate")  # a pipeline's stages but the method
NO_METHOD = ("pipeline", *FIXED)
NAME = r"(?P<{}>[\w-]+)"
METHOD = re.compile(rf"method/{NAME.format('name')}")
PIPELINE_RECIPE = re.compile(rf"recipe/{NAME.format('dataset')}_pipeline")
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
        settings = generated(config_path)
        if settings is None:
            raise ConfigLoadError(f"no settings follow from the name {config_path}")
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(settings), {"package": "_global_"})

    def available(self) -> bool:
        """Whether the folder of settings is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether it is the group of methods; recipes are a group of files."""
        return config_path.rstrip("/") in ("", "method")

    def is_config(self, config_path: str) -> bool:
        """Whether settings follow from the name."""
        return generated(config_path) is not None

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
