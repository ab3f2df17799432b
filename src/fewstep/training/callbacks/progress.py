"""Training progress: a bar in a terminal, plain lines elsewhere."""

from time import perf_counter
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from fewstep.system.hardware import GIB, peak_device_memory

REDRAW_SECONDS = 0.2
LINE_SECONDS = 10.0
RATE_SECONDS = 10.0  # images/s are averaged over at least this long


class Progress(Callback):
    """Show stage, images done and in total, images/s, time left and loss, instead of Lightning's own bar.

    A step costs one reading of the clock and never waits for the device: the loss is the last one of `show_loss`. The
    Trainer needs `enable_progress_bar=False`.

    Args:
        stage: name in front. rung: number of steps of the phase, shown after it.
        batch_size: images per optimiser step over all processes.
        console: standard output by default.
    """

    def __init__(self, *, stage: str, batch_size: int, rung: int | None = None, console: Console | None = None) -> None:
        self.title = stage if rung is None else f"{stage} {rung}"
        self.batch_size = batch_size
        self.console = console or Console()
        self._loss = ""
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._due = float("inf")  # time of the next redraw; never on ranks that show nothing
        self._start = (0.0, 0)  # time and images
        self._marks: list[tuple[float, int]] = []
        self._total = 0

    def show_loss(self, loss: float) -> None:
        """Set the loss that is shown from now on."""
        self._loss = f"loss {loss:.3g}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        images, now = trainer.global_step * self.batch_size, perf_counter()
        self._total = max(0, trainer.max_steps) * self.batch_size
        self._start, self._marks = (now, images), [(now, images)]
        if not self.console.is_terminal:
            self._due = now + LINE_SECONDS
            return
        self._due = now + REDRAW_SECONDS
        self._bar = Bar(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(self.title))),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            auto_refresh=False,
            expand=True,
        )
        self._task = self._bar.add_task(self.title, total=self._total or None, completed=images, text="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = perf_counter()
        if now < self._due:
            return
        images = trainer.global_step * self.batch_size
        text = self._text(now, images)
        if self._bar is None:
            self.console.print(f"{self.title}: {text}", highlight=False, markup=False, soft_wrap=True)
            self._due = now + LINE_SECONDS
        else:
            self._bar.update(self._task, completed=images, text=text, refresh=True)
            self._due = now + REDRAW_SECONDS

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        now, images = perf_counter(), trainer.global_step * self.batch_size
        began, images_then = self._start
        rate = (images - images_then) / max(now - began, 1e-9)
        memory = f"peak memory {peak_device_memory() / GIB:.2f} GiB"
        parts = (f"{images:,} images in {_hms(now - began)}", f"{rate:,.0f} images/s", self._loss, memory)
        text = ", ".join(filter(None, parts))
        if self._bar is not None:
            self._bar.update(self._task, completed=images, text=text, refresh=True)
            self._close()
        else:
            self.console.print(f"{self.title}: {text}", highlight=False, markup=False, soft_wrap=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self._due = float("inf")
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _text(self, now: float, images: int) -> str:
        self._marks.append((now, images))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_SECONDS:
            self._marks.pop(0)
        then, images_then = self._marks[0]
        rate = (images - images_then) / max(now - then, 1e-9)
        parts = [f"{_count(images)}/{_count(self._total)} images" if self._total else f"{_count(images)} images"]
        parts.append(f"{rate:,.0f} images/s")
        if self._total and rate > 0:
            parts.append(f"{_hms((self._total - images) / rate)} left")
        return ", ".join([*parts, self._loss] if self._loss else parts)


def _count(images: int) -> str:
    """999 as it is, 38400 as 38.4k, 1250000 as 1.25M."""
    if images < 1000:
        return str(images)
    return f"{images / 1e3:.1f}k" if images < 999_950 else f"{images / 1e6:.2f}M"


def _hms(seconds: float) -> str:
    """75 as 1:15, 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
