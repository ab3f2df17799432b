"""Models that several jobs would train alike: a teacher, a guided student. They are trained once, first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fewstep.artifacts.lineage import is_guided
from fewstep.artifacts.run_folder import MODEL, flat, is_the_experiment
from fewstep.runs.pipeline import stage_of
from fewstep.sweeps.jobs import Job, digest, quoted

SHARED = "shared"


@dataclass(frozen=True)
class Step:
    """A job, or a parent's training, and after which other steps it can begin.

    Attributes:
        until: the pipeline's last stage; None is a job of its own.
        file: what a parent leaves, for its children.
    """

    job: Job
    until: str | None = None
    after: tuple[str, ...] = ()
    file: Path | None = None


@dataclass
class Shared:
    """Which parents the jobs of a sweep have in common."""

    folder: Path
    steps: list[Step] = field(default_factory=list)

    def parent(self, job: Job, config: DictConfig, stage: str, key: str, teacher: Step | None) -> Step:
        """The step that trains this stage of `job`, which others need too."""
        name = f"{SHARED}-{key}"
        known = next((step for step in self.steps if step.job.name == name and step.until == stage), None)
        if known is not None:
            return known
        file = self.folder / config.dataset.name / stage / name / MODEL
        others = tuple(override for override in job.overrides if not override.startswith("name="))
        own = replace(job, name=name, overrides=(*others, quoted("name", name), f"stage.until={stage}"))
        step = Step(own if teacher is None else child_of(own, teacher), stage, after(teacher), file)
        self.steps.append(step)
        return step


def planned(jobs: Sequence[Job], configs: Mapping[str, DictConfig], folder: Path) -> list[Step]:
    """The parents that two jobs or more share, teachers first, then the jobs, each told its parent.

    A teacher that only one guided student needs is trained with it.

    Args:
        configs: of each job by its name, prepared.
    """
    teachers = {job.name: teacher_key(configs[job.name]) for job in jobs}
    guided = {job.name: guided_key(configs[job.name], teachers[job.name]) for job in jobs}
    shared_guided = {key for key in guided.values() if key and list(guided.values()).count(key) > 1}
    needs = {  # who needs each teacher: a shared guided student counts once
        key: {guided[name] if guided[name] in shared_guided else name for name, own in teachers.items() if own == key}
        for key in teachers.values()
        if key
    }
    shared = Shared(folder)
    steps = []
    for job in jobs:
        config, key, own = configs[job.name], teachers[job.name], guided[job.name]
        parent = None
        if key and len(needs[key]) > 1:
            parent = shared.parent(job, config, "teacher", key, None)
        if own in shared_guided:
            assert own is not None
            parent = shared.parent(job, config, "guidance", own, parent)
        steps.append(Step(job if parent is None else child_of(job, parent), after=after(parent)))
    return [*shared.steps, *steps]


def after(parent: Step | None) -> tuple[str, ...]:
    """The names of the steps that one with this parent waits for."""
    return () if parent is None else (*parent.after, parent.job.name)


def child_of(job: Job, parent: Step) -> Job:
    """The job with `parent` for its teacher."""
    assert parent.file is not None
    others = tuple(override for override in job.overrides if not override.startswith("teacher="))
    return replace(job, overrides=(*others, quoted("teacher", parent.file)))


def teacher_key(config: DictConfig) -> str | None:
    """What two pipelines that would train the same teacher have in common; None if they train none."""
    if config.stage.name != "pipeline" or config.teacher is not None:
        return None
    return settings_digest(stage_of(config, "teacher"))


def guided_key(config: DictConfig, teacher: str | None) -> str | None:
    """What two pipelines that would train the same guided student have in common; None if it is no parent."""
    if config.stage.name != "pipeline" or config.stage.progressive.variant == "two_student":
        return None
    if config.teacher is not None and is_guided(config.teacher):
        return None
    return settings_digest(stage_of(config, "guidance", teacher or config.teacher))


def settings_digest(config: DictConfig) -> str:
    """Of the settings that make a difference."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    own = {str(key): value for key, value in settings.items()}
    return digest([json.dumps([key, value]) for key, value in sorted(flat(own)) if is_the_experiment(key)])
