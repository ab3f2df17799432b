"""Models that several jobs would train alike: each is trained once, first, whatever the stages are called."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, dropwhile, pairwise
from pathlib import Path

from fewstep.artifacts.lineage import find_newest_students
from fewstep.artifacts.run_folder import MODEL, flat, is_the_experiment, rung_file
from fewstep.methods import Method
from fewstep.runs.config import EVALUATE, PIPELINE, Settings
from fewstep.runs.overrides import quoted
from fewstep.runs.parent import find_parent, method_of, open_evaluator
from fewstep.runs.pipeline import Chain, accepts, trained_stages
from fewstep.sweeps.jobs import Job, digest

SHARED = "shared"


def with_shared_trainings(jobs: Sequence[Job], settings: Mapping[str, Settings]) -> tuple[dict[str, Job], list[Job]]:
    """The trainings that two jobs or more share, by key, parents before children; and the jobs that start from them.

    Args:
        settings: of each job, by its name.
    """
    keys = {job.name: prefix_keys(settings[job.name]) for job in jobs}
    shared = shared_keys({name: list(filter(None, own.values())) for name, own in keys.items()})
    trainings: dict[str, Job] = {}
    for job in jobs:
        own = keys[job.name]
        for number, key in enumerate(own.values(), start=1):
            if key in shared and key not in trainings:
                name = f"{SHARED}-{key}"
                training = replace(job, name=name, stages=tuple(own)[:number]).with_override("name", name)
                trainings[key] = from_parent(training, settings[job.name], own, trainings)
    return trainings, [from_parent(job, settings[job.name], keys[job.name], trainings) for job in jobs]


def from_parent(job: Job, settings: Settings, keys: Mapping[str, str], trainings: Mapping[str, Job]) -> Job:
    """The job, starting from the model of the last of these trainings that it would make itself.

    Args:
        keys: of the job's stages, see `prefix_keys`. trainings: by the key of their last stage.
    """
    stages = job.stages or tuple(keys)
    shared = [stage for stage in stages if keys[stage] in trainings]
    left = stages
    if shared:
        parent = trainings[keys[shared[-1]]]
        job = replace(job, parent=parent.name).with_override("teacher", quoted(model_of(parent, settings)))
        left = stages[stages.index(shared[-1]) + 1 :]
    if job.stages:
        job = replace(job, stages=left)
    elif settings.name == PIPELINE and EVALUATE in settings.stages:
        left = (*left, EVALUATE)
    return job.with_override("stage.stages", f"[{','.join(left)}]") if shared or job.stages else job


def model_of(training: Job, settings: Settings) -> Path:
    """The file of the model that a shared training makes for its children, of which one has these settings."""
    phase = method_in(settings, training.stages[-1]).phases()[-1]
    return folder_of(training, settings) / (MODEL if phase.num_steps is None else rung_file(phase.num_steps))


def own_stages(settings: Settings) -> tuple[str, ...]:
    """The stages that a pipeline trains, but for those that a given teacher makes needless; none of another run."""
    if settings.name != PIPELINE:
        return ()
    given = Chain.begin(settings.teacher)
    return tuple(dropwhile(lambda stage: given.skips(method_in(settings, stage)), trained_stages(settings)))


def method_in(settings: Settings, stage: str) -> Method:
    """The method of a pipeline's stage."""
    return method_of(settings.of_stage(stage, settings.teacher))


def prefix_keys(settings: Settings) -> dict[str, str]:
    """For each stage that a pipeline trains, a digest of all that its model depends on.

    Empty where the stages after it could not start from its model alone.
    """
    stages = own_stages(settings)
    methods = [method_in(settings, stage) for stage in stages]
    keys, teacher = {}, settings.teacher
    for number, stage in enumerate(stages):
        teacher = settings_digest(settings.of_stage(stage, teacher))
        is_enough = all(parent_number(methods, later) >= number for later in range(number + 1, len(stages)))
        keys[stage] = teacher if is_enough else ""
    return keys


def parent_number(methods: Sequence[Method], number: int) -> int:
    """Which of the methods before makes the parent of a method, as a pipeline chooses it.

    Of one that needs none it is its own number; -1 is the teacher that the run was given.
    """
    wanted = methods[number].parent()
    if wanted is None:
        return number
    made = ((before, methods[before].phases()[-1].sampling) for before in reversed(range(number)))
    return next((before for before, sampling in made if accepts(wanted, sampling)), -1)


def shared_keys(chains: Mapping[str, Sequence[str]]) -> set[str]:
    """The keys that branch: two jobs, or longer shared prefixes, go on from them.

    Args:
        chains: the keys of each job, shortest prefix first.
    """
    counts = Counter(chain.from_iterable(chains.values()))
    users: defaultdict[str, set[str]] = defaultdict(set)
    for name, keys in chains.items():
        common = [key for key in keys if counts[key] > 1]
        for key, user in pairwise([*common, name]):
            users[key].add(user)
    return {key for key, own in users.items() if len(own) > 1}


def folder_of(job: Job, settings: Settings) -> Path:
    """The run folder in which a job's last product will lie."""
    stage = job.stages[-1] if job.stages else settings.name
    return settings.outputs / settings.dataset_name / stage / job.name


def settings_digest(settings: Settings) -> str:
    """Of the settings that make a difference to one stage's model."""
    own = {key: value for key, value in settings.values.items() if key != "method"}  # which names another stage
    return digest([json.dumps([key, value]) for key, value in sorted(flat(own)) if is_the_experiment(key)])


def parent_below(outputs: Path, settings: Settings) -> Path | None:
    """What a stage's run would find for its parent below `outputs`; None where it looks for none.

    Raises:
        ValueError: there is none that fits.
    """
    own = settings.with_values({"outputs": str(outputs)})
    if own.teacher is not None or own.name == PIPELINE:
        return None
    if own.name == EVALUATE:
        return find_newest_students(outputs, own.dataset_name)[0].parent
    method = method_of(own)
    return None if method.parent() is None else find_parent(own, method, open_evaluator(own, method))
