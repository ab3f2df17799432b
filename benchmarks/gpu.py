"""All that a GPU is asked, by one command that ends within nine minutes.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

- networks: forward and training in bf16 with torch.compile, over the measured peak of matrix products (limit.py)
- sampling: a student's sample(), a loop by hand, diffusers' loop, and the loop by hand as one CUDA graph
- synchronisations: waits of the host for the device in the steps of a stage, which should be none
- sharding: a stage under FSDP in one process over the same without it
- memory: that of a stage over what `plan=true` said
- chains: digits and Fashion-MNIST from teacher to evaluation, whole

`--toy` does the same in seconds at no size, also on a CPU, where a CUDA graph is left out and values read count as
waits: clipping reads one a step there, on purpose. A part that fails says why in its row, and the others go on; the
file is written after every part.
"""

import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import limit
import overhead
import sampling
import torch
import typer
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from measure import machine
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.runs.build import build_method
from fewstep.runs.config import Settings
from fewstep.system.files import write_json
from fewstep.training.loop import fit

ROOT = Path(__file__).parents[1]
STAGES = ("guidance", "progressive")
STEPS, WARM_UP = 12, 4  # steps in which synchronisations are counted, after those in which there may be any
GIB = {"MiB": 2.0**-10, "GiB": 1.0}
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """The device, and whether all is small.

    Args:
        outputs: of its runs, in a temporary folder.
    """

    device: str
    toy: bool
    outputs: Path

    @property
    def seconds(self) -> float:
        return 0.2 if self.toy else 3.0

    def train(self, *overrides: str) -> tuple[str, float]:
        """What `python train.py` prints with these settings, and its seconds.

        Raises:
            RuntimeError: it ended with an error; the last line of it.
        """
        toy = ["trainer.toy=true", "trainer.max_images=512", "trainer.features=patches", "trainer.generated_data=true"]
        own = ["logger=csv", f"outputs={self.outputs}", *(toy if self.toy else [])]
        start = perf_counter()
        ran = subprocess.run(
            [sys.executable, "train.py", *overrides, *own], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if ran.returncode:
            raise RuntimeError((ran.stderr.strip() or ran.stdout.strip() or "no word").splitlines()[-1])
        return ran.stdout, perf_counter() - start

    def trainer(self, strategy: str = "gpu") -> list[str]:
        on_cpu = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.compile=false"]
        return [f"trainer={strategy}", "trainer.devices=1", *(on_cpu if self.device == "cpu" else [])]


def main(
    toy: Annotated[bool, typer.Option(help="In seconds, at no size: to see that it runs.")] = False,
    part: Annotated[list[str] | None, typer.Option(help="Which parts; may be repeated.  [default: all]")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file, written after every part.")] = None,
) -> None:
    """Measure what a GPU is asked, part by part."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not toy:
        raise typer.BadParameter("there is no GPU here; --toy tries everything on a CPU")
    if unknown := sorted({*(part or [])} - {*PARTS}):
        raise typer.BadParameter(f"--part must be of {', '.join(PARTS)}, got {unknown[0]}")
    result: dict[str, Any] = {"benchmark": "gpu" + " at toy size" * toy, "machine": machine(), "parts": {}}
    with TemporaryDirectory() as outputs:
        for name in part or PARTS:
            start = perf_counter()
            try:
                rows = PARTS[name](Bench(device, toy, Path(outputs)))
            except Exception as error:  # of one part: a GPU is lent for minutes, and the others are to be measured
                rows = [{"error": f"{type(error).__name__}: {error}".splitlines()[0]}]
            result["parts"][name] = {"seconds": round(perf_counter() - start, 1), "rows": rows}
            print(f"{name}, {perf_counter() - start:.0f} s", *rows, sep="\n  ", flush=True)
            if out is not None:
                write_json(out, result)
    if any("error" in row for each in result["parts"].values() for row in each["rows"]):
        raise typer.Exit(1)


def networks(bench: Bench) -> list[Row]:
    """Share of the peak of each network, forward and in training."""
    best = limit.peak(bench.device)
    cases = limit.CASES[bench.device][: 1 if bench.toy else None]
    rows = [row for case in cases for row in limit.measure(case, bench.device, bench.seconds)]
    names = ("network", "batch", "mode", "images/s")
    return [
        {name: row[name] for name in names}
        | {"TFLOP/s": float(f"{row['TFLOP/s']:.3g}"), "of the peak %": round(1e14 * row["TFLOP/s"] / best, 1)}
        for row in rows
    ]


def sample_loops(bench: Bench) -> list[Row]:
    """Images a second of each loop of four steps, at one image and at many."""
    rows = []
    for size in (1, 8 if bench.toy else 512):
        with torch.device(bench.device):
            loops = sampling.samplers(guided=False, num_steps=4, size=size)
            if bench.device == "cuda":
                loops["CUDA graph"] = captured(loops["by hand"])
            images = {name: loop() for name, loop in loops.items()}
            times = {name: limit.fastest(loop, bench.device, bench.seconds) for name, loop in loops.items()}
        difference = max(float((images[name] - images["by hand"]).abs().max()) for name in ("sample()", *[*loops][4:]))
        rates = {f"{name}, images/s": round(size / seconds) for name, seconds in times.items()}
        rows.append({"batch": size, "largest difference": difference} | rates)
    return rows


def captured(loop: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The loop as one CUDA graph, which is launched instead of its hundred kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            loop()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images = loop()

    def replay() -> torch.Tensor:
        graph.replay()
        return images

    return replay


class Reads(TorchDispatchMode):
    """Values read from tensors, for which a host would wait if they were on a device: where in this library."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = [frame for frame in traceback.extract_stack() if "fewstep/" in frame.filename]
            self.places.append(f"{frames[-1].filename.rpartition('fewstep/')[2]}:{frames[-1].name}")
        return func(*args, **kwargs or {})


class CountSynchronisations(Callback):
    """Counts them between the first steps and the last: CUDA's own warnings, or on a CPU the values that are read."""

    def __init__(self, device: str) -> None:
        self.device, self.places = device, list[str]()
        self.reads, self.caught = Reads(), warnings.catch_warnings(record=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == WARM_UP:
            if self.device == "cpu":
                self.reads.__enter__()
            else:
                self.warned = self.caught.__enter__()
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == WARM_UP + STEPS:
            if self.device == "cpu":
                self.reads.__exit__(None, None, None)
                self.places = self.reads.places
            else:
                torch.cuda.set_sync_debug_mode("default")
                waits = [warning for warning in self.warned or [] if "synchronizing" in str(warning.message)]
                self.places = [f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits]
                self.caught.__exit__(None, None, None)


def synchronisations(bench: Bench) -> list[Row]:
    """Waits of the host in the steps of each stage."""
    rows = []
    for stage in STAGES:
        with initialize_config_dir(str(limit.CONF), version_base="1.3"):
            composed = compose("config", [f"stage={stage}", "dataset=digits", "logger=csv", *bench.trainer()])
        settings = Settings.read(composed)
        method = build_method(settings.stage)
        training = overhead.replace(
            method.training, batch_size=64, images=(WARM_UP + STEPS + 2) * 64, warmup_images=64, evaluations=None
        )
        counter = CountSynchronisations(bench.device)
        module, data = overhead.parts_of(settings, method, training)
        with TemporaryDirectory() as folder:
            fit(module, data, Path(folder), settings.trainer, parent_sha256=None, loggers=[], watchers=[counter])
        rows.append(
            {"stage": stage, "steps": STEPS, "synchronisations": len(counter.places), "at": sorted({*counter.places})}
        )
    return rows


def sharding(bench: Bench) -> list[Row]:
    """Images a second of the digits teacher, by itself and under FSDP in one process."""
    rates = {}
    for strategy in ("gpu", "fsdp"):
        own = ["stage=teacher", "dataset=digits", f"name={strategy}", "trainer.snapshots=0", "trainer.diagnostics=0"]
        printed, _ = bench.train(*own, *bench.trainer(strategy), "stage.training.images=100000")
        rates[f"{strategy}, images/s"] = rate(printed)
    return [rates]


def memory(bench: Bench) -> list[Row]:
    """GiB at the peak of a teacher's training, as planned and as it was."""
    dataset = "digits" if bench.toy else "patches"
    own = ["stage=teacher", f"dataset={dataset}", "name=memory", "trainer.snapshots=0", "trainer.diagnostics=0"]
    own += [*bench.trainer(), "stage.training.batch_size=256", "trainer.max_images=20000"]
    planned = re.findall(r"memory: ([\d.,]+) (MiB|GiB)", bench.train(*own, "plan=true")[0])[-1]
    peak = re.findall(r"peak memory ([\d.,]+) (MiB|GiB)", bench.train(*own)[0])[-1]
    found, expected = (float(value.replace(",", "")) * GIB[unit] for value, unit in (peak, planned))
    return [{"dataset": dataset, "planned GiB": round(expected, 3), "GiB": round(found, 3), "ratio": found / expected}]


def chains(bench: Bench) -> list[Row]:
    """Seconds of `python train.py` as a whole."""
    rows = []
    for dataset in ("digits", "fashion_mnist"):
        features = [] if dataset == "digits" else ["trainer.features=patches"]
        printed, seconds = bench.train(f"dataset={dataset}", *bench.trainer(), *features)
        rows.append({"dataset": dataset, "seconds": round(seconds, 1), "teacher, images/s": rate(printed)})
    return rows


def rate(printed: str) -> int:
    """Images a second of the first stage, as a run prints it at its end."""
    return int(re.findall(r"images in [\d:]+, ([\d,]+) images/s", printed)[0].replace(",", ""))


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "networks": networks,
    "sampling": sample_loops,
    "synchronisations": synchronisations,
    "sharding": sharding,
    "memory": memory,
    "chains": chains,
}

if __name__ == "__main__":
    typer.run(main)
