"""A preset as W&B's own sweep: the YAML that `wandb sweep` takes, whose agents run train.py."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from fewstep.runs.overrides import conf_folder, preset_overrides
from fewstep.sweeps.objective import Objective
from fewstep.sweeps.space import Dimension, space_of
from fewstep.tracking.names import quality_of

COMMAND = ["${env}", "${interpreter}", "${program}"]


def wandb_sweep(preset: str, overrides: Sequence[str], program: str) -> dict[str, Any]:
    """What `wandb sweep` is given.

    Raises:
        ValueError: nothing differs from run to run.
    """
    typed = OverridesParser.create().parse_overrides(list(overrides))
    fixed = [override.input_line or "" for override in typed if not override.is_sweep_override()]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("config", [f"sweeps={preset}", *fixed], return_hydra_config=True)
    sweeper = composed.hydra.sweeper
    swept, space = space_of(OverridesParser.create().parse_overrides([*preset_overrides(composed), *overrides]))
    if not space:
        raise ValueError(f"sweeps={preset} sweeps over nothing with these settings; leave one with several values")
    objective = Objective(sweeper.objective.figure, sweeper.objective.steps, sweeper.objective.w)
    outputs = [override for override in fixed if override.startswith("outputs=")]
    return {
        "program": program,
        "name": preset,
        "method": "bayes" if "trials" in sweeper else "grid",
        "metric": {
            "name": quality_of(objective.figure, objective.steps, objective.w),
            "goal": "minimize" if objective.less_is_better else "maximize",
        },
        "parameters": {key: parameter(dimension) for key, dimension in space.items()},
        "command": [*COMMAND, f"sweeps={preset}", "hydra.mode=RUN", *swept.fixed.values(), *outputs, "${args}"],
    }


def parameter(dimension: Dimension) -> dict[str, Any]:
    """A dimension in W&B's words."""
    if isinstance(dimension, tuple):
        return {"values": [as_number(value) for value in dimension]}
    is_whole = isinstance(dimension.low, int)
    if dimension.step not in (None, 1 if is_whole else None):
        return {"distribution": "q_uniform", "min": dimension.low, "max": dimension.high, "q": dimension.step}
    kind = "log_uniform_values" if dimension.log else "int_uniform" if is_whole else "uniform"
    return {"distribution": kind, "min": dimension.low, "max": dimension.high}


def as_number(value: str) -> Any:
    """A number or a switch where it is one, so that W&B orders and shows it as such; else the text for Hydra."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False, "null": None}.get(value.lower(), value)
