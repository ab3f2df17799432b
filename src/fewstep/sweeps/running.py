"""Launch what a sweep lacks, parents before their children; a job that fails ends nothing but itself."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.table import Table

from fewstep.sweeps.objective import Objective
from fewstep.sweeps.status import DONE, FAILED, FINISHED, SKIPPED, WAITING, JobState

Result = Mapping[str, Any]
"""The exit status and the last message of a job."""
Launch = Callable[[Sequence[JobState]], Sequence[Result]]
"""Have the launcher run some jobs to their ends."""


@dataclass
class Sweep:
    """The jobs and shared trainings of a sweep, and what has come of each."""

    states: list[JobState]
    objective: Objective

    def run(self, launch: Launch, *, one_by_one: bool) -> None:
        """Launch everything that is not finished: one job after another, or all that can begin at once together."""
        while ready := self.ready():
            batch = ready[:1] if one_by_one else ready
            start = time.monotonic()
            for state, result in zip(batch, launch(batch), strict=True):
                self.finish(state, result, time.monotonic() - start)

    def run_in_threads(self, launch: Launch, at_once: int) -> None:
        """The same with so many threads, each waiting for one job, so that its children begin as soon as it is done.

        submitit's launcher gives the results of one call together, and none if one of its jobs was killed.
        """
        ended: SimpleQueue[tuple[JobState, Result, float]] = SimpleQueue()

        def wait_for(state: JobState) -> None:
            start = time.monotonic()
            try:
                (result,) = launch([state])
            except Exception as error:
                result = {"status": 1, "message": str(error)}
            ended.put((state, result, time.monotonic() - start))

        running: list[str] = []
        with ThreadPool(at_once) as pool:  # unlike an executor, it does not keep a stopped program from ending
            while True:
                for state in self.ready():
                    if state.job.name not in running:
                        running.append(state.job.name)
                        pool.apply_async(wait_for, (state,))
                if not running:
                    return
                state, result, seconds = ended.get()
                running.remove(state.job.name)
                self.finish(state, result, seconds)

    def ready(self) -> list[JobState]:
        """What can begin: its parent is done. What waits for a failed one is skipped."""
        by_name = {state.job.name: state for state in self.states}
        ready = []
        for state in self.states:
            if state.state != WAITING:
                continue
            parent = by_name.get(state.job.parent)
            if parent is None or parent.state in (FINISHED, DONE):
                ready.append(state)
            elif parent.state in (FAILED, SKIPPED):
                state.state, state.message = SKIPPED, f"its parent {parent.job.name} {parent.state}"
        return ready

    def finish(self, state: JobState, result: Result, seconds: float) -> None:
        """Record how a job ended, and print it."""
        missing = state.missing()
        state.state = FAILED if result["status"] or missing else DONE
        state.message = str(result["message"]) if result["status"] else f"it left no {missing}" if missing else ""
        state.figure = state.read_figure(self.objective)
        done = sum(each.state != WAITING for each in self.states)
        figure = "" if state.figure is None else f", {self.objective} = {state.figure:.4g}"
        detail = f": {state.message}" if state.message else figure
        print(f"{done}/{len(self.states)} {state.job.name}: {state.state} in {seconds:,.0f} s{detail}", flush=True)

    @property
    def failures(self) -> list[JobState]:
        return [state for state in self.states if state.state in (FAILED, SKIPPED)]

    def show(self) -> None:
        """Print what has come of each job, best first."""
        table = Table(title=str(self.objective), title_justify="left")
        for column in ("job", "state", "figure", "what went wrong"):
            table.add_column(column, justify="right" if column == "figure" else "left", overflow="fold")
        sign = self.objective.sign
        for state in sorted(self.states, key=lambda each: (each.figure is None, sign * (each.figure or 0.0))):
            figure = "" if state.figure is None else f"{state.figure:.4g}"
            table.add_row(state.job.name, state.state, figure, state.message)
        Console(soft_wrap=True, highlight=False, markup=False).print(table)
