"""How fast do training batches come from the cache, and how much memory does a training on all of ImageNet-64 hold?

Speed: 64 x 64 images as uint8 batches of 256 from our cache, in turns with torchvision's ImageFolder over the PNG files
that the cache was made from (without and with two worker processes). Memory: a cache of ImageNet-64's shape and size
(1,281,167 + 50,000 images, sparse files, so that no disk is filled), read in random order in a process of its own, its
peak over what it held after the imports.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from measure import Seconds, Spread, report
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from fewstep.data.batches import from_uint8
from fewstep.data.cache import FORMAT
from fewstep.data.generate import generate_imagefolder
from fewstep.data.imagefolder import ImageFolderData
from fewstep.data.imagenet64 import FULL, ImageNet64Data
from fewstep.evaluation.images import evaluation_tensor

BATCH, SIZE = 256, 64
CLASSES, PER_CLASS = 4, 640  # of the compared images
PARTS = 10  # of the sparse cache, as ImageNet-64 has batch files
MIB = 2**20


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each side.")] = 12,
    batches: Annotated[int, typer.Option(min=1, help="Of ours, in a turn.")] = 100,
    their_batches: Annotated[int, typer.Option(min=1, help="Of ImageFolder's, in a turn.")] = 4,
    memory_batches: Annotated[int, typer.Option(min=1, help="Of 256 images, read from the large cache.")] = 1500,
    threads: Annotated[int, typer.Option(min=1, help="Of torch; copying rows takes one.")] = 1,
    memory_of: Annotated[Path | None, typer.Option(hidden=True)] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure images per second beside torchvision's ImageFolder, and the memory of reading 1,281,167 images."""
    torch.set_num_threads(threads)
    if memory_of is not None:
        print(json.dumps(memory(memory_of, memory_batches)))
        return
    with TemporaryDirectory() as folder:
        rows = speed(Path(folder), rounds, batches, their_batches)
        sparse_cache(Path(folder, "large"))
        command = [sys.executable, __file__, "--memory-of", f"{folder}/large", "--memory-batches", str(memory_batches)]
        held = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for row in rows:
        row["memory of 1,281,167 images, MiB"] = f"{held['above_imports_mib']:,.0f}" if row is rows[0] else ""
    rows[0]["memory"] = held
    columns = ["source", "images/s", "times ImageFolder", "memory of 1,281,167 images, MiB"]
    report("training batches of 256 images, 64 x 64: median (quartiles)", rows, columns, out)


def speed(folder: Path, rounds: int, batches: int, their_batches: int) -> list[dict[str, Any]]:
    """Images per second of each source, in turns."""
    generate_imagefolder(folder / "images", num_classes=CLASSES, per_class=PER_CLASS)
    ours = ImageFolderData(root=str(folder / "images"), size=SIZE, batch_size=BATCH, stream="benchmark")
    theirs = ImageFolder(str(folder / "images"), transform=lambda image: pil_to_tensor(image.resize((SIZE, SIZE))))
    loaders = {
        "ImageFolder": endless(DataLoader(theirs, BATCH, shuffle=True, drop_last=True)),
        "ImageFolder, 2 workers": endless(
            DataLoader(theirs, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
        ),
    }
    taken: dict[str, list[Seconds]] = {name: [] for name in ("cache, uint8", "cache, float in [-1, 1]", *loaders)}
    for turn in range(rounds + 1):  # the first warms up
        for name, times in taken.items():
            if "workers" in name:  # what they fetched during the others' turns is not timed
                list(islice(loaders[name], 2 * 2))
            start = Seconds.now()
            if name in loaders:
                for images, _ in islice(loaders[name], their_batches):
                    assert images.shape == (BATCH, 3, SIZE, SIZE)
                count = their_batches
            else:
                for step in range(turn * batches, (turn + 1) * batches):
                    images, _ = ours.pixels(step)
                    if "float" in name:
                        from_uint8(images)
                count = batches
            spent = Seconds.now().since(start)
            times.append(Seconds(spent.wall / count, spent.cpu / count))
    rows = []
    for name, times in taken.items():
        rate = Spread.of([BATCH / each.wall for each in times[1:]])
        ratios = [base.wall / each.wall for each, base in zip(times[1:], taken["ImageFolder"][1:], strict=True)]
        ratio = Spread.of(ratios)
        rows.append(
            {
                "source": name,
                "images/s": f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})",
                "times ImageFolder": f"{ratio.median:.1f} ({ratio.low:.1f} to {ratio.high:.1f})",
                "images_per_second": rate._asdict(),
                "images_per_processor_second": Spread.of([BATCH / each.cpu for each in times[1:]])._asdict(),
                "ratio": ratio._asdict(),
                "seconds_per_batch": [each._asdict() for each in times[1:]],
            }
        )
    return rows


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def sparse_cache(folder: Path) -> None:
    """A cache of the full ImageNet-64's shape whose arrays have no bytes on the disk."""
    folder.mkdir()
    counts = {f"train-{n:05d}": FULL["train"] // PARTS + (n < FULL["train"] % PARTS) for n in range(PARTS)}
    for name, count in {**counts, "val-00000": FULL["val"]}.items():
        with (folder / f"{name}.images").open("wb") as file:
            file.truncate(count * 3 * SIZE * SIZE)
        record = {"key": name, "count": count, "sha256": "", "skipped": [], "labels": [n % 1000 for n in range(count)]}
        (folder / f"{name}.json").write_text(json.dumps(record))
    manifest = {
        "format": FORMAT,
        "key": "sparse",
        "shape": [3, SIZE, SIZE],
        "classes": [str(n) for n in range(1000)],
        "parts": {"train": list(counts), "val": ["val-00000"]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def memory(folder: Path, batches: int) -> dict[str, float]:
    """Resident memory, mapped pages included, that the data of a training take at most beyond what was held before."""
    torch.zeros(1).sum()
    before = resident()
    data = ImageNet64Data(root="nowhere", cache=str(folder), batch_size=BATCH, stream="memory", flip=True)
    opened = peak()
    reference = evaluation_tensor(data.reference().x, data.facts)  # as a judge keeps it
    judged = peak()
    largest = 0.0
    for step in range(batches):
        data.batch(step)
        if step % 10 == 0:
            largest = max(largest, resident())
    return {
        "images": len(data.labels),
        "images_read": batches * BATCH,
        "imports_mib": before,
        "peak_after_opening_mib": opened,
        "peak_after_reference_mib": judged,
        "while_training_mib": largest,
        "reference_mib": reference.numel() / MIB,
        "above_imports_mib": peak() - before,
        "above_imports_while_training_mib": largest - before,
    }


def resident() -> float:
    """Resident memory now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def peak() -> float:
    """The most it has been, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
