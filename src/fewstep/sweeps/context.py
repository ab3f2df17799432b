"""What Hydra gives a sweeper: settings composed as each job will have them, and a launcher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from fewstep.runs.automatic import fitted
from fewstep.runs.build import build_plan
from fewstep.runs.config import EVALUATE, PIPELINE, Settings
from fewstep.runs.overrides import quoted, require_known_recipe
from fewstep.runs.parent import method_of
from fewstep.runs.pipeline import check_pipeline
from fewstep.sweeps.jobs import Job, SweepOverrides
from fewstep.sweeps.objective import Objective
from fewstep.sweeps.process import JobProcess
from fewstep.sweeps.running import Result, Sweep
from fewstep.sweeps.status import JobState
from fewstep.sweeps.sweep import SAMPLES, SWEEPS


@dataclass(frozen=True)
class SweepContext:
    """A sweep as Hydra composed it.

    Attributes:
        config: composed, without what is swept. script: the train.py that was started.
        at_once: jobs in the queue of a launcher that has one.
    """

    hydra: HydraContext
    config: DictConfig
    script: str
    objective: Objective
    at_once: int

    def parse(self, arguments: Sequence[str]) -> list[Override]:
        """The overrides of the sweep."""
        return OverridesParser.create(config_loader=self.hydra.config_loader).parse_overrides(list(arguments))

    def settings(self, overrides: Sequence[str]) -> Settings:
        """The settings that a job with these overrides will have.

        Raises:
            ValueError: settings that cannot be.
        """
        config = self.hydra.config_loader.load_sweep_config(self.config, list(overrides))
        sources = [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]
        require_known_recipe(config.hydra.overrides.task, sources)
        with open_dict(config):
            del config["hydra"]
        if "slurm" not in self.launcher:
            return fitted(Settings.read(config))[0]
        accelerator = config.trainer.accelerator
        config.trainer.accelerator = "cpu"  # of another machine, whose GPUs need not be here
        settings = Settings.read(config)
        return fitted(settings.with_values({"trainer": settings.values["trainer"] | {"accelerator": accelerator}}))[0]

    def placed(self, job: Job, folder: Path) -> tuple[Job, Settings]:
        """A job in the sweep's folder and its settings, checked before any job is started.

        Raises:
            ValueError: an error that the job would meet when it is started.
        """
        own = {"outputs": folder, "name": job.name, "samples": self.config.samples or folder / SAMPLES}
        for key, value in own.items():
            job = job.with_override(key, quoted(value))
        settings = self.settings(job.overrides)
        if settings.name == PIPELINE:
            check_pipeline(settings)
        elif settings.name == EVALUATE:
            build_plan(settings.stage, settings.trainer)
        else:
            method_of(settings)
        return job, settings

    def state_of(self, job: Job) -> JobState:
        """How a job stands before anything is launched."""
        return JobState.of(job, self.settings(job.overrides), self.objective)

    @property
    def preset(self) -> str | None:
        """The name of the preset, if there is one."""
        return self.config.hydra.runtime.choices.get("sweeps")

    def folder(self, overrides: SweepOverrides) -> Path:
        """Where the sweep lives: by the name that it was given, else by its question and what is fixed.

        Raises:
            ValueError: two presets at once, or a preset for a stage by itself.
        """
        if "sweeps" in overrides.swept:
            presets = ", ".join(overrides.swept["sweeps"])
            raise ValueError(f"one preset at a time, got {presets}; give each a line of its own")
        if self.preset is not None and self.config.stage.name != PIPELINE:
            raise ValueError(
                f"sweeps={self.preset} sweeps over whole pipelines, got stage={self.config.stage.name}; leave stage= "
                "away, or sweep over a stage by --multirun KEY=VALUES"
            )
        question = self.preset or str(self.config.hydra.runtime.choices.get("stage"))
        return Path(self.config.outputs, SWEEPS) / (
            self.config.name or "-".join(filter(None, (question, overrides.digest)))
        )

    @property
    def launcher(self) -> str:
        """Hydra's class of it, in lower case: it says which launcher this is."""
        return str(self.config.hydra.launcher._target_).lower()

    def run(self, sweep: Sweep, folder: Path) -> None:
        """Have Hydra's launcher run what is not finished."""
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
        one_gpu = "joblib" in self.launcher and self.config.trainer.accelerator == "gpu"
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra, task_function=JobProcess(self.script, one_gpu), config=self.config
        )

        def launch(states: Sequence[JobState]) -> list[Result]:
            overrides = [list(state.job.overrides) for state in states]
            return [result_of(each) for each in launcher.launch(overrides, sweep.states.index(states[0]))]

        if "submitit" in self.launcher:
            sweep.run_in_threads(launch, self.at_once)
        else:
            sweep.run(launch, one_by_one="basic" in self.launcher)


def result_of(returned: JobReturn) -> Result:
    """What came back of a job; what went wrong around its process counts as its failure."""
    value = returned._return_value  # return_value would print Hydra's words
    return value if returned.status == JobStatus.COMPLETED else {"status": 1, "message": str(value)}
