"""sweeper=grid: every combination of the swept values."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewstep.runs.config import Settings
from fewstep.runs.overrides import quoted
from fewstep.sweeps.context import SweepContext
from fewstep.sweeps.jobs import Job, SweepOverrides
from fewstep.sweeps.running import Sweep
from fewstep.sweeps.shared import parent_below, with_shared_trainings
from fewstep.sweeps.status import FINISHED, JobState
from fewstep.sweeps.sweep import SWEEP, SweepDescription, describe, described, locked_sweep


def sweep_grid(context: SweepContext, arguments: Sequence[str]) -> list[JobState]:
    """Run what is missing of the sweep that the overrides in `arguments` ask for.

    Raises:
        ValueError: a job's settings cannot be; nothing was started.
        SystemExit: with status 1: a job failed.
    """
    overrides = SweepOverrides.of(context.parse(arguments))
    folder = context.folder(overrides)
    placed = [context.placed(job, folder) for job in overrides.jobs()]
    settings = {job.name: own for job, own in placed}
    jobs, teachers = with_teachers([job for job, _ in placed], settings, Path(context.config.outputs), folder)
    trainings, jobs = with_shared_trainings(jobs, settings)
    jobs = [*trainings.values(), *jobs]
    if context.config.plan:
        show_jobs(folder, jobs)
        return []
    with locked_sweep(folder):
        describe(folder, about(context, overrides, jobs, teachers))
        sweep = Sweep([context.state_of(job) for job in jobs], context.objective)
        finished = sum(state.state == FINISHED for state in sweep.states)
        print(f"sweep: {folder}: {count_of(jobs)}, {finished} finished before", flush=True)
        context.run(sweep, folder)
        sweep.show()
    if sweep.failures:
        print(f"{len(sweep.failures)} of {len(sweep.states)} failed; the same line runs what is missing", flush=True)
        sys.exit(1)
    return sweep.states


def with_teachers(
    jobs: Sequence[Job], settings: dict[str, Settings], outputs: Path, folder: Path
) -> tuple[list[Job], dict[str, str]]:
    """The jobs of one stage with the parents that they would find below `outputs`, and these by job.

    In the sweep's own folder they would find none; and when the sweep goes on they keep those that it began with.

    Raises:
        ValueError: there is none that fits.
    """
    before = described(folder).teachers if (folder / SWEEP).is_file() else {}
    own, found = [], {}
    for job in jobs:
        known = before.get(job.name)
        parent = Path(known) if known and Path(known).exists() else parent_below(outputs, settings[job.name])
        if parent is not None:
            found[job.name] = str(parent)
            job = job.with_override("teacher", quoted(parent))
        own.append(job)
    return own, found


def show_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Print what would be trained."""
    for job in jobs:
        print(f"{job.name}: {f'{job.stages[-1]} of several, trained once' if job.stages else 'a job'}")
    print(f"sweep: {folder}: {count_of(jobs)}")


def count_of(jobs: Sequence[Job]) -> str:
    shared = sum(bool(job.stages) for job in jobs)
    return f"{len(jobs) - shared} jobs, {shared} shared parents"


def about(
    context: SweepContext, overrides: SweepOverrides, jobs: Sequence[Job], teachers: Mapping[str, str]
) -> SweepDescription:
    """What sweep.yaml holds."""
    return SweepDescription(
        preset=context.preset,
        fixed=tuple(overrides.fixed.values()),
        swept={key: tuple(values) for key, values in overrides.swept.items()},
        objective=context.objective,
        jobs={job.name: dict(job.values) for job in jobs if not job.stages},
        parents=tuple(job.name for job in jobs if job.stages),
        teachers=teachers,
    )
