"""Runs that an agent of W&B's own sweeps started: the run of one of the stages is the agent's."""

import os
from functools import cache

COUNTED = "evaluate"  # the stage that has the figures


@cache
def agents_run() -> dict[str, str | None]:
    """The `run_id`, `sweep_id` and `sweep_param_path` that the agent of this process chose; empty without an agent.

    Taken out of the environment: as long as that names a sweep, W&B ignores the ids it is given, and a pipeline has a
    run for each stage.
    """
    sweep, parameters = (os.environ.pop(name, None) for name in ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"))
    run = os.environ.pop("WANDB_RUN_ID", None) if sweep else None
    return {"run_id": run, "sweep_id": sweep, "sweep_param_path": parameters} if run else {}
