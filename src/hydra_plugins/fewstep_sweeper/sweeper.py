"""The sweeper that Hydra calls: a thin shell around fewstep.sweeps, which takes seconds to import."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ObjectiveConf:
    """The figure that jobs are compared by; see fewstep.sweeps.status.Objective."""

    figure: str = "fid"
    steps: int = 4
    w: float | None = None


@dataclass
class FewstepSweeperConf:
    """hydra.sweeper: `params` as in Hydra's own; `at_once` jobs are in the queue of a launcher that has one."""

    _target_: str = "hydra_plugins.fewstep_sweeper.sweeper.FewstepSweeper"
    params: dict[str, Any] | None = None
    objective: ObjectiveConf = field(default_factory=ObjectiveConf)
    at_once: int = 64


ConfigStore.instance().store(group="hydra/sweeper", name="fewstep", node=FewstepSweeperConf, provider="fewstep")


class FewstepSweeper(Sweeper):
    """Every combination of the swept values; what they share is trained once, what is finished is left alone."""

    def __init__(self, params: DictConfig | None, objective: DictConfig, at_once: int) -> None:
        self.params, self.objective, self.at_once = params or {}, objective, at_once

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives; the launcher is made when the sweep's folder is known."""
        self.hydra_context, self.config, self.launcher = hydra_context, config, None
        self.script = inspect.getfile(task_function)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep of the preset's parameters and of the command line; the latter count more."""
        from fewstep.signals import heard
        from fewstep.sweeps.grid import Hydra, sweep_grid
        from fewstep.sweeps.status import Objective

        assert self.hydra_context is not None
        assert self.config is not None
        hydra = Hydra(self.hydra_context, self.config, self.script)
        own = self.objective
        objective = Objective(own.figure, own.steps, own.w)
        with heard():
            return sweep_grid(hydra, [*map(override, self.params.items()), *arguments], objective, self.at_once)


def override(parameter: tuple[str, Any]) -> str:
    """A parameter of the preset as it would be typed."""
    key, value = parameter
    return f"{key}={'null' if value is None else value}"
