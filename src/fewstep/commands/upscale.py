"""fewstep upscale: a larger image by a model of super-resolution."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.commands import tasks
from fewstep.commands.models import OUTPUTS, ModelFile, Outputs


def upscale(
    model: ModelFile,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP, BMP, GIF or TIFF, of any size.")],
    out: tasks.Out,
    steps: tasks.Steps = None,
    seed: Annotated[int, typer.Option(help="Of the noise that a model of many steps begins at.")] = 0,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Enlarge an image: a model of dataset=patches_sr restores overlapping tiles of it, which are blended.

    Example: fewstep upscale outputs/patches_sr/flow_trajectory/TIME/model-1.safetensors small.png --out large.png
    """
    import time

    import fewstep
    from fewstep.commands.images import save_images
    from fewstep.inference.image_io import read_picture

    loaded = fewstep.load(model)
    small = read_picture(image, loaded.card.data.background)[None]
    start = time.perf_counter()
    x = fewstep.upscale(loaded, small, steps=steps, seed=seed)
    seconds = time.perf_counter() - start
    save_images(x, x, loaded.card.data.pixels, out)
    evaluations = (loaded.default_steps if steps is None else steps) * loaded.evaluations_per_step
    sizes = " to ".join(f"{each.shape[3]} x {each.shape[2]}" for each in (small, x))
    typer.echo(f"{out}: {sizes}, {evaluations} evaluation(s) of each tile, {seconds:.1f} s")
