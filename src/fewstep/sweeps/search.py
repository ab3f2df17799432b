"""sweeper=optuna: look for the best figure by Optuna's ask-and-tell, its journal in the sweep's folder."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.runs.config import Settings
from fewstep.sweeps.context import SweepContext
from fewstep.sweeps.grid import about, count_of, show_jobs
from fewstep.sweeps.jobs import Job, SweepOverrides
from fewstep.sweeps.objective import Objective
from fewstep.sweeps.running import Sweep
from fewstep.sweeps.shared import from_parent, method_in, own_stages, prefix_keys, with_shared_trainings
from fewstep.sweeps.space import Dimension, require_optuna, space_of, text_of, texts
from fewstep.sweeps.status import FAILED, JobState
from fewstep.sweeps.sweep import describe, locked_sweep

if TYPE_CHECKING:
    from optuna import Study
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


def sweep_search(context: SweepContext, arguments: Sequence[str], search: Search) -> None:
    """Run trials until there are as many as asked for, those of earlier starts counted.

    Raises:
        ValueError: Optuna is not installed, nothing is searched, or a job's settings cannot be.
        SystemExit: with status 1: no trial has a figure.
    """
    require_optuna()
    overrides, space = space_of(context.parse(arguments))
    if not space:
        raise ValueError("a search needs something to search, like stage.guidance.w_max=interval(2, 8)")
    folder = context.folder(overrides)
    # What the first and the last values share, all share. Their settings are checked before anything is started.
    ends = [job_of(f"end-{end}", overrides, texts(space, end)) for end in (0, -1)]
    placed = [context.placed(job, folder) for job in ends]
    for _, settings in placed:
        require_figure(settings, context.objective)
    trainings, _ = with_shared_trainings([job for job, _ in placed], {job.name: own for job, own in placed})
    shared = list(trainings.values())
    if context.config.plan:
        show_jobs(folder, shared)
        print(f"search: {search.trials} trials")
        return
    with locked_sweep(folder):
        print(f"search: {folder}: {search.trials} trials, {count_of(shared)}", flush=True)
        sweep = Sweep([context.state_of(job) for job in shared], context.objective)
        context.run(sweep, folder)
        if not sweep.failures:
            run_trials(context, search, sweep, overrides, space, trainings)
        sweep.show()
    if not any(state.figure is not None for state in sweep.states):
        print("no trial has a figure; the same line goes on", flush=True)
        sys.exit(1)


def run_trials(
    context: SweepContext,
    search: Search,
    sweep: Sweep,
    overrides: SweepOverrides,
    space: Mapping[str, Dimension],
    trainings: Mapping[str, Job],
) -> None:
    """Ask Optuna for values, run them and tell it their figures, until there are as many trials as asked for.

    Args:
        overrides: the fixed ones. trainings: shared by all trials, by key; see `with_shared_trainings`.
    """
    folder = context.folder(overrides)

    def state_of(trial: "Trial | FrozenTrial") -> JobState:
        job, settings = context.placed(job_of(f"trial={trial.number}", overrides, chosen(trial, space)), folder)
        return context.state_of(from_parent(job, settings, prefix_keys(settings), trainings))

    study = opened_study(folder, context.objective, search.seed)
    sweep.states.extend(map(state_of, trials_of(study, "COMPLETE")))
    while batch := ask(study, space, search):
        states = [state_of(trial) for trial in batch]
        sweep.states.extend(states)
        describe(folder, about(context, overrides, [state.job for state in sweep.states], teachers={}))
        context.run(sweep, folder)
        for trial, state in zip(batch, states, strict=True):
            tell(study, trial, None if state.state == FAILED else state.figure)


def require_figure(settings: Settings, objective: Objective) -> None:
    """Refuse a search for a figure that no job will have."""
    stages = own_stages(settings)
    phases = [phase for stage in stages for phase in method_in(settings, stage).phases()]
    made = sorted({steps for phase in phases for steps in phase.sampling.steps}, reverse=True)
    if objective.steps not in made:
        raise ValueError(
            f"the search looks for the best student of {objective.steps} steps, and these settings make students of "
            f"{' and '.join(map(str, made)) or 'no'} steps; set hydra.sweeper.objective.steps or the method's steps"
        )


def job_of(name: str, overrides: SweepOverrides, values: Mapping[str, str]) -> Job:
    """The job of a trial."""
    job = overrides.job(values)
    return replace(job, name=f"{name},{job.name}")


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


def trials_of(study: "Study", state: str) -> list["FrozenTrial"]:
    """The trials in one of Optuna's states."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState[state],))


def ask(study: "Study", space: Mapping[str, Dimension], search: Search) -> list["Trial | FrozenTrial"]:
    """The next trials: those that an earlier start left unfinished, then new ones, as many as still belong to it."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution

    begun = trials_of(study, "RUNNING")
    ended = len(study.get_trials(deepcopy=False)) - len(begun)
    count = max(0, min(search.at_once, search.trials - ended))
    distributions: dict[str, BaseDistribution] = {
        key: CategoricalDistribution(own) if isinstance(own, tuple) else own for key, own in space.items()
    }
    return [*begun[:count], *(study.ask(distributions) for _ in range(count - len(begun)))]


def tell(study: "Study", trial: "Trial | FrozenTrial", figure: float | None) -> None:
    """Give Optuna a trial's figure, or that it has none."""
    from optuna.trial import TrialState

    study.tell(trial.number, figure, state=TrialState.FAIL if figure is None else TrialState.COMPLETE)


def chosen(trial: "Trial | FrozenTrial", space: Mapping[str, Dimension]) -> dict[str, str]:
    """A trial's values as overrides have them."""
    return {key: text_of(trial.params[key]) for key in space}
