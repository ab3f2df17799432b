"""The folder of a run, and the loggers that write into it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger

from fewstep.artifacts.run_folder import RunFolder, open_run, threads_of_run
from fewstep.diagnostics.file import logged_rows
from fewstep.distributed.collectives import on_main_process, world_size
from fewstep.runs.config import FORCE, Settings
from fewstep.system.hardware import cores
from fewstep.system.threads import number_of_threads
from fewstep.tracking.loggers import started


@contextmanager
def open_folder(
    settings: Settings,
    products: Sequence[str],
    name: str | None = None,
    keep: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[RunFolder]:
    """The run folder of these settings, held, with the threads that the run began with; see `open_run`."""
    with ExitStack() as stack:

        def hold() -> RunFolder:
            force = settings.values["resume"] == FORCE
            folder = stack.enter_context(
                open_run(
                    settings.outputs,
                    settings.dataset_name,
                    settings.name,
                    settings.text,
                    products,
                    name or settings.run_name,
                    keep,
                    force,
                )
            )
            print(f"{settings.name}: {folder.path}" + (" (finished before)" if folder.finished else ""), flush=True)
            return folder

        def threads() -> int:
            here = torch.get_num_threads()
            if folder.finished:
                return here
            count = threads_of_run(folder.path, here, world_size(), cores())
            if count != here:
                print(f"{count} thread(s), as the run began with and not {here}: it ends the same to the last bit")
            return count

        folder = on_main_process(hold)
        with number_of_threads(on_main_process(threads)):
            yield folder


@contextmanager
def loggers_of(settings: Settings, folder: Path) -> Iterator[list[Logger]]:
    """Where the numbers of a stage go; see `started`."""
    with started(
        folder,
        group=f"{settings.dataset_name}-{folder.name}",
        job_type=settings.name,
        config=settings.values,
        loggers=settings.values["logger"],
        earlier=logged_rows(folder),
    ) as loggers:
        yield loggers
