"""The sweeper that Hydra calls: a thin shell around fewstep.sweeps, which takes seconds to import."""

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fewstep.runs.overrides import preset_overrides

if TYPE_CHECKING:
    from fewstep.sweeps.context import SweepContext


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


@dataclass
class FewstepSearchConf:
    """hydra.sweeper of a search: so many `trials` in all, `at_once` of them before Optuna is asked again."""

    _target_: str = "hydra_plugins.fewstep_sweeper.sweeper.FewstepSearch"
    params: dict[str, Any] | None = None
    objective: ObjectiveConf = field(default_factory=ObjectiveConf)
    at_once: int = 1
    trials: int = 20
    seed: int = 0


for _name, _node in (("fewstep", FewstepSweeperConf), ("fewstep_search", FewstepSearchConf)):
    ConfigStore.instance().store(group="hydra/sweeper", name=_name, node=_node, provider="fewstep")


class FewstepSweeper(Sweeper):
    """Every combination of the swept values; what they share is trained once, what is finished is left alone."""

    def __init__(self, params: DictConfig | None, objective: DictConfig, at_once: int) -> None:
        self.objective, self.at_once = objective, at_once

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives; the launcher is made when the sweep's folder is known."""
        self.hydra_context, self.config, self.launcher = hydra_context, config, None
        self.script = inspect.getfile(task_function)

    def context(self) -> "SweepContext":
        """What Hydra gave, for fewstep.sweeps.

        Raises:
            ValueError: an objective without such a figure.
        """
        from fewstep.sweeps.context import SweepContext
        from fewstep.sweeps.status import Objective

        assert self.hydra_context is not None
        assert self.config is not None
        objective = Objective(self.objective.figure, self.objective.steps, self.objective.w)
        return SweepContext(self.hydra_context, self.config, self.script, objective, self.at_once)

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep of the preset's parameters and of the command line; the latter count more."""
        from fewstep.sweeps.grid import sweep_grid
        from fewstep.system.signals import stop_signals

        context = self.context()
        with stop_signals():
            sweep_grid(context, [*preset_overrides(context.config), *arguments])


class FewstepSearch(FewstepSweeper):
    """Optuna chooses the values, so many at a time, until there have been as many trials as asked for."""

    def __init__(self, params: DictConfig | None, objective: DictConfig, at_once: int, trials: int, seed: int) -> None:
        super().__init__(params, objective, at_once)
        self.trials, self.seed = trials, seed

    def sweep(self, arguments: list[str]) -> None:
        """Search in the preset's parameters and those of the command line; the latter count more."""
        from fewstep.sweeps.search import Search, sweep_search
        from fewstep.system.signals import stop_signals

        context, search = self.context(), Search(self.trials, self.at_once, self.seed)
        with stop_signals():
            sweep_search(context, [*preset_overrides(context.config), *arguments], search)
