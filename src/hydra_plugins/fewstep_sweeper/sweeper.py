"""The sweeper that Hydra calls: a thin shell around fewstep.sweeps, which takes seconds to import."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


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

    def parameters(self) -> list[str]:
        """The preset's parameters as they would be typed; ${...} is for each job to resolve."""
        assert self.config is not None
        params = OmegaConf.to_container(self.config.hydra.sweeper, resolve=False)
        assert isinstance(params, dict)
        return [f"{key}={'null' if value is None else value}" for key, value in (params["params"] or {}).items()]

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep of the preset's parameters and of the command line; the latter count more."""
        from fewstep.sweeps.grid import Hydra, sweep_grid
        from fewstep.sweeps.status import Objective
        from fewstep.system.signals import stop_signals

        assert self.hydra_context is not None
        assert self.config is not None
        hydra = Hydra(self.hydra_context, self.config, self.script)
        objective = Objective(self.objective.figure, self.objective.steps, self.objective.w)
        with stop_signals():
            return sweep_grid(hydra, [*self.parameters(), *arguments], objective, self.at_once)


class FewstepSearch(FewstepSweeper):
    """Optuna chooses the values, so many at a time, until there have been as many trials as asked for."""

    def __init__(self, params: DictConfig | None, objective: DictConfig, at_once: int, trials: int, seed: int) -> None:
        super().__init__(params, objective, at_once)
        self.trials, self.seed = trials, seed

    def sweep(self, arguments: list[str]) -> Any:
        """Search in the preset's parameters and those of the command line; the latter count more."""
        from fewstep.sweeps.grid import Hydra
        from fewstep.sweeps.search import Search, sweep_search
        from fewstep.sweeps.status import Objective
        from fewstep.system.signals import stop_signals

        assert self.hydra_context is not None
        assert self.config is not None
        hydra = Hydra(self.hydra_context, self.config, self.script)
        objective = Objective(self.objective.figure, self.objective.steps, self.objective.w)
        search = Search(self.trials, self.at_once, self.seed)
        with stop_signals():
            return sweep_search(hydra, [*self.parameters(), *arguments], objective, search)
