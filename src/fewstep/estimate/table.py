"""A forecast as people read it."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fewstep.estimate.forecast import Forecast, Needs
from fewstep.system.durations import duration
from fewstep.system.hardware import GIB, cores

WIDTH = 120  # where there is no terminal
MARK = {"measured": "", "scaled": "~", "estimated": ">"}


def show(forecast: Forecast, outputs: Path) -> None:
    """Print the table, the sums, what they were made from, and a warning for whatever does not fit."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table_of(forecast))
    for line in summary(forecast, outputs):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for warning in warnings_of(forecast, outputs):
        console.print(f"warning: {warning}", style="bold red", highlight=False, markup=False, soft_wrap=True)


def table_of(forecast: Forecast) -> Table:
    """A row for each training and the evaluation."""
    where = f"{forecast.machine.processes} process{'es' if forecast.machine.processes > 1 else ''}"
    on = "GPU" if forecast.machine.device == "cuda" else f"CPU, {cores()} cores"
    table = Table(title=f"plan of {forecast.title}: {where}, {on}", title_justify="left")
    for name in ("stage", "parameters", "images", "batch", "updates", "an update", "memory", "time", "disk"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for line in forecast.lines:
        table.add_row(*cells_of(line))
    table.add_section()
    memory = forecast.device_memory or forecast.memory
    seconds = duration(forecast.seconds)
    table.add_row("all", "", "", "", "", "", size(memory), seconds, size(forecast.disk), style="bold")
    return table


def cells_of(line: Needs) -> list[str]:
    """The row of one line."""
    mark, memory = MARK[line.how], line.device_memory or line.memory
    return [
        line.name,
        "" if line.parameters is None else f"{line.parameters / 1e6:,.2f} M",
        "" if line.images is None else f"{line.images:,}",
        "" if line.batch_size is None else f"{line.batch_size:,}",
        "" if line.updates is None else f"{line.updates:,}",
        "" if line.seconds_per_update is None else mark + duration(line.seconds_per_update),
        "?" if memory is None else mark.replace(">", "~") + size(memory),
        mark + duration(line.seconds),
        size(line.disk),
    ]


def summary(forecast: Forecast, outputs: Path) -> list[str]:
    """The sums beside what there is, and how they were found."""
    several = forecast.machine.here if forecast.machine.here > 1 else 0
    each = f" a process, {size(forecast.memory * several)} for {several} on this machine" if several else ""
    free = f"{size(forecast.free_memory)} are free"
    lines = [f"memory: {size(forecast.memory)}{each} at the peak; {free}"]
    if forecast.device_memory:
        there = f"{size(forecast.free_device_memory)} are free"
        lines.append(f"memory of the GPU: {size(forecast.device_memory)} allocated at the peak; {there}")
    lines.append(f"disk: {size(forecast.disk)} below {outputs}; {size(forecast.free_disk)} are free")
    hows = {line.how for line in forecast.lines}
    at_least = "at least " if "estimated" in hows else ""
    lines.append(f"time: {at_least}{duration(forecast.seconds)}, measured now; nothing was trained or kept")
    if "scaled" in hows:
        lines.append("~ tried with fewer images and scaled")
    if "estimated" in hows:
        lines.append("> not tried: at least that")
    return lines + [f"note: {note}" for note in forecast.notes]


def warnings_of(forecast: Forecast, outputs: Path) -> list[str]:
    """What will not fit, and what to do."""
    found, advice = [], "lower stage.training.batch_size, use trainer.gradient_checkpointing=true or more processes"
    needed = forecast.memory * forecast.machine.here
    if needed > forecast.free_memory:
        found.append(f"{size(needed)} of memory will not fit into {size(forecast.free_memory)}; {advice}")
    if forecast.device_memory > forecast.free_device_memory:
        has = size(forecast.free_device_memory)
        found.append(f"{size(forecast.device_memory)} of GPU memory will not fit into {has}; {advice}")
    if forecast.disk > forecast.free_disk:
        has = f"{size(forecast.free_disk)} at {outputs}"
        found.append(f"{size(forecast.disk)} of disk will not fit into {has}; choose outputs=PATH on a larger disk")
    return found


def size(count: float) -> str:
    """Bytes: "820 MiB", "1.31 GiB", "12.0 GiB"."""
    if count < GIB:
        return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"
    return f"{count / GIB:,.2f} GiB" if count < 10 * GIB else f"{count / GIB:,.1f} GiB"
