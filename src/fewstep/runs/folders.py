"""The folder of a run, and the loggers that write into it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lightning.pytorch.loggers import Logger

from fewstep.artifacts.run_folder import RunFolder, open_run
from fewstep.diagnostics.file import logged_rows
from fewstep.distributed.collectives import on_main_process
from fewstep.runs.config import FORCE, Settings
from fewstep.tracking.loggers import started


@contextmanager
def open_folder(
    settings: Settings,
    products: Sequence[str],
    name: str | None = None,
    keep: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[RunFolder]:
    """The run folder of these settings, held; see `open_run`."""
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

        yield on_main_process(hold)


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
