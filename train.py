"""Train, distil and judge: `python train.py --help`."""

import sys

import hydra
from omegaconf import DictConfig

from fewstep.cli import guarded


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def train(config: DictConfig) -> None:
    from fewstep.run import run  # takes seconds to import: `--help` need not wait for it

    if status := guarded(lambda: run(config)):
        sys.exit(status)  # Hydra lets this pass without words of its own


if __name__ == "__main__":
    sys.exit(guarded(train))
