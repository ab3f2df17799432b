"""Commands on data sets: fewstep data check, label, autoencoder and encoder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands.files import check_file, check_folder
from fewstep.commands.models import OUTPUTS, ModelFile, Outputs
from fewstep.commands.requests import check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.data.batches import Data, ImagesInMemory
    from fewstep.data.make_labels import Assign, Features

app = typer.Typer(no_args_is_help=True, help="Look at data sets, label them, train autoencoders and text encoders.")
COLUMNS, SHOWN = 8, 64
MOST_DECODED, LOOK_EVERY = 1000, 20  # held-out images, for an autoencoder's figure; steps of its training
OF_A_CLUSTER, MOST_CLUSTERS = 16, 40  # shown in the picture of labels


def check_settings(settings: list[str] | None) -> list[str] | None:
    """Settings of a data set as they were typed; raises a ValueError where one is not KEY=VALUE."""
    for setting in settings or []:
        if "=" not in setting:
            raise ValueError(f"settings must be KEY=VALUE, like size=32, got {setting!r}")
    return settings


DataSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", callback=check_settings, help="Settings of conf/dataset/NAME.yaml, as size=32."
    ),
]


@app.callback()
def data() -> None:
    """Look at data sets, label them, train autoencoders and text encoders."""


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in dataset=NAME: one of conf/dataset.")],
    settings: DataSettings = None,
    root: Annotated[Path | None, typer.Option(help="Where the files are; default: data/NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG with a grid of examples; default: NAME.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Facts and findings as JSON.")] = False,
) -> None:
    """Verify files, counts, shapes, checksums and the balance of the classes; write a picture of 64 training examples.

    Example: fewstep data check imagefolder size=32 --root ~/birds --out birds.png
    """
    picture_file = out or Path(f"{name}.png")
    check_file(picture_file, ".png")
    from fewstep.artifacts.pictures import picture, save_png
    from fewstep.evaluation.images import evaluation_tensor
    from fewstep.runs.build import data_of

    opened = data_of(name, [*(settings or []), *([f"root={root}"] if root else [])], batch_size=SHOWN)
    found = []
    for line in opened.check():
        found.append(line)
        if not as_json:
            typer.echo(line)
    x, labels = opened.preview()
    facts = opened.facts.pixels
    save_png(picture(evaluation_tensor(x, facts), labels, facts, COLUMNS), picture_file)
    if as_json:
        typer.echo(json.dumps({"facts": asdict(opened.facts), "found": found, "picture": str(picture_file)}, indent=1))
    else:
        typer.echo(f"{picture_file}: {len(x)} training examples")


@app.command()
def label(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in dataset=NAME: one of conf/dataset.")],
    model: ModelFile,
    clusters: Annotated[int, typer.Option(help="Number of labels; published: three to five times the classes.")],
    out: Annotated[Path, typer.Option(help="File for the labels, .safetensors; a picture of them is put beside it.")],
    settings: DataSettings = None,
    kmeans: Annotated[bool, typer.Option("--kmeans", help="By k-means instead of prototypes.")] = False,
    images: Annotated[
        int, typer.Option(help="That prototypes are trained on; k-means looks at most at so many.")
    ] = 300_000,
    batch_size: Annotated[int, typer.Option(help="Images that are balanced over the clusters at a time.")] = 256,
    seed: Annotated[int, typer.Option(callback=check_seed, help="Of the noise and of the first prototypes.")] = 0,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Label the images of a data set by clusters of a teacher's features: guidance without classes.

    Example: fewstep data label digits outputs/digits/teacher/TIME --clusters 10 --out data/labels.safetensors
    """
    import torch

    from fewstep.artifacts.model_file import load_model
    from fewstep.data.batches import source_digest
    from fewstep.data.labels import HELD_OUT, OWN, TRAINING, LabelCard, pixels_of, save_labels
    from fewstep.data.make_labels import SHARE, Features, agreement, kmeans_of, labels_of
    from fewstep.runs.build import data_of
    from fewstep.system.files import sha256_of

    check_file(out, ".safetensors")
    source = pixels_of(data_of(name, settings or [], batch_size=batch_size), "fewstep data label")
    if not 2 <= clusters <= len(source.labels) or images < max(batch_size, clusters):
        raise ValueError(
            f"--clusters must be from 2 to the number of images, {len(source.labels)}, and --images at least as many "
            f"and at least --batch-size, got {clusters}, {images} and {batch_size}"
        )
    denoiser, card = load_model(model)
    if (card.data.name, card.data.shape) != (source.facts.name, source.facts.shape):
        raise ValueError(f"{model} makes {card.data.name} {card.data.shape}, and {name} is {source.facts.shape}")
    features = Features.of(denoiser, f"{seed}/labels", "cuda" if torch.cuda.is_available() else "cpu")
    make = kmeans_of if kmeans else prototypes_with_progress
    found = labels_of(source, features, make(source, features, clusters, images))
    about = LabelCard(
        data=source.facts.name,
        source=source_digest(source),
        model=sha256_of(model),
        knew=card.data.labels or OWN,
        by="kmeans" if kmeans else "prototypes",
        clusters=clusters,
        share=SHARE,
        images=images,
        seed=seed,
    )
    save_labels(out, about, found)
    save_clusters(out.with_suffix(".png"), source, found[TRAINING])
    least, *_, most = sorted(found[TRAINING].bincount(minlength=clusters).tolist())
    typer.echo(f"{out}: {clusters} clusters of {least} to {most} images, by {about.by}")
    if source.facts.num_classes > 1:
        for split, own in ((TRAINING, source.labels), (HELD_OUT, source.reference().label)):
            purity, information = agreement(found[split], own)
            typer.echo(f"{split.replace('_', ' ')}, beside its own labels: purity {purity:.3f}, NMI {information:.3f}")


@app.command()
def autoencoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in dataset=NAME: one of conf/dataset.")],
    out: Annotated[
        Path, typer.Option(callback=check_folder, help="Folder for it, and for a picture of what it keeps.")
    ],
    settings: DataSettings = None,
    channels: Annotated[int, typer.Option(help="Of a latent.")] = 4,
    downsampling: Annotated[int, typer.Option(help="Pixels per latent along each side: 2, 4, 8 or 16.")] = 4,
    width: Annotated[int, typer.Option(help="Channels at the images' own size, a multiple of 8.")] = 16,
    images: Annotated[int, typer.Option(help="That the training sees, each many times.")] = 300_000,
    batch_size: Annotated[int, typer.Option(help="Images of a step.")] = 64,
    seed: Annotated[int, typer.Option(callback=check_seed, help="Of the first weights and of the noise.")] = 0,
) -> None:
    """Train a small autoencoder on images, so that latent models work without Stable Diffusion's.

    Then: fewstep latents NAME --autoencoder OUT --out DIR, and python train.py dataset=own_latents dataset.root=DIR. Of
    captioned shards (text_pixels root=SHARDS --out SHARDS/autoencoder): python train.py dataset=text_latents
    dataset.root=SHARDS

    Example: fewstep data autoencoder imagefolder root=data/birds --out data/birds-autoencoder
    """
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fewstep.artifacts.pictures import image_grid, save_png
    from fewstep.data.make_autoencoder import AutoencoderSettings, AutoencoderTraining
    from fewstep.evaluation.images import evaluation_tensor
    from fewstep.evaluation.restoration import psnr
    from fewstep.runs.build import data_of
    from fewstep.system.files import check_free

    check_free(out, "autoencoder")
    sizes = AutoencoderSettings(channels, downsampling, width, images, batch_size, seed)
    source = images_to_encode(data_of(name, settings or [], batch_size=batch_size))
    training = AutoencoderTraining(source, sizes, "cuda" if torch.cuda.is_available() else "cpu")
    out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written fails before the training
    columns = (TextColumn("autoencoder"), BarColumn(), MofNCompleteColumn(), TextColumn("steps {task.description}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=training.num_steps)
        for step, error in enumerate(training.steps()):
            if step % LOOK_EVERY == 0:  # each look waits for the device
                progress.update(task, completed=step, description=f"squared error {error.item():.4f}")
        progress.update(task, completed=training.num_steps)
    made = training.save(out)
    held_out = source.reference().x
    count = min(MOST_DECODED, len(held_out))
    x = held_out[torch.arange(count) * len(held_out) // count]  # of all classes, in whose order they may be
    decoded = made.decode(made.encode_mean(x)).clamp(-1.0, 1.0)
    before, after = (evaluation_tensor(images, source.facts) for images in (x, decoded))
    pairs = torch.stack([before, after], 1)[torch.arange(SHOWN // 2) * count // (SHOWN // 2)].flatten(0, 1)
    save_png(image_grid(pairs, COLUMNS), out / "decoded.png")
    shape = " x ".join(map(str, made.latent_shape(source.facts.shape)))
    typer.echo(
        f"{out}: latents {shape}; of {count:,} held-out images PSNR {psnr(after, before).mean():.1f} dB; decoded.png "
        "has some, each beside what is decoded"
    )


def images_to_encode(data: "Data") -> "ImagesInMemory":
    """The images of a data set, of captioned shards without their captions.

    Raises:
        ValueError: it has none.
    """
    from fewstep.data.labels import pixels_of
    from fewstep.data.make_encoder import ShardImages
    from fewstep.data.text import TextData

    if not isinstance(data, TextData):
        return pixels_of(data, "fewstep data autoencoder")
    images = ShardImages(data)
    if images.left_out:
        typer.echo(f"{images.left_out:,} images were left out: there was no room for them in memory")
    return images


@app.command()
def encoder(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder of WebDataset shards, as of dataset=text.")],
    settings: DataSettings = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the encoder; default: SHARDS/encoder.")] = None,
    vocabulary: Annotated[int, typer.Option(help="The most byte-pair tokens.")] = 2048,
    features: Annotated[int, typer.Option(help="Of each token.")] = 64,
    tokens: Annotated[int, typer.Option(help="Of a prompt; longer ones are cut.")] = 24,
    images: Annotated[int, typer.Option(help="That the training sees, each caption many times.")] = 60_000,
    batch_size: Annotated[int, typer.Option(help="Images that are told apart at a time.")] = 128,
    seed: Annotated[int, typer.Option(callback=check_seed, help="Of the first weights and of the order.")] = 0,
) -> None:
    """Train a small text encoder on captioned images, so that prompts work without Stable Diffusion's.

    Settings are those of conf/dataset/text_pixels.yaml. Held-out shards are not trained on.

    Example: fewstep data encoder data/emoji/captioned
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fewstep.data.make_encoder import AMONG, Captioned, EncoderSettings, EncoderTraining
    from fewstep.data.text import TextData
    from fewstep.runs.build import data_of
    from fewstep.system.files import check_free

    folder = out or shards / "encoder"
    check_free(folder, "encoder")
    sizes = EncoderSettings(vocabulary, features, tokens, images, batch_size, seed)
    source = data_of("text_pixels", [f"root={shards}", *(settings or [])], batch_size=1)
    assert isinstance(source, TextData), "it is what text_pixels is"
    data = Captioned.to_train_on(source)
    training = EncoderTraining(data, sizes)
    columns = (TextColumn("text encoder"), BarColumn(), MofNCompleteColumn(), TextColumn("steps {task.description}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=training.num_steps)
        for loss in training.steps():
            progress.update(task, advance=1, description=f"loss {loss:.2f}")
    found, chance = training.retrieval(Captioned.of(iter(source.held_out())))
    made = training.save(folder).facts()
    typer.echo(
        f"{folder}: {training.vocabulary:,} tokens from {len(data.captions):,} captions, prompts of {made.tokens} x "
        f"{made.features}; use it as dataset.encoder={folder}"
    )
    if data.left_out:
        typer.echo(f"{data.left_out:,} images were left out: there was no room for them in memory")
    typer.echo(
        f"held out: for {found:.0%} of the images the caption is among the {AMONG} nearest, by chance for {chance:.0%}"
    )


def prototypes_with_progress(source: "ImagesInMemory", features: "Features", clusters: int, images: int) -> "Assign":
    """`prototypes_of`, showing how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fewstep.data.make_labels import prototypes_of

    columns = (TextColumn("prototypes"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=images // source.batch_size * source.batch_size)
        return prototypes_of(source, features, clusters, images, lambda count: progress.advance(task, count))


def save_clusters(path: Path, source: "ImagesInMemory", labels: "Tensor") -> None:
    """A row of images of each of the first clusters."""
    import torch

    from fewstep.artifacts.pictures import image_grid, save_png

    rows = []
    for cluster in labels.unique()[:MOST_CLUSTERS]:
        (members,) = torch.where(labels == cluster)
        rows.append(source.images[members[torch.arange(OF_A_CLUSTER) * len(members) // OF_A_CLUSTER]])
    save_png(image_grid(torch.cat(rows), OF_A_CLUSTER), path)
