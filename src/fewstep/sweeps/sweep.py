"""A sweep's folder, and its jobs composed and checked before any of them is started."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from fewstep.artifacts.lineage import find_newest_ladder
from fewstep.artifacts.run_folder import locked
from fewstep.runs.build import Setup, plan_of
from fewstep.runs.pipeline import chain_of, check_pipeline, check_stage, prepare
from fewstep.sweeps.jobs import Job, quoted
from fewstep.system.files import atomic_write
from fewstep.training.settings import TrainerSettings

SWEEPS = "sweeps"
SWEEP = "sweep.yaml"
Compose = Callable[[Sequence[str]], DictConfig]
"""Overrides -> settings, as a job will have them."""


@contextmanager
def locked_sweep(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder as long as its jobs run.

    Raises:
        ValueError: another process holds it.
    """
    with locked(folder) as mine:
        if not mine:
            raise ValueError(f"{folder} is being swept by another process; wait for it or choose another name=")
        yield


def describe(folder: Path, about: Mapping[str, Any]) -> None:
    """Say in the sweep's folder what it is."""
    with atomic_write(folder / SWEEP) as temporary:
        temporary.write_text(yaml.safe_dump(dict(about), sort_keys=False, width=120))


def described(folder: Path) -> dict[str, Any]:
    """What a sweep's folder says of itself.

    Raises:
        ValueError: it is none.
    """
    file = folder / SWEEP
    if not file.is_file():
        raise ValueError(f"{folder} is no sweep's folder: it has no {SWEEP}; one lies below outputs/{SWEEPS}/")
    return yaml.safe_load(file.read_text())


def place_jobs(
    jobs: Sequence[Job], compose: Compose, folder: Path, *, elsewhere: bool
) -> tuple[list[Job], dict[str, DictConfig]]:
    """The jobs in the sweep's folder, and the settings of each, all of them checked before any is started.

    Args:
        elsewhere: the jobs will run on other machines than this one, which need not have their GPUs.

    Raises:
        ValueError: one has a value that cannot be.
    """
    own = [Job(j.name, (*j.overrides, quoted("outputs", folder), quoted("name", j.name)), j.values) for j in jobs]
    configs = {job.name: compose(job.overrides) for job in own}
    for config in configs.values():
        prepare(config)
        check(config, elsewhere=elsewhere)
    return own, configs


def check(config: DictConfig, *, elsewhere: bool) -> None:
    """Meet now the errors that a job would meet when it is started."""
    if elsewhere:
        config = copy.deepcopy(config)
        config.trainer.accelerator = "cpu"
    if config.stage.name == "pipeline":
        check_pipeline(config)
        return
    settings = TrainerSettings(**config.trainer)
    if config.stage.name == "evaluate":
        plan_of(config.stage, settings)
    else:
        check_stage(config.stage)


def with_parents(
    jobs: Sequence[Job], configs: Mapping[str, DictConfig], outputs: Path, folder: Path
) -> tuple[list[Job], dict[str, str]]:
    """The jobs of one stage, told the parents that they would find below `outputs`, and these by job.

    In the sweep's own folder they would find none; and when the sweep goes on they keep those that it began with.

    Raises:
        ValueError: there is none that fits.
    """
    file = folder / SWEEP
    before = described(folder).get("teachers", {}) if file.is_file() else {}
    told, found = [], {}
    for job in jobs:
        config = configs[job.name]
        if config.teacher is None and config.stage.name in ("guidance", "progressive", "encoder", "evaluate"):
            known = before.get(job.name)
            found[job.name] = known if known and Path(known).exists() else str(parent_below(outputs, config))
            job = replace(job, overrides=(*job.overrides, quoted("teacher", found[job.name])))
        told.append(job)
    return told, found


def parent_below(outputs: Path, config: DictConfig) -> Path:
    """What a stage's run would find for its parent below `outputs`."""
    own = copy.deepcopy(config)
    own.outputs = str(outputs)
    if own.stage.name == "evaluate":
        return find_newest_ladder(outputs, own.dataset.name)[0].parent
    if own.stage.name == "guidance":
        return Setup.of(own).parent("teacher")
    chain = chain_of(own.stage)
    return Setup.of(own).parent("teacher" if chain.is_guided_outside else "guided", chain)
