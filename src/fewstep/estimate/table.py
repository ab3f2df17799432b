"""An estimate, and how people read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from fewstep.system.durations import duration
from fewstep.system.hardware import GIB

WIDTH = 120  # where there is no terminal
COLUMNS = ("stage", "parameters", "images", "batch", "updates", "an update", "memory", "time", "disk")
How = Literal["measured", "scaled", "estimated"]
MARK: dict[How, str] = {"measured": "", "scaled": "~", "estimated": ">"}


@dataclass(frozen=True)
class Row:
    """A phase of a training, or the evaluation.

    Args:
        how: measured; measured with fewer examples and scaled; or estimated from operations and shapes alone.
        memory, device_memory: bytes of a process at the peak, and of its GPU.
        disk: bytes that stay. checkpoint: of another one while it is written.
    """

    name: str
    how: How
    memory: int
    device_memory: int
    seconds: float
    disk: int = 0
    checkpoint: int = 0
    parameters: int | None = None
    images: int | None = None
    batch_size: int | None = None
    updates: int | None = None
    seconds_per_update: float | None = None

    @property
    def texts(self) -> list[str]:
        """One for each of COLUMNS."""
        mark = MARK[self.how]
        counts = ["" if value is None else f"{value:,}" for value in (self.images, self.batch_size, self.updates)]
        parameters = "" if self.parameters is None else f"{self.parameters / 1e6:,.2f} M"
        update = "" if self.seconds_per_update is None else mark + duration(self.seconds_per_update)
        memory = mark.replace(">", "~") + size(self.device_memory or self.memory)
        return [self.name, parameters, *counts, update, memory, mark + duration(self.seconds), size(self.disk)]


@dataclass(frozen=True)
class Estimate:
    """What a command needs, and what there is: bytes of memory, of a GPU's and of disk.

    Args:
        processes: on this machine. outputs: where the disk is.
    """

    title: str
    processes: int
    rows: tuple[Row, ...]
    free_memory: int
    free_device_memory: int
    free_disk: int
    outputs: Path
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def needs(self) -> dict[str, tuple[int, int]]:
        """Bytes needed at the peak and free, of each kind; a run has two older checkpoints while it writes one."""
        disk = sum(row.disk for row in self.rows) + 2 * max(row.checkpoint for row in self.rows)
        return {
            "memory": (self.processes * max(row.memory for row in self.rows), self.free_memory),
            "GPU memory": (max(row.device_memory for row in self.rows), self.free_device_memory),
            "disk": (disk, self.free_disk),
        }

    @property
    def lines(self) -> list[str]:
        """Totals beside what there is, what the marks mean, and notes."""
        hows = {row.how for row in self.rows}
        each = f" for {self.processes} processes" if self.processes > 1 else ""
        where = {"memory": f"{each} at the peak", "GPU memory": " allocated at the peak", "disk": f" at {self.outputs}"}
        lines = [
            f"{name}: {size(needed)}{where[name]}; {size(free)} are free"
            for name, (needed, free) in self.needs.items()
            if needed
        ]
        least = "at least " if "estimated" in hows else ""
        lines.append(f"time: {least}{duration(self.seconds)}; nothing was trained or kept")
        if "scaled" in hows:
            lines.append("~ measured with fewer images and scaled")
        if "estimated" in hows:
            lines.append("> not measured: the operations at the full speed of this machine's matrix products")
        return lines + [f"note: {note}" for note in self.notes]

    @property
    def warnings(self) -> list[str]:
        """What does not fit, and what to do."""
        smaller = "lower stage.training.batch_size, use trainer.gradient_checkpointing=true or more processes"
        advice = {"disk": f"choose outputs=PATH on a larger disk than that of {self.outputs}"}
        return [
            f"{size(needed)} of {name} will not fit into {size(free)}; {advice.get(name, smaller)}"
            for name, (needed, free) in self.needs.items()
            if needed > free
        ]


def show(estimate: Estimate) -> None:
    """Print the table, the totals, and a warning for what does not fit."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    table = Table(title=f"plan of {estimate.title}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for row in estimate.rows:
        table.add_row(*row.texts)
    table.add_section()
    memory, on_gpu, disk = (needed for needed, _ in estimate.needs.values())
    texts = (size(on_gpu or memory), duration(estimate.seconds), size(disk))
    table.add_row("all", *[""] * (len(COLUMNS) - 1 - len(texts)), *texts, style="bold")
    console.print(table)
    for line in estimate.lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for warning in estimate.warnings:
        console.print(f"warning: {warning}", style="bold red", highlight=False, markup=False, soft_wrap=True)


def size(number: float) -> str:
    """Bytes: "3 KiB", "820 MiB", "1.31 GiB", "12.0 GiB"."""
    if number < GIB:
        return f"{number / 2**20:,.0f} MiB" if number >= 2**20 else f"{number / 2**10:,.0f} KiB"
    return f"{number / GIB:,.2f} GiB" if number < 10 * GIB else f"{number / GIB:,.1f} GiB"
