"""sweeper=grid: every combination of the swept values."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from fewstep.runs.overrides import require_known_recipe
from fewstep.runs.pipeline import prepare
from fewstep.sweeps.jobs import SweepOverrides
from fewstep.sweeps.parents import Step, planned
from fewstep.sweeps.process import JobProcess
from fewstep.sweeps.running import LaunchMode, Result, Sweep
from fewstep.sweeps.status import FINISHED, JobState, Objective, folder_of, is_done, products_of
from fewstep.sweeps.sweep import SWEEPS, describe, locked_sweep, place_jobs, with_parents

BASIC = "hydra._internal.core_plugins.basic_launcher"
WORDS = {"teacher": "a teacher of several, trained once", "guidance": "a guided student of several, trained once"}
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"


@dataclass
class Hydra:
    """What Hydra gave the sweeper.

    Attributes:
        script: the train.py that was started.
    """

    context: HydraContext
    config: DictConfig
    script: str

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The settings that a job with these overrides will have."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        sources = [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]
        require_known_recipe(config.hydra.overrides.task, sources)
        with open_dict(config):
            del config["hydra"]
        return config

    def overrides(self, arguments: Sequence[str]) -> list[Override]:
        """The sweep's line, parsed."""
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        return parser.parse_overrides(list(arguments))

    @property
    def preset(self) -> str | None:
        """The name of the preset, if there is one."""
        return self.config.hydra.runtime.choices.get("sweeps")

    def require_one_preset(self, line: SweepOverrides) -> None:
        """Refuse two presets at once, and a preset for a stage by itself.

        Raises:
            ValueError: says what to write.
        """
        if "sweeps" in line.swept:
            raise ValueError(
                f"one preset at a time, got {', '.join(line.swept['sweeps'])}; give each a line of its own"
            )
        if self.preset is not None and self.config.stage.name != "pipeline":
            raise ValueError(
                f"sweeps={self.preset} sweeps over whole pipelines, got stage={self.config.stage.name}; leave stage= "
                "away, or sweep over a stage by --multirun KEY=VALUES"
            )

    def folder(self, line: SweepOverrides) -> Path:
        """Where the sweep lives: by the name that it was given, else by its question and what is fixed."""
        question = self.preset or str(self.config.hydra.runtime.choices.get("stage"))
        own = self.config.name or "-".join(filter(None, (question, line.digest)))
        return Path(self.config.outputs, SWEEPS, own)

    @property
    def target(self) -> str:
        """The launcher's class."""
        return str(self.config.hydra.launcher._target_)

    @property
    def is_elsewhere(self) -> bool:
        """Whether jobs run on other machines, which need not be like this one."""
        return "slurm" in self.target.lower()

    def launcher(self, folder: Path) -> tuple[Launcher, LaunchMode]:
        """What `launcher=` chose, and how it is given jobs."""
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
        target = self.target
        one_gpu = "joblib" in target and self.config.trainer.accelerator == "gpu"
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=JobProcess(self.script, one_gpu), config=self.config
        )
        way = (
            LaunchMode.EACH
            if target.startswith(BASIC)
            else LaunchMode.THREADS
            if target.startswith(SUBMITIT)
            else LaunchMode.TOGETHER
        )
        return launcher, way


def sweep_grid(hydra: Hydra, arguments: Sequence[str], objective: Objective, at_once: int) -> list[JobState]:
    """Run what is missing of the sweep that `arguments` ask for.

    Raises:
        ValueError: a job's settings cannot be; nothing was started.
        SystemExit: with status 1: a job failed.
    """
    line = SweepOverrides.of(hydra.overrides(arguments))
    hydra.require_one_preset(line)
    folder = hydra.folder(line)
    jobs, configs = place_jobs(line.jobs(), hydra.compose, folder, elsewhere=hydra.is_elsewhere)
    jobs, teachers = with_parents(jobs, configs, Path(hydra.config.outputs), folder)
    steps = planned(jobs, configs, folder)
    if hydra.config.plan:
        show_plan(folder, steps)
        return []
    with locked_sweep(folder):
        describe(folder, about(hydra, line, steps, objective) | {"teachers": teachers})
        sweep = Sweep([outcome_of(step, hydra, objective) for step in steps], objective)
        finished = sum(outcome.state == FINISHED for outcome in sweep.outcomes)
        parents = len(steps) - len(jobs)
        print(f"sweep: {folder}: {len(jobs)} jobs, {parents} shared parents, {finished} finished before", flush=True)
        Launched.of(hydra, folder, sweep, at_once).run()
        sweep.show()
    if sweep.failures:
        print(f"{len(sweep.failures)} of {len(sweep.outcomes)} failed; the same line runs what is missing", flush=True)
        sys.exit(1)
    return sweep.outcomes


@dataclass
class Launched:
    """A sweep and what runs its jobs."""

    sweep: Sweep
    launcher: Launcher
    way: LaunchMode
    at_once: int

    @classmethod
    def of(cls, hydra: Hydra, folder: Path, sweep: Sweep, at_once: int) -> "Launched":
        return cls(sweep, *hydra.launcher(folder), at_once)

    def run(self) -> None:
        """Launch what is not finished."""
        self.sweep.run(self.launch, self.way, self.at_once)

    def launch(self, outcomes: Sequence[JobState]) -> Sequence[Result]:
        """Have Hydra's launcher run these jobs."""
        number = next(n for n, outcome in enumerate(self.sweep.outcomes) if outcome is outcomes[0])
        overrides = [list(outcome.step.job.overrides) for outcome in outcomes]
        return [result_of(each) for each in self.launcher.launch(overrides, initial_job_idx=number)]


def show_plan(folder: Path, steps: Sequence[Step]) -> None:
    """Print what would be trained, and train nothing."""
    for step in steps:
        print(f"{step.job.name}: {WORDS[step.until] if step.until else 'a job'}")
    jobs = sum(step.until is None for step in steps)
    print(f"sweep: {folder}: {jobs} jobs, {len(steps) - jobs} shared parents")


def result_of(returned: JobReturn) -> Result:
    """What came back of a job; what went wrong around its process counts as its failure."""
    value = returned._return_value  # return_value would print Hydra's words
    return value if returned.status == JobStatus.COMPLETED else {"status": 1, "words": str(value)}


def outcome_of(step: Step, hydra: Hydra, objective: Objective) -> JobState:
    """How a step stands before anything is launched."""
    config = hydra.compose(step.job.overrides)
    prepare(config)
    outcome = JobState(step, folder_of(config, step), products_of(config, step))
    if is_done(config, step):
        outcome.state, outcome.figure = FINISHED, objective.of(outcome.folder)
    return outcome


def about(hydra: Hydra, line: SweepOverrides, steps: Sequence[Step], objective: Objective) -> dict[str, Any]:
    """What sweep.yaml says."""
    return {
        "preset": hydra.preset,
        "fixed": list(line.fixed.values()),
        "swept": {key: [value.partition("=")[2] for value in values] for key, values in line.swept.items()},
        "objective": {"figure": objective.figure, "steps": objective.steps, "w": objective.w},
        "jobs": {step.job.name: dict(step.job.values) for step in steps if step.until is None},
        "parents": [step.job.name for step in steps if step.until is not None],
    }
