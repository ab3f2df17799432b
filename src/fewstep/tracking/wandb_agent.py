"""Runs that an agent of W&B's own sweeps started: the run of one of the stages is the agent's."""

import os
from dataclasses import dataclass
from functools import cache

COUNTED = "evaluate"  # the stage that has the figures


@dataclass(frozen=True)
class AgentsRun:
    """The run that an agent made: its id, its sweep, and the file of its parameters."""

    id: str
    sweep: str
    parameters: str | None


@cache
def agents_run() -> AgentsRun | None:
    """The run of the agent that started this process, taken out of the environment.

    W&B ignores the ids it is given as long as the environment names a sweep, and a pipeline has a run for each stage.
    """
    sweep, parameters = (os.environ.pop(name, None) for name in ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"))
    if sweep is None:
        return None
    run = os.environ.pop("WANDB_RUN_ID", None)
    return None if run is None else AgentsRun(run, sweep, parameters)


def counted_run(stage: str) -> AgentsRun | None:
    """The agent's run, if it is this stage's; None without an agent and for all other stages."""
    agents = agents_run()
    return agents if stage == COUNTED else None
