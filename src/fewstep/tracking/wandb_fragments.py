"""The parts of a W&B run that earlier processes left on disk: each process that resumes it writes a folder of its own.

W&B's service writes in blocks, so the file of a process that was killed lacks its end: its rows are logged again, from
the run's own files, and it is removed. `wandb sync` appends fragments as they are, so no row may be in two of them.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.system.files import atomic_write
from fewstep.system.stored import read_json
from fewstep.tracking.tracker import Row, last_step

MARK = "logged.json"  # ours, in each fragment


class Mark(NamedTuple):
    """The last step that was logged, before this fragment or, once its process has ended in order, with it."""

    step: int
    complete: bool


def fragments_of(folder: Path, run_id: str) -> list[Path]:
    """The fragments of a W&B run below a run folder, oldest first."""
    return sorted((folder / "wandb").glob(f"*run-*-{run_id}*"), key=lambda path: path.name.partition("run-")[2])


def last_logged(fragments: Sequence[Path], history: Callable[[], Iterable[Row]]) -> int:
    """The last step that is in complete fragments, or that W&B's server has; -1 if there is none.

    How much the server has of a process that was killed is known to it alone: offline, all of the history counts.
    """
    last = max((read_mark(fragment).step for fragment in fragments), default=-1)
    if fragments and is_uploaded(fragments[-1]) and not read_mark(fragments[-1]).complete:
        last = max(last, last_step(history()))
    return last


def remove_repeated(fragments: Sequence[Path], *, online: bool) -> None:
    """Remove the fragments whose rows are logged again: of killed processes; of a run now online, all not uploaded."""
    for fragment in fragments:
        if not is_uploaded(fragment) and (online or not read_mark(fragment).complete):
            shutil.rmtree(fragment)


def read_mark(fragment: Path) -> Mark:
    file = fragment / MARK
    return (
        read_json(file, Mark, f"delete {fragment}, whose rows are logged again") if file.is_file() else Mark(-1, False)
    )


def write_mark(fragment: Path, mark: Mark) -> None:
    with atomic_write(fragment / MARK) as temporary:
        temporary.write_text(json.dumps(mark._asdict()))


def is_uploaded(fragment: Path) -> bool:
    """Whether its process was online, or `wandb sync` uploaded it."""
    return not fragment.name.startswith("offline") or any(fragment.glob("*.synced"))
