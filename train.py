"""Train, distil and evaluate: `python train.py --help`."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewstep.commands.main import run_guarded
from fewstep.distributed.launch import is_worker_process, launch_workers
from fewstep.runs.overrides import hydra_arguments, require_known_recipe
from fewstep.system.load import LoadOfOthers
from fewstep.system.signals import stop_signals


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def train(config: DictConfig) -> None:
    if status := run_guarded(lambda: checked_run(config)):
        sys.exit(status)  # Hydra lets this pass without words of its own


@stop_signals()
def checked_run(config: DictConfig) -> None:
    """Run what Hydra composed, in as many processes as it says."""
    load = LoadOfOthers()
    # These take seconds to import: `--help` need not wait for them.
    from fewstep.distributed.collectives import on_main_process, process_group
    from fewstep.runs.config import Settings

    composed = HydraConfig.get()
    sources = [Path(source.path) for source in composed.runtime.config_sources if source.schema == "file"]
    require_known_recipe(composed.overrides.task, sources)
    settings = Settings.read(config)
    trainer = settings.trainer
    several = max(trainer.processes, trainer.num_nodes) > 1
    if several and not settings.values["plan"] and not is_worker_process():
        sys.exit(launch_workers(__file__, sys.argv[1:], trainer.processes, trainer.num_nodes))
    with process_group(trainer.device, single_process=trainer.strategy == "fsdp"):
        if settings.values["plan"]:
            from fewstep.estimate.plan import plan

            on_main_process(lambda: plan(settings, composed.overrides.task))
        else:
            from fewstep.runs.pipeline import run
            from fewstep.system.threads import choose_threads, considerate_threads

            choose_threads(load.cores())
            with considerate_threads():
                run(settings)


def main() -> None:
    """Give Hydra the command line."""
    sys.argv[1:] = hydra_arguments(sys.argv[1:])
    train()


if __name__ == "__main__":
    sys.exit(run_guarded(main))
