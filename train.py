"""Train, distil and judge: `python train.py --help`."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewstep.cli import guarded
from fewstep.signals import heard


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def train(config: DictConfig) -> None:
    if status := guarded(lambda: checked_run(config)):
        sys.exit(status)  # Hydra lets this pass without words of its own


@heard()
def checked_run(config: DictConfig) -> None:
    """A recipe that follows from data set and stage need not exist, which Hydra takes to hold for a named one too."""
    from fewstep.run import run  # takes seconds to import: `--help` need not wait for it

    settings = HydraConfig.get()
    named = [o.removeprefix("recipe=") for o in settings.overrides.task if o.startswith("recipe=")]
    sources = [Path(source.path, "recipe") for source in settings.runtime.config_sources if source.schema == "file"]
    known = sorted({file.stem for source in sources for file in source.glob("*.yaml")})
    if named and named[-1] not in known:
        raise ValueError(f"recipe must be one of {', '.join(known)}, got {named[-1]}; ~recipe is none")
    run(config)


if __name__ == "__main__":
    sys.exit(guarded(train))
