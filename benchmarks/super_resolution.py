"""Super-resolution of held-out crops: bicubic, the many-step teacher, and one-step students.

    python benchmarks/super_resolution.py TEACHER STUDENT... --out benchmarks/results/super_resolution.json
    python benchmarks/super_resolution.py ... --picture docs/super_resolution.png

The models are of dataset=patches_sr, of any scales; those of one scale are compared on the same degraded images. Times
are of one image in a batch of `--batch`, the best of three calls, of the wall clock and of the processor.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Seconds, report
from PIL import Image, ImageDraw
from torch import Tensor

import fewstep
from fewstep.artifacts.pictures import image_grid, save_png
from fewstep.data.degradation import degrade, draw_degradation
from fewstep.data.patches_sr import HELD_OUT, PatchesSRData
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.images import evaluation_tensor
from fewstep.evaluation.metrics import figures_of
from fewstep.evaluation.restoration import restoration_figures
from fewstep.evaluation.statistics import Features, ReferenceStatistics
from fewstep.inference.model import Model

TEACHER_STEPS = (32, 8, 1)
FIGURES = ("psnr", "ssim", "feature_distance", "fid")
COLUMNS = ("scale", "model", "steps", *FIGURES, "ms_wall", "ms_cpu")
SHOWN = 6
HEADER = 16  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="teachers and students of dataset=patches_sr")
    parser.add_argument("--num-images", type=int, default=280, help="held-out crops, evenly spaced")
    parser.add_argument("--batch", type=int, default=20, help="images sampled at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="PNG of the first images: low, bicubic, models, original")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows, pictures = [], []
    models = [fewstep.load(path) for path in chosen.models]
    for facts in dict.fromkeys(model.card.data for model in models):
        assert facts.degraded is not None, "a model of dataset=patches_sr"
        own = [model for model in models if model.card.data == facts]
        settings = asdict(facts.degraded) | {"size": facts.shape[1], "num_reference": chosen.num_images}
        data = PatchesSRData(**settings, batch_size=1, stream="benchmark")
        found = list(measure(data, own, chosen.batch))
        rows += [row for row, _ in found]
        pictures.append(columns_of(data, found))
    title = "Super-resolution of held-out crops of photographs"
    report(title, rows, COLUMNS, chosen.out)
    if chosen.picture is not None:
        save_png(stacked(pictures), chosen.picture)


def measure(data: PatchesSRData, models: list[Model], batch: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """A row for each way to restore the held-out images, and the images."""
    evaluator = Evaluator.of(data)
    reference, low = evaluator.reference_statistics, data.conditions(data.num_reference)
    assert isinstance(reference, ReferenceStatistics)
    for name, steps, restore, facts in ways(models):
        x = torch.cat([restore(part) for part in low.split(batch)])
        times = []
        for _ in range(3):
            start = Seconds.now()
            restore(low[:batch])
            times.append(Seconds.now().since(start))
        images = evaluation_tensor(x, data.facts)
        restored = restoration_figures(images, evaluator.reference.images)
        features = Features.of(evaluator.net, images)
        fid = figures_of(features, torch.zeros(len(x), dtype=torch.long), reference, None)
        named = restored | {"fid": (fid.fid, fid.intervals["fid"])}
        row = {"scale": data.degraded.scale, "model": name, "steps": steps, "num_images": len(x), **facts}
        row |= {figure: round(value, 4) for figure, (value, _) in named.items()}
        row["intervals"] = {figure: [round(end, 4) for end in own] for figure, (_, own) in named.items()}
        row["ms_wall"] = round(1e3 * min(each.wall for each in times) / batch, 3)
        row["ms_cpu"] = round(1e3 * min(each.cpu for each in times) / batch, 3)
        yield row | {"batch": batch, "degraded": asdict(data.degraded), "size": data.facts.shape[1]}, images


def ways(models: list[Model]) -> Iterator[tuple[str, int, Callable[[Tensor], Tensor], dict[str, Any]]]:
    """Name, steps, degraded images -> restored ones, and what else the row says of the model."""
    yield "bicubic", 0, lambda low: low, {"parameters": 0}
    for model in models:
        of_any = model.card.num_steps is None
        facts = {
            "parameters": sum(weight.numel() for weight in model.denoiser.parameters()),
            "training_images": model.card.images,
            "training_evaluations": model.card.evaluations,
        }
        for steps in TEACHER_STEPS if of_any else (model.default_steps,):
            yield model.card.label, steps, partial(model.sample, steps=steps, w=0.0), facts


def columns_of(data: PatchesSRData, found: list[tuple[dict[str, Any], Tensor]]) -> list[tuple[str, Tensor]]:
    """What the picture shows side by side: names and a few images."""
    scale, count = data.degraded.scale, data.num_reference
    shown = torch.arange(SHOWN) * count // SHOWN + count // (2 * SHOWN)
    x, fewer = data.reference().x, TEACHER_STEPS[1:]
    drawn = [draw_degradation(data.degraded, data.facts.shape, HELD_OUT, number) for number in range(count)]
    low = (
        evaluation_tensor(degrade(x, scale, drawn), data.facts).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    )
    kept = [(row, images) for row, images in found if row["model"] != "teacher" or row["steps"] not in fewer]
    made = [(row["model"], images) for row, images in kept]
    parts = [(f"x{scale} low", low), *made, ("original", evaluation_tensor(x, data.facts))]
    return [(name, images[shown]) for name, images in parts]


def stacked(pictures: list[list[tuple[str, Tensor]]]) -> Image.Image:
    """The pictures of all scales, one below the other; a row is an image, a column a way."""
    grids = []
    for columns in pictures:
        images = torch.stack([own for _, own in columns], 1).flatten(0, 1)
        enlarged = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
        grid = image_grid(enlarged, len(columns))
        whole = Image.new("RGB", (grid.width, grid.height + HEADER), "white")
        whole.paste(grid, (0, HEADER))
        draw, width = ImageDraw.Draw(whole), grid.width // len(columns)
        for number, (name, _) in enumerate(columns):
            draw.text((number * width + 3, 2), name, fill="black")
        grids.append(whole)
    picture = Image.new("RGB", (max(g.width for g in grids), sum(g.height for g in grids)), "white")
    for number, grid in enumerate(grids):
        picture.paste(grid, (0, sum(g.height for g in grids[:number])))
    return picture


if __name__ == "__main__":
    main()
