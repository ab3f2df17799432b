"""plan=true: settings -> what they ask for, trials in a folder that is removed, and the forecast of both."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from fewstep.artifacts.lineage import Rung, find_newest_ladder, models_in_folder
from fewstep.distributed.collectives import world_size
from fewstep.estimate.attempts import Room, tried
from fewstep.estimate.footprint import Footprint
from fewstep.estimate.forecast import Forecast, Machine, Needs, estimated, judged, per_evaluation, scaled
from fewstep.estimate.request import STAND_IN, Attempt, Measured, told
from fewstep.estimate.table import show
from fewstep.estimate.work import Grid, Leg, grid_among, grid_of, legs_of
from fewstep.evaluation.features import INCEPTION_WEIGHTS
from fewstep.runs.build import EXACT, Setup, plain, plan_of
from fewstep.runs.evaluate import candidates_of, with_ancestors
from fewstep.runs.pipeline import chain_of, check_pipeline, check_stage, is_guided, stage_of
from fewstep.system.hardware import current_memory, free_disk, free_memory, product_rate
from fewstep.teachers.imported import is_foreign

GENERATED = ("cifar10", "imagenet64")  # of which generated files have the true shape
MOST_JUDGED, FEWEST_JUDGED = 2000, 32  # images a cell that evaluation is tried with
FEW = 64  # reference images, where figures are not what is tried
FREE_SHARE = 0.95  # of the free memory, which no trial may exceed
ROLE_OF = {"teacher": "teacher", "guidance": "guided", "progressive": "progressive", "encoder": "encoder"}


@dataclass(frozen=True)
class Step:
    """A stage of the plan: its settings, its trainings, and whose child it is; see `Attempt`."""

    setup: Setup
    legs: tuple[Leg, ...]
    footprint: Footprint
    parent: str | None

    @property
    def name(self) -> str:
        return self.setup.config.stage.name


def plan(config: DictConfig) -> None:
    """Print what the settings would train, how long that takes and what it needs.

    Nothing is written below outputs: trials have a folder of their own, which is removed.

    Raises:
        ValueError: the settings, the data or the parent are not usable; what a run would say.
        RuntimeError: a trial failed, in a way that training would too.
    """
    console = Console()
    with console.status("looking"), TemporaryDirectory(prefix="fewstep-plan-") as folder:
        forecast = Planner(config, Path(folder), console).forecast()
    show(forecast, Path(config.outputs))


class Planner:
    """One plan.

    Args:
        config: resolved settings. folder: for the trials.
    """

    def __init__(self, config: DictConfig, folder: Path, console: Console) -> None:
        self.config, self.folder, self.console = config, folder, console
        self.apart = copy.deepcopy(config)  # the same settings, away from the real outputs
        self.apart.outputs = str(folder / "outputs")
        self.notes: list[str] = []

    def forecast(self) -> Forecast:
        """See `plan`."""
        self.use_generated_data()
        self.use_another_net()
        if self.config.stage.name == "pipeline":
            check_pipeline(self.apart)
        steps = self.steps()
        grid = self.grid(steps)
        machine = self.machine(steps)
        attempts = self.attempts(steps, grid, machine.room)
        self.note_cuts(steps, grid, attempts)
        if attempts:
            limit = round(FREE_SHARE * free_memory())
            ended = tried(self.folder, attempts, limit, lambda stage: self.say(f"trying {stage}"))
            if ended:
                self.notes.append(f"the trial {ended}: what had not been tried by then is estimated from shapes")
        measured = {each.stage: found for each in attempts if (found := told(self.folder, each.stage))}
        on_gpu = machine.device == "cuda"
        return Forecast(
            title=f"stage={self.config.stage.name} dataset={self.config.dataset.name}",
            machine=machine,
            lines=tuple(self.lines(steps, grid, measured, machine)),
            free_memory=free_memory(),
            free_device_memory=torch.cuda.mem_get_info()[0] if on_gpu else 0,
            free_disk=free_disk(Path(self.config.outputs)),
            notes=tuple(self.notes),
        )

    def say(self, what: str) -> None:
        self.console.print(f"{what} ...", style="dim", highlight=False)

    def use_generated_data(self) -> None:
        """Where the data are not there yet, and have one shape only, plan with generated files of that shape."""
        data = self.config.dataset
        if data.name in GENERATED and not data.generated and not Path(data.root).exists() and not data.get("cache"):
            self.notes.append(f"{data.root} is not there: tried on generated files, so without the time to read it")
            for config in (self.config, self.apart):
                config.dataset.root, config.dataset.generated = str(self.folder / data.name), True

    def use_another_net(self) -> None:
        """Where Inception's weights are not there yet, plan with the small net."""
        try:
            Setup.of(self.apart)
        except ValueError as error:
            if INCEPTION_WEIGHTS not in str(error):
                raise
            self.notes.append(f"{error}; a run stops there. Planned with a small feature net, whose figures are sooner")
            for config in (self.config, self.apart):
                config.trainer.features = "patches"

    def steps(self) -> list[Step]:
        """The trainings of the settings, each with its parent: a file, the model of the step before, or a stand-in."""
        name, teacher = self.config.stage.name, self.config.teacher
        if name == "evaluate":
            return []
        if name != "pipeline":
            check_stage(self.config.stage)
            return [self.step(self.apart, self.parent_of_one())]
        steps, parent = [], None
        if teacher is None:
            steps.append(self.step(stage_of(self.apart, "teacher"), None))
            parent = "teacher"
        two_student = chain_of(self.config.stage.progressive).is_guided_outside
        guided = teacher is not None and is_guided(teacher)
        if self.config.stage.until != "teacher" and not guided:
            steps.append(self.step(stage_of(self.apart, "guidance", teacher), parent))
            parent = parent if two_student else "guidance"
        if self.config.stage.until == "evaluate":
            steps.append(self.step(stage_of(self.apart, "progressive", teacher), parent))
        return steps

    def step(self, config: DictConfig, parent: str | None) -> Step:
        setup = Setup.of(config)
        guided_outside = "ladder" in config.stage and chain_of(config.stage).is_guided_outside
        guidance_input = config.stage.name != "teacher" and not guided_outside
        return Step(setup, tuple(legs_of(setup)), Footprint.of(setup, guidance_input=guidance_input), parent)

    def parent_of_one(self) -> str | None:
        """The parent of a single stage: what a run would take, else a stand-in."""
        stage = self.config.stage
        if stage.name == "teacher" or self.config.teacher not in (None, EXACT):
            return None
        if stage.name == "guidance" and self.config.teacher == EXACT:
            return None
        chain: Rung | None = chain_of(stage) if "ladder" in stage else None
        role = "guided" if chain and not chain.is_guided_outside else "teacher"
        try:
            found = replace(Setup.of(self.apart), config=self.config).parent(role, chain)
        except ValueError:
            self.notes.append(f"there is no {role} below {self.config.outputs} yet: tried with a fresh one of model=")
            return STAND_IN
        self.apart.teacher = str(found)
        return None

    def grid(self, steps: Sequence[Step]) -> Grid | None:
        """The evaluation, where there is one."""
        stage = self.config.stage
        if stage.name == "pipeline" and stage.until == "evaluate":
            ladder = list(stage.progressive.ladder)[1:]
            grid = plan_of(stage.evaluate, steps[-1].setup.settings)
            return grid_of(grid, ladder, guided_outside=chain_of(stage.progressive).is_guided_outside)
        if stage.name != "evaluate":
            return None
        setup = Setup.of(self.apart)
        if self.config.teacher in (None, EXACT):
            models = find_newest_ladder(Path(self.config.outputs), self.config.dataset.name)
        elif is_foreign(self.config.teacher):
            models = [setup.parent("teacher")]
        else:
            path = Path(self.config.teacher)
            models = models_in_folder(path) if path.is_dir() else [path]
            if not models:
                raise ValueError(f"teacher={path} must be a model file or a folder that holds one, and holds none")
        self.apart.teacher = str(models[-1])
        grid = plan_of(stage, setup.settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the evaluation will say it
            return grid_among(grid, candidates_of(with_ancestors(models), grid, setup.judge.exact))

    def machine(self, steps: Sequence[Step]) -> Machine:
        """Where it is to run, and what a trial may use of it.

        Raises:
            ValueError: a batch does not divide over the processes.
        """
        settings = (steps[0].setup if steps else Setup.of(self.apart)).settings
        processes = max(world_size(), settings.processes * settings.num_nodes)
        for leg in (leg for step in steps for leg in step.legs if leg.batch_size % processes):
            raise ValueError(
                f"a batch must divide over the processes, got stage.training.batch_size={leg.batch_size} for "
                f"{processes}; change it or trainer.devices"
            )
        dtype = torch.float32 if settings.precision == "32-true" else torch.bfloat16
        rate = product_rate(settings.device, dtype)
        on_gpu = settings.device == "cuda"
        memory = free_memory(settings.device)
        room = Room(memory, 0 if on_gpu else current_memory(), rate)
        return Machine(settings.device, processes, settings.processes, settings.strategy, room)

    def attempts(self, steps: Sequence[Step], grid: Grid | None, room: Room) -> list[Attempt]:
        """What can be tried."""
        attempts: list[Attempt] = []
        for step in steps:
            leg, footprint, settings = step.legs[0], step.footprint, step.setup.settings
            share = leg.batch_size // max(world_size(), settings.processes * settings.num_nodes)
            rows = room.rows(footprint, leg.stage, share, averaged=leg.averaged)
            if not rows:
                continue
            looked = leg.look_evaluations(1 if leg.rung is not None else leg.look_steps)
            watched = round(settings.snapshot_images * leg.branches + 2 * looked)
            fast = room.images(footprint, 1, watched) == watched
            tried_before = [each.stage for each in attempts]
            parent = STAND_IN if step.parent in ROLE_OF and step.parent not in tried_before else step.parent
            attempts.append(Attempt(leg.stage, self.with_few(step.setup, fast), rows, fast, parent))
        if grid is not None and (not steps or (attempts and attempts[-1].stage == "progressive")):
            config = stage_of(self.apart, "evaluate") if steps else self.apart
            setup = steps[-1].setup if steps else Setup.of(self.apart)
            footprint = steps[-1].footprint if steps else Footprint.of(setup, guidance_input=True)
            count = min(grid.plan.num_images, MOST_JUDGED)
            # teacher, guided student and rung, and a warming up of each
            count = room.images(footprint, 8 if steps else 2 * sum(c.nfe for c in grid.contestants), count)
            if count >= min(FEWEST_JUDGED, grid.plan.num_images):
                parent = "progressive" if steps else None
                attempts.append(Attempt("evaluate", plain(config), count, looks=False, parent=parent, report=grid.rows))
        return attempts

    @staticmethod
    def with_few(setup: Setup, fast: bool) -> dict[str, Any]:
        """The settings of a trial; where a network is too slow for snapshots, nobody waits for the reference either."""
        config = plain(setup.config)
        if not fast and "num_reference" in config["dataset"]:
            config["dataset"]["num_reference"] = FEW
        return config

    def note_cuts(self, steps: Sequence[Step], grid: Grid | None, attempts: Sequence[Attempt]) -> None:
        """Say what was not tried as it will be."""
        asked = {each.stage: each for each in attempts}
        for step in steps:
            name = step.name
            if name not in asked:
                self.notes.append(
                    f"{name} is too large to be tried here: memory is estimated from shapes, and the time is at least "
                    "that of its matrix products at this machine's full speed"
                )
            elif not asked[name].looks:
                self.notes.append(
                    f"{name} was tried with {asked[name].rows} images an update, without snapshots and diagnostics: "
                    "a run needs at least this memory"
                )
        if grid is not None and "evaluate" not in asked:
            self.notes.append("evaluation was not tried: its time is that of sampling alone, its memory is not known")

    def lines(
        self, steps: Sequence[Step], grid: Grid | None, measured: Mapping[str, Measured], machine: Machine
    ) -> list[Needs]:
        """A line for each training and for the evaluation."""
        known = {ROLE_OF[name]: per_evaluation(found) for name, found in measured.items() if name in ROLE_OF}
        if not known and steps:
            known = {"student": steps[-1].footprint.flops / machine.room.rate}
        spent = known | dict(measured["evaluate"].seconds_per_evaluation if "evaluate" in measured else {})
        lines = []
        for step in steps:
            found, each = measured.get(step.name), spent.get(ROLE_OF[step.name], max(spent.values()))
            for leg in step.legs:
                if found is None:
                    lines.append(estimated(leg, step.footprint, machine))
                else:
                    lines.append(scaled(leg, found, step.footprint, machine, step.setup, each))
        if grid is not None:
            setup = steps[-1].setup if steps else Setup.of(self.apart)
            lines.append(judged(grid, measured.get("evaluate"), machine, setup, known))
        return lines
