"""sweeper=optuna: look for the best figure by Optuna's ask-and-tell, its journal in the sweep's folder."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fewstep.runs.overrides import is_installed
from fewstep.sweeps.grid import Hydra, Launched, about, outcome_of, show_plan
from fewstep.sweeps.jobs import Job, SweepOverrides, name_of, shortened
from fewstep.sweeps.parents import Step, child_of, planned
from fewstep.sweeps.running import Sweep
from fewstep.sweeps.space import Choices, Dimension, Range, space_of, texts
from fewstep.sweeps.status import FAILED, Objective
from fewstep.sweeps.sweep import describe, locked_sweep, place_jobs

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "search.journal"


@dataclass(frozen=True)
class Search:
    """How long to look, and how many trials at a time."""

    trials: int
    at_once: int
    seed: int

    def __post_init__(self) -> None:
        if self.trials < 1 or self.at_once < 1:
            raise ValueError(
                f"hydra.sweeper.trials and at_once must be at least 1, got {self.trials} and {self.at_once}"
            )


def sweep_search(hydra: Hydra, arguments: Sequence[str], objective: Objective, search: Search) -> Sweep:
    """Run trials until there are as many as asked for, those of earlier starts counted.

    Raises:
        ValueError: Optuna is not installed, nothing is searched, or a job's settings cannot be.
        SystemExit: with status 1: no trial has a figure.
    """
    if not is_installed("optuna"):
        raise ValueError("sweeper=optuna needs a package that is not installed; pip install 'fewstep[search]' has it")
    line, space = space_of(hydra.overrides(arguments))
    if not space:
        raise ValueError("a search needs something to search, like stage.guidance.w_max=interval(2, 8)")
    hydra.require_one_preset(line)
    folder = hydra.folder(line)
    # What the first and the last values share, all share. Their settings are checked before anything is started.
    probes = [job_of(f"end-{end}", line, texts(space, end)) for end in (0, -1)]
    jobs, configs = place_jobs(probes, hydra.compose, folder, elsewhere=hydra.is_elsewhere)
    for config in configs.values():
        require_figure(config.stage, objective)
    steps = planned(jobs, configs, folder)
    parents, example = [step for step in steps if step.until], steps[-1]
    if hydra.config.plan:
        show_plan(folder, parents)
        print(f"search: {search.trials} trials")
        return Sweep([], objective)
    with locked_sweep(folder):
        sweep = Sweep([outcome_of(step, hydra, objective) for step in parents], objective)
        print(f"search: {folder}: {search.trials} trials, {len(parents)} shared parents", flush=True)
        launched = Launched.of(hydra, folder, sweep, search.at_once)
        launched.run()
        study = opened_study(folder, objective, search.seed)
        for number, values in told(study, space):
            (job,), _ = place_jobs([job_of(f"trial={number}", line, values)], hydra.compose, folder, elsewhere=True)
            sweep.outcomes.append(outcome_of(trial_step(job, example, parents), hydra, objective))
        while not sweep.failures or parents_are_done(sweep):
            asked = ask(study, space, search)
            if not asked:
                break
            for number, values in asked:
                own = job_of(f"trial={number}", line, values)
                (job,), _ = place_jobs([own], hydra.compose, folder, elsewhere=hydra.is_elsewhere)
                sweep.outcomes.append(outcome_of(trial_step(job, example, parents), hydra, objective))
            describe(folder, about(hydra, line, [o.step for o in sweep.outcomes], objective))
            launched.run()
            for (number, _), outcome in zip(asked, sweep.outcomes[-len(asked) :], strict=True):
                tell(study, number, None if outcome.state == FAILED else outcome.figure)
        sweep.show()
    if not any(outcome.figure is not None for outcome in sweep.outcomes):
        print("no trial has a figure; the same line goes on", flush=True)
        sys.exit(1)
    return sweep


def parents_are_done(sweep: Sweep) -> bool:
    return not any(outcome.step.until for outcome in sweep.failures)


def require_figure(stage: DictConfig, objective: Objective) -> None:
    """Refuse a search for a figure that no job will have."""
    ladder = list(stage.progressive.ladder) if stage.name == "pipeline" else []
    if objective.steps not in ladder[1:]:
        raise ValueError(
            f"the search looks for the best student of {objective.steps} steps, and the ladder {ladder} makes none; "
            "set hydra.sweeper.objective.steps or the ladder"
        )


def job_of(name: str, line: SweepOverrides, values: Mapping[str, str]) -> Job:
    """The job of a trial."""
    short = {shorter: values[key] for key, shorter in shortened(list(values)).items()}
    overrides = (*line.fixed.values(), *(f"{key}={value}" for key, value in values.items()))
    return Job(f"{name},{name_of(short)}", overrides, short)


def trial_step(job: Job, example: Step, parents: Sequence[Step]) -> Step:
    """A trial's step: its parent is that of the example, if all trials share one."""
    parent = next((step for step in parents if example.after and step.job.name == example.after[-1]), None)
    return Step(job if parent is None else child_of(job, parent), after=example.after)


def opened_study(folder: Path, objective: Objective, seed: int) -> "Study":
    """The study of this folder: all trials of earlier starts are in its journal."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        study_name=str(objective),
        direction="minimize" if objective.less_is_better else "maximize",
        load_if_exists=True,
    )
    # a search that goes on must not draw again what it began with
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), constant_liar=True)
    return study


def ask(study: "Study", space: Mapping[str, Dimension], search: Search) -> list[tuple[int, dict[str, str]]]:
    """The next trials: those that an earlier start left unfinished, then new ones, as many as still belong to it."""
    from optuna.trial import TrialState

    left = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
    settled = len(study.get_trials(deepcopy=False)) - len(left)
    count = min(search.at_once, search.trials - settled)
    known = [(trial.number, chosen(trial, space)) for trial in left[:count]]
    distributions = {key: distribution(own) for key, own in space.items()}
    fresh = [study.ask(distributions) for _ in range(count - len(known))]
    return [*known, *((trial.number, chosen(trial, space)) for trial in fresh)]


def told(study: "Study", space: Mapping[str, Dimension]) -> list[tuple[int, dict[str, str]]]:
    """The trials of earlier starts that have a figure."""
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [(trial.number, chosen(trial, space)) for trial in done]


def tell(study: "Study", number: int, figure: float | None) -> None:
    """Give Optuna a trial's figure, or that it has none."""
    from optuna.trial import TrialState

    study.tell(number, figure, state=TrialState.FAIL if figure is None else TrialState.COMPLETE)


def chosen(trial: "Trial | FrozenTrial", space: Mapping[str, Dimension]) -> dict[str, str]:
    """A trial's values as overrides have them."""
    return {
        key: own.text(trial.params[key]) if isinstance(own, Range) else str(trial.params[key])
        for key, own in space.items()
    }


def distribution(own: Dimension) -> "BaseDistribution":
    """Optuna's own word for a range or choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(own, Choices):
        return CategoricalDistribution(own.values)
    if own.is_whole:
        return IntDistribution(int(own.low), int(own.high), log=own.log, step=int(own.step or 1))
    return FloatDistribution(own.low, own.high, log=own.log, step=own.step)
