"""Settings of other arguments than those that were typed, composed while Hydra runs the program."""

from collections.abc import Sequence

from hydra import compose

from fewstep.runs.config import Settings


def composed(arguments: Sequence[str]) -> Settings:
    """What `python train.py *arguments` is composed of, with the folders of settings of the command that runs.

    Raises:
        ValueError: settings that cannot be.
    """
    return Settings.read(compose("config", [*arguments]))
