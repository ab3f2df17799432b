"""Commands on given images: edit, inpaint, transfer, interpolate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands import requests
from fewstep.commands.models import OUTPUTS, ModelFile, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.diffusion.prediction import Condition
    from fewstep.inference.image_io import LoadedImages
    from fewstep.inference.model import Model


def check_out(out: Path) -> Path:
    """Refuse a file to write that is neither .png nor .npz."""
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz, got {out}")
    return out


IMAGES_HELP = "PNG, JPEG, WebP, BMP, GIF, TIFF, or the .npz of fewstep sample; one or several."
ImageFiles = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help=IMAGES_HELP)]
OUT_HELP = "FILE.png (one image as it is, several as a grid) or FILE.npz (images uint8 NHWC, labels or prompts)."
Out = Annotated[Path, typer.Option(callback=check_out, help=OUT_HELP)]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler; default: those the model was made for, or 64.")]
Weight = Annotated[
    float | None,
    typer.Option(
        help="Guidance weight, 0 none; diffusers' guidance_scale is 1 + w. Default: 1, or the nearest the model was "
        "made for."
    ),
]
Label = Annotated[int | None, typer.Option(help="Class that every image shall have; default: the labels of an .npz.")]
Prompt = Annotated[str | None, typer.Option(help="What to make, for a model of text.")]
Seed = Annotated[int, typer.Option(help="Image i's noise depends on (seed, i) alone.")]
AddedNoiseSeed = Annotated[int, typer.Option("--seed", help="Of the noise that the model's sampler adds, if it does.")]
EncoderFile = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL-N",
        help="The encoder: a student of stage=encoder, or a teacher or guided student, which take --encode-steps; "
        "default: MODEL itself.",
    ),
]
EncodeSteps = Annotated[
    int | None, typer.Option(help="Steps of encoding; default: those the encoder was made for, or 64.")
]
EncodeWeight = Annotated[
    float | None, typer.Option("--encode-w", help="Guidance weight of encoding; default: the least, 0 as a rule.")
]
AutoencoderFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of a latent model's autoencoder, if it has moved."),
]
TextEncoderFolder = Annotated[Path | None, typer.Option(help="Folder of a text model's encoder, if it has moved.")]


def edit(
    model: ModelFile,
    images: ImageFiles,
    out: Out,
    label: Label = None,
    prompt: Prompt = None,
    strength: Annotated[
        float, typer.Option(help="0 keeps the image, 1 nothing of it; it becomes the nearest time of a step.")
    ] = 0.5,
    steps: Steps = None,
    w: Weight = None,
    seed: Seed = 0,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Change images: noise them part of the way, and sample from there.

    With 4 steps a strength of 0.75 takes 3 of them. Images of another size or mode are converted, with a warning.

    Example: fewstep edit outputs/digits/progressive/TIME/model-4.safetensors 7.png --label 1 --out 1.png
    """
    import fewstep
    from fewstep.diffusion.edit import steps_for

    loaded, given = opened(model, images, autoencoder, text_encoder)
    wanted = condition(loaded, requests.one_of(label, prompt), given, "--label")
    w = requests.chosen_w(loaded, w)
    x = fewstep.edit(loaded, given.images, wanted, strength=strength, steps=steps, w=w, seed=seed)
    taken = steps_for(strength, loaded.card.sampling.grid(loaded.default_steps if steps is None else steps))
    write(x, wanted, loaded, w, f"{taken} x {loaded.evaluations_per_step}", out)


def inpaint(
    model: ModelFile,
    images: ImageFiles,
    mask: Annotated[
        str,
        typer.Option(
            metavar="FILE|left|right|top|bottom",
            help="What is missing: white in an image of the same size, True in the array `mask` of an .npz, or a half.",
        ),
    ],
    out: Out,
    label: Label = None,
    prompt: Prompt = None,
    steps: Steps = None,
    w: Weight = None,
    seed: Seed = 0,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Fill in what is missing of images; the pixels that are known come back exactly.

    Example: fewstep inpaint outputs/digits/progressive/TIME/model-4.safetensors 3.png --mask left --label 8 --out b.png
    """
    import fewstep
    from fewstep.inference.image_io import read_mask

    loaded, given = opened(model, images, autoencoder, text_encoder)
    missing = read_mask(mask, given.sizes, loaded.card.data.pixels)
    wanted = condition(loaded, requests.one_of(label, prompt), given, "--label")
    w = requests.chosen_w(loaded, w)
    x = fewstep.inpaint(loaded, given.images, missing, wanted, steps=steps, w=w, seed=seed)
    taken = loaded.default_steps if steps is None else steps
    write(x, wanted, loaded, w, f"{taken} x {loaded.evaluations_per_step}", out)


def transfer(
    model: ModelFile,
    images: ImageFiles,
    out: Out,
    target: Annotated[str, typer.Option("--to", help="What the images shall be: a class number or a prompt.")],
    source: Annotated[str | None, typer.Option("--from", help="What they are; default: the labels of an .npz.")] = None,
    encoder: EncoderFile = None,
    steps: Steps = None,
    encode_steps: EncodeSteps = None,
    w: Weight = None,
    encode_w: EncodeWeight = None,
    seed: AddedNoiseSeed = 0,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Make images into another class or prompt and keep their style: encode as the one, decode as the other.

    With --from equal to --to the images come back, up to the error of the two ways. Nothing is random, unless the model
    was made for a sampler that adds noise.

    Example: fewstep transfer outputs/digits/progressive/TIME/model-4.safetensors --encoder
    outputs/digits/encoder/TIME/model-4.safetensors 7.png --from 7 --to 1 --out 1.png
    """
    import fewstep

    loaded, given = opened(model, images, autoencoder, text_encoder)
    wanted = condition(loaded, target, given, "--to")
    w = requests.chosen_w(loaded, w)
    x = fewstep.transfer(
        loaded,
        given.images,
        condition(loaded, source, given, "--from"),
        wanted,
        encoder=(encoding := encoder_of(encoder, loaded)),
        steps=steps,
        encode_steps=encode_steps,
        w=w,
        encode_w=encode_w,
        seed=seed,
    )
    write(x, wanted, loaded, w, both_ways(loaded, encoding, steps, encode_steps), out)


def interpolate(
    model: ModelFile,
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Where it starts: an image, or an .npz of several.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Where it ends: as many as in FIRST.")],
    out: Out,
    source: Annotated[
        str | None, typer.Option("--from", help="What FIRST is: a class number or a prompt; default: of an .npz.")
    ] = None,
    target: Annotated[str | None, typer.Option("--to", help="What SECOND is; default: of an .npz, or --from.")] = None,
    num: Annotated[int, typer.Option(help="Images of each way, the two ends among them.")] = 8,
    encoder: EncoderFile = None,
    steps: Steps = None,
    encode_steps: EncodeSteps = None,
    w: Weight = None,
    encode_w: EncodeWeight = None,
    seed: AddedNoiseSeed = 0,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Go from one image to another through the noise that they encode to, along the sphere.

    The ends are the images encoded and decoded again; each way is a row of the picture. A class is that of the nearer
    end; prompts are blended.

    Example: fewstep interpolate outputs/digits/guidance/TIME/model.safetensors a.png b.png --from 3 --num 8 --out c.png
    """
    import torch

    import fewstep
    from fewstep.inference.image_io import read_images

    loaded, given = opened(model, [first], autoencoder, text_encoder)
    end = read_images([second], loaded.card.data.pixels)
    start_is = condition(loaded, source, given, "--from")
    other = target if target is not None or end.labels is not None else source
    end_is = condition(loaded, other, end, "--to")
    w = requests.chosen_w(loaded, w)
    x = fewstep.interpolate(
        loaded,
        given.images,
        end.images,
        start_is,
        end_is,
        num=num,
        encoder=(encoding := encoder_of(encoder, loaded)),
        steps=steps,
        encode_steps=encode_steps,
        w=w,
        encode_w=encode_w,
        seed=seed,
    )
    labels = [start_is if frame <= (num - 1) / 2 else end_is for frame in range(num)]
    wanted = start_is if start_is.is_floating_point() else torch.stack(labels, 1).flatten()
    write(x.flatten(0, 1), wanted, loaded, w, both_ways(loaded, encoding, steps, encode_steps), out, columns=num)


def opened(
    model: Path, images: list[Path], autoencoder: Path | None, text_encoder: Path | None
) -> tuple["Model", "LoadedImages"]:
    """The model and the images."""
    import fewstep
    from fewstep.inference.image_io import read_images

    loaded = fewstep.load(model, autoencoder=autoencoder, text_encoder=text_encoder)
    loaded.require_no_images()
    return loaded, read_images(images, loaded.card.data.pixels)


def encoder_of(path: Path | None, model: "Model") -> "Model | None":
    """The model at `path`, with the autoencoder and text encoder of `model`."""
    import fewstep

    return path and fewstep.load(path, autoencoder=model.autoencoder_folder, text_encoder=model.text_encoder_folder)


def condition(model: "Model", typed: int | str | None, given: "LoadedImages", option: str) -> "Condition":
    """One condition for each image: the class or prompt that was typed, or the labels of the images' file.

    Raises:
        ValueError: no class or no prompt, whichever the model takes, or neither was typed and there are no labels.
    """
    data, count = model.card.data, len(given.images)
    classes = f"0..{data.num_classes - 1}"
    if data.state is not None:
        raise ValueError(f"this is a policy: {data.name} has actions given states, and no images to edit")
    if data.text is not None:
        if not isinstance(typed, str):
            raise ValueError(f"this model takes prompts: give {'--prompt' if option == '--label' else option} TEXT")
        return model.condition([typed]).expand(count, -1, -1)
    if typed is None:
        if given.labels is None:
            raise ValueError(f"give {option} NUMBER, a class {classes}: the images have no labels of their own")
        return model.condition(given.labels)
    if option == "--label" and isinstance(typed, str):
        raise ValueError(f"this model takes classes {classes} of {data.name}, no prompts: give {option}")
    try:
        number = int(typed)
    except ValueError:
        raise ValueError(f"{option} must be a class {classes} of {data.name}, got {typed!r}") from None
    return model.condition([requests.styled_label(model, number)] * count)


def both_ways(model: "Model", encoder: "Model | None", steps: int | None, encode_steps: int | None) -> str:
    """Evaluations of encoding and decoding, in words."""
    encoding = encoder or model
    there = encoding.default_steps if encode_steps is None else encode_steps
    back = model.default_steps if steps is None else steps
    return f"{there} x {encoding.evaluations_per_step} + {back} x {model.evaluations_per_step}"


def write(
    x: "Tensor",
    wanted: "Condition",
    model: "Model",
    w: float,
    evaluations: str,
    out: Path,
    columns: int | None = None,
) -> None:
    """Write the images; print how many there are, and the evaluations that each cost."""
    from fewstep.commands.images import save_images

    save_images(x, wanted, model.card.data.pixels, out, columns=columns)
    typer.echo(f"{out}: {len(x)} images, {evaluations} evaluations each, {requests.guidance_words(model, w)}")
