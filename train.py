"""Train, distil and judge: `python train.py --help`."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewstep.commands.main import guarded
from fewstep.runs.overrides import as_hydra_reads, require_known_recipe
from fewstep.distributed.launch import is_one_of_several, start
from fewstep.system.signals import heard


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def train(config: DictConfig) -> None:
    if status := guarded(lambda: checked_run(config)):
        sys.exit(status)  # Hydra lets this pass without words of its own


@heard()
def checked_run(config: DictConfig) -> None:
    """Run what Hydra composed, in as many processes as it says."""
    from fewstep.distributed.collectives import together  # these take seconds to import: `--help` need not wait for them
    from fewstep.training.settings import TrainerSettings

    settings = HydraConfig.get()
    sources = [Path(source.path) for source in settings.runtime.config_sources if source.schema == "file"]
    require_known_recipe(settings.overrides.task, sources)
    trainer = TrainerSettings(**config.trainer)
    if not config.plan and not is_one_of_several() and max(trainer.processes, trainer.num_nodes) > 1:
        sys.exit(start(__file__, sys.argv[1:], trainer.processes, trainer.num_nodes))
    from fewstep.runs.pipeline import run

    with together(trainer.device, alone=trainer.strategy == "fsdp"):
        run(config)


def main() -> None:
    """Give Hydra the command line."""
    sys.argv[1:] = as_hydra_reads(sys.argv[1:])
    train()


if __name__ == "__main__":
    sys.exit(guarded(main))
