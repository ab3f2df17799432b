"""Adapters of a model: fewstep adapt train, fewstep adapt apply."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands.models import OUTPUTS, ModelFile, Outputs
from fewstep.commands.requests import one_of
from fewstep.commands.tasks import AutoencoderFolder, Label, Prompt, TextEncoderFolder, condition

if TYPE_CHECKING:
    from fewstep import Model
    from fewstep.control.lessons import Lesson

app = typer.Typer(no_args_is_help=True, help="Control a model by adapters: sliders and styles, trained once.")


def check_safetensors(out: Path) -> Path:
    """Refuse a file to write that is not .safetensors."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {out}")
    return out


Out = Annotated[Path, typer.Option(callback=check_safetensors, help="FILE.safetensors.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:STRENGTH]",
        help="An adapter of `fewstep adapt train`, at strength 1 or another; repeat for several.",
    ),
]


Source = Annotated[str | None, typer.Option("--from", help="Concept: the class or prompt to come from.")]
Target = Annotated[str | None, typer.Option("--to", help="Concept: the class or prompt to go to.")]
At = Annotated[
    list[str] | None,
    typer.Option(help="Concept: the class or prompt where it is learnt; repeat for several. Default: both."),
]
Attribute = Annotated[str | None, typer.Option(help="A slider along slant, thickness, brightness or warmth of images.")]
ExampleFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE|FOLDER", help="Images of a style, or for --attribute instead of the training set; repeat."
    ),
]


@app.callback()
def adapt() -> None:
    """Control a model by adapters: sliders and styles, trained once on a teacher or a student and used on any."""


@app.command()
def train(
    model: ModelFile,
    out: Out,
    source: Source = None,
    target: Target = None,
    at: At = None,
    eta: Annotated[float, typer.Option(help="Concept: how far strength 1 goes; 1 is all of the way.")] = 1.0,
    attribute: Attribute = None,
    examples: ExampleFiles = None,
    label: Label = None,
    prompt: Prompt = None,
    rank: Annotated[int, typer.Option(help="Of the factors of each layer.")] = 4,
    alpha: Annotated[float, typer.Option(help="The factors count alpha / rank times.")] = 4.0,
    budget: Annotated[int, typer.Option(help="Images seen in training.")] = 32_000,
    batch_size: Annotated[int, typer.Option(help="Images of a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, falling to 0.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Train an adapter on a model, of one of three kinds; interrupted, the same command resumes.

    A concept slider: --from 3 --to 8, by what the model itself says of the two, without data. An attribute slider:
    --attribute slant, by the images of the upper and lower third. A style: --examples FOLDER, with --label or --prompt.

    Example: fewstep adapt train outputs/digits/teacher/TIME/model.safetensors --attribute slant --out slant.safetensors
    """
    import fewstep
    from fewstep.control.train import AdapterPlan, require_adaptable, train_adapter

    plan = AdapterPlan(
        rank=rank, alpha=alpha, images=budget, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    loaded = fewstep.load(model, autoencoder=autoencoder, text_encoder=text_encoder)
    require_adaptable(loaded)
    wanted = one_of(label, prompt)
    concept_given = source is not None or target is not None or at
    if concept_given and (attribute is not None or examples or wanted is not None):
        raise ValueError(
            "a concept slider is learnt without images; leave out --attribute, --examples, --label, --prompt"
        )
    if concept_given:
        lesson = lesson_of_conditions(loaded, source, target, at or [], eta, seed)
    else:
        lesson = lesson_of_images(loaded, attribute, examples or [], wanted)
    card = train_adapter(loaded, model, lesson, plan, out)
    typer.echo(f"{out}: {card.kind}: {card.about}; rank {card.rank}, {card.images:,} images seen")


def lesson_of_conditions(
    model: "Model", source: str | None, target: str | None, at: list[str], eta: float, seed: int
) -> "Lesson":
    """What to learn of two conditions."""
    from fewstep.control.lessons import concept

    if source is None or target is None:
        raise ValueError("a concept slider goes from one condition to another; give both --from and --to")
    first, last, *others = (typed(model, each) for each in (source, target, *at))
    return concept(model, first, last, others, eta=eta, seed=seed)


def typed(model: "Model", condition: str) -> int | str:
    """A condition as it was typed: a class for a model of classes, else a prompt."""
    if model.card.data.text is not None:
        return condition
    try:
        return int(condition)
    except ValueError:
        classes = f"0..{model.card.data.num_classes - 1}"
        raise ValueError(f"this model takes classes {classes} of {model.card.data.name}, got {condition!r}") from None


def lesson_of_images(model: "Model", attribute: str | None, examples: list[Path], wanted: int | str | None) -> "Lesson":
    """What to learn of images: an attribute of the examples or of the training set, or the examples' style."""
    from fewstep.control.lessons import attribute as attribute_lesson
    from fewstep.control.lessons import style, training_images
    from fewstep.inference.image_io import read_images

    if not examples:
        if wanted is not None:
            raise ValueError("--label and --prompt say what --examples are; give some")
        if attribute is None:
            raise ValueError("say what to learn: --from A --to B, --attribute NAME, or --examples FOLDER")
        images, label = training_images(model.card)
        return attribute_lesson(model, attribute, images, label, f"{model.card.data.name}'s training set")
    given = read_images(files_of(examples), model.card.data.pixels)
    named = ", ".join(path.name for path in examples)
    own = condition(model, wanted, given, "--label")
    if attribute is None:
        return style(model, given.images, own, named)
    if own.is_floating_point():
        raise ValueError("an attribute's thirds are of classes, and this model takes prompts; use --from and --to")
    return attribute_lesson(model, attribute, given.images, own, named)


def files_of(examples: list[Path]) -> list[Path]:
    """The files that are named, and the images in the folders that are.

    Raises:
        ValueError: a folder without images.
    """
    from fewstep.data.imagefiles import ImageFiles

    files: list[Path] = []
    for path in examples:
        files += [path / file.name for file in ImageFiles(path).files] if path.is_dir() else [path]
    return files


@app.command()
def apply(
    model: ModelFile,
    adapters: Annotated[
        list[str], typer.Argument(metavar="FILE[:STRENGTH]...", help="Adapters of `fewstep adapt train`.")
    ],
    out: Out,
    strength: Annotated[float, typer.Option(help="Of the files without one of their own.")] = 1.0,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Write a model with adapters added to its weights; it is used like any other, and its card says which they were.

    Example: fewstep adapt apply outputs/digits/progressive/TIME/model-4.safetensors slant.safetensors --strength 1.5
    thick.safetensors:0.5 --out slanted-4.safetensors
    """
    import fewstep
    from fewstep.artifacts.lineage import lineage_of
    from fewstep.artifacts.model_file import save_model

    loaded = fewstep.load(model)
    chosen = [with_strength(each, strength) for each in adapters]
    if out.resolve() in {model.resolve(), *(path.resolve() for path, _ in chosen)}:
        raise ValueError(f"--out must be a new file, and {out} is the model or an adapter")
    adapted = fewstep.with_adapters(loaded, chosen)
    older = [replace(each, path=str(model.parent / each.path)) for each in loaded.card.adapters]
    added = adapted.card.adapters[len(older) :]
    all_applied = tuple(replace(each, path=os.path.relpath(each.path, out.parent)) for each in (*older, *added))
    card = replace(adapted.card, parents=lineage_of(model, loaded.card, out.parent), adapters=all_applied)
    save_model(out, adapted.denoiser, card)
    words = ", ".join(f"{each.about} at {each.strength:g}" for each in added)
    typer.echo(f"{out}: {loaded.card.label} with {words}")


def with_strength(typed: str, default: float) -> tuple[Path, float]:
    """FILE[:STRENGTH] as a path and a number."""
    path, colon, number = typed.rpartition(":")
    if not colon:
        return Path(typed), default
    try:
        return Path(path), float(number)
    except ValueError:
        raise ValueError(f"an adapter must be FILE or FILE:STRENGTH, got {typed!r}") from None
