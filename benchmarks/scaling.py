"""How does the speed scale: with processes, with the size of images from 8 x 8 to 64 x 64, and with the network?

Processes are real runs of `python train.py trainer=ddp_cpu trainer.devices=N`, one thread each, of one global batch;
images/s are those of the run's metrics.csv, start-up not counted. Sizes are training steps (loss, gradient, AdamW) of
the U-Net of conf/model/patches.yaml and of the network of the digits at growing widths. Machines of fewer cores than
processes show what sharing a core costs, and no more.
"""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from limit import Case, measure
from measure import report

from fewstep.tracking.metrics_file import FILE, read_metrics
from fewstep.tracking.names import IMAGES_PER_SECOND

ROOT = Path(__file__).parents[1]
COLUMNS = ["what", "size", "images/s", "TFLOP/s", "note"]
RUN = (
    "stage=teacher",
    "dataset=digits",
    "logger=csv",
    "model.network.width=512",
    "stage.training.batch_size=1024",
    "trainer.snapshots=0",
    "trainer.diagnostics=0",
    "trainer.log_every_images=20480",
)
SIDES = (8, 16, 32, 64)
WIDTHS = (128, 256, 512, 1024)


def main(
    processes: Annotated[list[int] | None, typer.Option(help="May be repeated.  [default: 1 2 4]")] = None,
    images: Annotated[int, typer.Option(min=40960, help="Budget of a run of several processes.")] = 122880,
    seconds: Annotated[float, typer.Option(help="Time for each size.")] = 2.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, for the sizes.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure images/s over processes, image sizes and network sizes."""
    torch.set_num_threads(threads or torch.get_num_threads())
    rows = over_processes(processes or [1, 2, 4], images)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for side in SIDES:
        batch = max(8, 64 * 16**2 // side**2)
        rows.append(of_size(Case(f"U-Net, {side} x {side}", "patches", (3, side, side), batch, 10), device, seconds))
    for width in WIDTHS:
        settings = (f"model.network.width={width}",)
        rows.append(of_size(Case(f"width {width}", "digits", (1, 8, 8), 512, 10, settings), device, seconds))
    report("scaling: training over processes, image sizes and network sizes", rows, COLUMNS, out)


def over_processes(counts: list[int], images: int) -> list[dict[str, Any]]:
    """One run for each number of processes; the first is what the others are compared with."""
    rows: list[dict[str, Any]] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for count in counts:
        rate = rate_of(count, images)
        first = rows[0]["images/s"] / rows[0]["processes"] if rows else rate / count
        shared = "" if count <= cores else f", on {cores} cores"
        rows.append(
            {
                "what": "processes, one thread each",
                "size": str(count),
                "images/s": round(rate),
                "TFLOP/s": "",
                "note": f"{100 * rate / (first * count):.0f} % of {count} times one{shared}",
                "processes": count,
            }
        )
    return rows


def rate_of(count: int, images: int) -> float:
    """Images/s of a run in `count` processes: the median of its rows after the first, in which all warms up."""
    trainer = ["trainer=cpu"] if count == 1 else ["trainer=ddp_cpu", f"trainer.devices={count}"]
    with TemporaryDirectory() as folder:
        given = [*RUN, *trainer, f"trainer.max_images={images}", f"outputs={folder}"]
        made = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *given],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, f"a run of {count} processes failed: {made.stderr[-2000:]}"
        (metrics,) = Path(folder).rglob(FILE)
        rates = [row[IMAGES_PER_SECOND] for row in read_metrics(metrics) if IMAGES_PER_SECOND in row]
    return median(rates[1:] or rates)


def of_size(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """A row for a network in training."""
    row = measure(case, device, seconds)[-1]
    return {
        "what": "image size" if case.model == "patches" else "network size",
        "size": case.name,
        "images/s": round(row["images/s"]),
        "TFLOP/s": f"{row['TFLOP/s']:.3g}",
        "note": f"{row['parameters']:,} parameters, batch {case.batch}",
    }


if __name__ == "__main__":
    typer.run(main)
