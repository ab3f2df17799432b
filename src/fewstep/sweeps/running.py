"""Launch what a sweep lacks, parents before their children; a job that fails ends nothing but itself."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rich.console import Console
from rich.table import Table

from fewstep.sweeps.status import DONE, FAILED, FINISHED, HELD_BACK, WAITING, JobState, Objective

Result = Mapping[str, Any]
"""The exit status and the last words of a job."""
Launch = Callable[[Sequence[JobState]], Sequence[Result]]
"""Have the launcher run some jobs to their ends."""


class LaunchMode(Enum):
    """How a launcher is given its jobs."""

    EACH = "one after another"
    TOGETHER = "all that can begin at once"  # it has a pool of its own
    THREADS = "each by a thread that waits for it"  # it has a queue of its own, and no job waits for another's sake


@dataclass
class Sweep:
    """The jobs and parents of a sweep, and what has come of each."""

    outcomes: list[JobState]
    objective: Objective

    def run(self, launch: Launch, way: LaunchMode, at_once: int) -> None:
        """Launch everything that is not finished.

        Args:
            at_once: how many threads; each waits for one job.
        """
        if way is LaunchMode.THREADS:
            self.run_in_threads(launch, at_once)
        while ready := self.ready():
            batch = ready if way is LaunchMode.TOGETHER else ready[:1]
            start = time.monotonic()
            for outcome, result in zip(batch, launch(batch), strict=True):
                self.settle(outcome, result, time.monotonic() - start)

    def run_in_threads(self, launch: Launch, at_once: int) -> None:
        """Have each job waited for by a thread of its own, so that its children begin as soon as it is done."""
        running: dict[Future[Result], tuple[JobState, float]] = {}
        while True:
            waiting = [o for o in self.ready() if not any(o is other for other, _ in running.values())]
            for outcome in waiting[: at_once - len(running)]:
                running[in_thread(launch, outcome)] = outcome, time.monotonic()
            if not running:
                return
            for future in wait_for(running, return_when=FIRST_COMPLETED).done:
                outcome, start = running.pop(future)
                error = future.exception()
                result = {"status": 1, "words": str(error)} if error else future.result()
                self.settle(outcome, result, time.monotonic() - start)

    def ready(self) -> list[JobState]:
        """What can begin: its parents are done. What waits for a failed one is held back."""
        parents = {outcome.step.job.name: outcome for outcome in self.outcomes if outcome.step.until}
        can = []
        for outcome in self.outcomes:
            own = [parents[name] for name in outcome.step.after]
            failed = next((parent for parent in own if parent.state in (FAILED, HELD_BACK)), None)
            if outcome.state != WAITING:
                continue
            if failed is not None:
                outcome.state, outcome.words = HELD_BACK, f"its parent {failed.step.job.name} failed"
            elif all(parent.state in (FINISHED, DONE) for parent in own):
                can.append(outcome)
        return can

    def settle(self, outcome: JobState, result: Result, seconds: float) -> None:
        """Note how a job ended, and say it."""
        missing = outcome.missing()
        outcome.state = FAILED if result["status"] or missing else DONE
        outcome.words = str(result["words"]) if result["status"] else f"it left no {missing}" if missing else ""
        outcome.figure = self.objective.of(outcome.folder)
        number, settled = len(self.outcomes), sum(o.state != WAITING for o in self.outcomes)
        figure = "" if outcome.figure is None else f", {self.objective} = {outcome.figure:.4g}"
        said = f": {outcome.words}" if outcome.words else figure
        print(f"{settled}/{number} {outcome.step.job.name}: {outcome.state} in {seconds:,.0f} s{said}", flush=True)

    @property
    def failures(self) -> list[JobState]:
        return [outcome for outcome in self.outcomes if outcome.state in (FAILED, HELD_BACK)]

    def show(self) -> None:
        """Print what has come of each job, best first."""
        table = Table(title=str(self.objective), title_justify="left")
        for column in ("job", "state", "figure", "what went wrong"):
            table.add_column(column, justify="right" if column == "figure" else "left", overflow="fold")
        sign = 1 if self.objective.less_is_better else -1
        for outcome in sorted(self.outcomes, key=lambda o: (o.figure is None, sign * (o.figure or 0.0))):
            figure = "" if outcome.figure is None else f"{outcome.figure:.4g}"
            table.add_row(outcome.step.job.name, outcome.state, figure, outcome.words)
        Console(soft_wrap=True, highlight=False, markup=False).print(table)


def in_thread(launch: Launch, outcome: JobState) -> Future[Result]:
    """A job's result, when it is there. The thread does not keep the program from ending."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(launch([outcome])[0])
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future
