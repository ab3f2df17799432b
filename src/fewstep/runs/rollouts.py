"""Evaluate models in closed loop, where their data have a task: policies.json, and a picture of the paths."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fewstep.artifacts.paths_picture import PathsPanel, paths_picture
from fewstep.artifacts.pictures import save_png
from fewstep.artifacts.run_folder import PATHS, POLICIES
from fewstep.data.control import ControlData, Episodes
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.evaluation.rollouts import ModelPolicy, PolicyRow, policy_row, seconds_for_one
from fewstep.inference.model import Model
from fewstep.system.files import write_json


def write_rollouts(models: Sequence[tuple[str, Model]], plan: EvaluationPlan, data: ControlData, folder: Path) -> None:
    """Run each model at its numbers of steps and the plan's w, from the same starts; the expert beside them.

    Args:
        models: with their labels; they are moved to the CPU, where the simulator is.
        plan: of the grid, whose steps, w and seed count.
    """
    expert = data.expert(plan.seed)
    found = [(policy_row(expert, data.num_ways, model="expert", seed=plan.seed), expert)]
    for label, model in models:
        if not model.card.encodes:
            found += rollouts_of(label, model.to("cpu"), plan, data)
    write_json(folder / POLICIES, [row.as_dict() for row, _ in found])
    panels = [PathsPanel(title(row), episodes.paths, episodes.success, episodes.way) for row, episodes in found]
    save_png(paths_picture(panels, data.discs), folder / PATHS)


def rollouts_of(
    label: str, model: Model, plan: EvaluationPlan, data: ControlData
) -> Iterator[tuple[PolicyRow, Episodes]]:
    """A model's rows and episodes."""
    card, sampling = model.card, model.card.sampling
    steps = sampling.steps or (plan.teacher_steps if sampling.is_combined else plan.guided_steps)
    for w in (0.0,) if sampling.guidance == "none" else plan.w:
        for number in sorted(steps, reverse=True):
            policy = ModelPolicy(
                model.denoiser, sampling, card.schedule, card.data.low, card.data.high, number, w, plan.seed
            )
            episodes = data.rollouts(policy, plan.seed)
            row = policy_row(
                episodes,
                data.num_ways,
                model=label,
                seed=plan.seed,
                steps=number,
                w=w,
                evaluations=policy.evaluations,
                seconds_per_action=seconds_for_one(policy, data.conditions(1)),
            )
            ways = "" if row.entropy is None else f", entropy of the ways {row.entropy:.2f} of {row.most_entropy:.2f}"
            print(f"{title(row)}: success {100 * row.success:.1f} %{ways}", flush=True)
            yield row, episodes


def title(row: PolicyRow) -> str:
    """A row in words."""
    if row.model == "expert":
        return "expert"
    return f"{row.model}, {row.evaluations} evaluation{'s' * (row.evaluations > 1)}, w = {row.w:g}"
