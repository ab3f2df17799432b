"""Train, distil and judge: `python train.py --help`."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fewstep.cli import guarded
from fewstep.launch import is_one_of_several, start
from fewstep.signals import heard


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def train(config: DictConfig) -> None:
    if status := guarded(lambda: checked_run(config)):
        sys.exit(status)  # Hydra lets this pass without words of its own


@heard()
def checked_run(config: DictConfig) -> None:
    """A recipe that follows from data set and stage need not exist, which Hydra takes to hold for a named one too."""
    from fewstep.processes import together  # these take seconds to import: `--help` need not wait for them
    from fewstep.trainer import TrainerSettings

    settings = HydraConfig.get()
    named = [o.removeprefix("recipe=") for o in settings.overrides.task if o.startswith("recipe=")]
    sources = [Path(source.path, "recipe") for source in settings.runtime.config_sources if source.schema == "file"]
    known = sorted({file.stem for source in sources for file in source.glob("*.yaml")})
    if named and named[-1] not in known:
        raise ValueError(f"recipe must be one of {', '.join(known)}, got {named[-1]}; ~recipe is none")
    trainer = TrainerSettings(**config.trainer)
    if not is_one_of_several() and max(trainer.processes, trainer.num_nodes) > 1:
        sys.exit(start(__file__, arguments(), trainer.processes, trainer.num_nodes))
    from fewstep.run import run

    with together(trainer.device, alone=trainer.strategy == "fsdp"):
        run(config)


def arguments() -> list[str]:
    """What this job was started with; of a multirun, what differs from the command line."""
    settings = HydraConfig.get()
    return list(settings.overrides.task) if settings.mode == RunMode.MULTIRUN else sys.argv[1:]


if __name__ == "__main__":
    sys.exit(guarded(train))
