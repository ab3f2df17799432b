"""The sweeper that Hydra calls: a thin shell around fewstep.sweeps, which takes seconds to import."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fewstep.runs.overrides import preset_overrides


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
class FewstepSearchConf(FewstepSweeperConf):
    """hydra.sweeper of a search: so many `trials` in all, `at_once` of them before Optuna is asked again."""

    at_once: int = 1
    trials: int = 20
    seed: int = 0


for _name, _node in (("fewstep", FewstepSweeperConf), ("fewstep_search", FewstepSearchConf)):
    ConfigStore.instance().store(group="hydra/sweeper", name=_name, node=_node, provider="fewstep")


class FewstepSweeper(Sweeper):
    """Runs every combination of the swept values or, with `trials`, those that Optuna chooses.

    What the jobs share is trained once, and what is finished is left alone.
    """

    def __init__(
        self, params: DictConfig | None, objective: DictConfig, at_once: int, trials: int | None = None, seed: int = 0
    ) -> None:
        self.objective, self.at_once, self.trials, self.seed = objective, at_once, trials, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives; the launcher is made when the sweep's folder is known."""
        self.hydra_context, self.config, self.script = hydra_context, config, inspect.getfile(task_function)

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep of the preset's parameters and of the command line; the latter count more.

        Raises:
            ValueError: an objective without such a figure, or a sweep that cannot be.
        """
        from fewstep.sweeps.context import SweepContext
        from fewstep.sweeps.grid import sweep_grid
        from fewstep.sweeps.objective import Objective
        from fewstep.sweeps.search import Search, sweep_search
        from fewstep.system.signals import stop_signals

        assert self.hydra_context is not None
        assert self.config is not None
        objective = Objective(self.objective.figure, self.objective.steps, self.objective.w)
        context = SweepContext(self.hydra_context, self.config, self.script, objective, self.at_once)
        overrides = [*preset_overrides(self.config), *arguments]
        with stop_signals():
            if self.trials is None:
                sweep_grid(context, overrides)
            else:
                sweep_search(context, overrides, Search(self.trials, self.at_once, self.seed))
