"""The command that makes latents: fewstep latents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands.data import DataSettings
from fewstep.commands.files import check_folder

if TYPE_CHECKING:
    from fewstep.data.batches import ImagesInMemory


def latents(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="As in dataset=NAME: one of conf/dataset.")],
    autoencoder: Annotated[Path, typer.Option(help="Local folder of an AutoencoderKL, or of a pipeline with vae/.")],
    out: Annotated[
        Path, typer.Option(callback=check_folder, help="Folder for the latents; dataset=latents looks in data/latents.")
    ],
    settings: DataSettings = None,
    num: Annotated[int | None, typer.Option(help="Only so many images, evenly spaced; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images encoded at a time.")] = 64,
) -> None:
    """Encode the images of a data set once, for training latent models; interrupted, the same command resumes.

    An extractor for the figures is trained and kept with them, where there is no Inception. `fewstep data autoencoder`
    trains a small autoencoder.

    Example: fewstep latents patches --autoencoder data/stable-diffusion --out data/latents
    """
    import time

    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fewstep.data.batches import ImagesInMemory
    from fewstep.data.labels import Relabelled
    from fewstep.data.latents import FEATURES
    from fewstep.data.make_latents import make_latents
    from fewstep.evaluation.extractors import AUTO, images_to_train_on
    from fewstep.networks.frozen.autoencoder import Autoencoder
    from fewstep.runs.build import data_of

    if batch_size < 1 or (num is not None and num < 1):
        raise ValueError(f"--batch-size and --num must be at least 1, got {batch_size} and {num}")
    source = data_of(dataset, settings or [], batch_size=1)
    if isinstance(source, Relabelled):
        raise ValueError("latents keep the labels that a data set has itself, got other labels; leave out labels=")
    if not isinstance(source, ImagesInMemory) or source.facts.latent is not None:
        raise ValueError(f"latents are made of images, and dataset={dataset} has none; use patches or imagefolder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = Autoencoder.open(autoencoder)
    count = min(num or len(source.labels), len(source.labels))
    begun, before = time.perf_counter(), None
    columns = (TextColumn("latents"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=count)
        for done in make_latents(source, opened, out, num=num, batch_size=batch_size, device=device):
            before = done if before is None else before
            rate = (done - before) / (time.perf_counter() - begun)
            progress.update(task, completed=done, description=f"{rate:,.0f} images/s")
    seconds = time.perf_counter() - begun
    shape = " x ".join(map(str, opened.latent_shape(source.facts.shape)))
    typer.echo(f"{out}: latents {shape} of {count:,} images of {dataset}, {seconds:.1f} s")
    if images_to_train_on(source, AUTO) is not None:
        keep_extractor(source, out / FEATURES)
    typer.echo(f"python train.py dataset=own_latents dataset.root={out} trains on them, by small networks")


def keep_extractor(source: "ImagesInMemory", file: Path) -> None:
    """Train an extractor for figures of these images and keep it in `file`, unless it is there."""
    from fewstep.data.batches import source_digest
    from fewstep.evaluation.own_features import contents, num_steps, save, train

    try:
        if contents(file)[0].source == source_digest(source):
            return
        found = f"{file} was trained on other images"
    except ValueError as error:
        found = str(error)
    if file.exists():
        typer.echo(f"{found}: it is made anew", err=True)
    typer.echo("an extractor for the figures is trained, in a few minutes at most")
    card, weights = train(source, num_steps(source))
    save(file, card, weights)
    typer.echo(f"{file}: {card.title}, held-out accuracy {card.accuracy:.3f}")
