"""Commands on given images: edit, inpaint, transfer, interpolate."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.diffusion.prediction import Condition
    from fewstep.inference.image_io import LoadedImages
    from fewstep.inference.model import Model

ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model.safetensors or model-N.safetensors of a run.")
]
ImageFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE...", help="PNG, JPG or what else Pillow reads, or the .npz of fewstep sample; one or several."
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help="FILE.png (one image as it is, several as a grid) or FILE.npz (images uint8 NHWC, labels or prompts)."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler; default: those the model was made for, or 64.")]
Weight = Annotated[
    float | None,
    typer.Option(
        help="Guidance weight, 0 none; diffusers' scale is 1 + w. Default: 1, or the nearest the model was made for."
    ),
]
Label = Annotated[int | None, typer.Option(help="Class that every image shall have; default: the labels of an .npz.")]
Prompt = Annotated[str | None, typer.Option(help="What to make, for a model of text.")]
Seed = Annotated[int, typer.Option(help="Image i's noise depends on (seed, i) alone.")]
EncoderFile = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL-N",
        help="What encodes: a rung of stage=encoder, or a teacher or guided student, which take --encode-steps; "
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
    Path | None, typer.Option(help="Of a latent model, where it is not where it was when the latents were made.")
]
TextEncoderFolder = Annotated[
    Path | None, typer.Option(help="Of a text model, where it is not where it was when the data were made.")
]


def edit(
    model: ModelFile,
    images: ImageFiles,
    out: Out,
    label: Label = None,
    prompt: Prompt = None,
    strength: Annotated[
        float, typer.Option(help="0 keeps the image, 1 nothing of it; rounded to whole steps of --steps.")
    ] = 0.5,
    steps: Steps = None,
    w: Weight = None,
    seed: Seed = 0,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
) -> None:
    """Change images: noise them part of the way, and sample from there.

    With 4 steps a strength of 0.75 takes 3 of them. Images of another size or mode are converted, and that is said.

    Example: fewstep edit outputs/digits/progressive/TIME/model-4.safetensors 7.png --label 1 --out 1.png
    """
    import fewstep
    from fewstep.diffusion.edit import steps_for

    loaded, given = opened(model, images, out, autoencoder, text_encoder)
    wanted = condition(loaded, label, prompt, given, "--label")
    w = loaded.default_w if w is None else w
    x = fewstep.edit(loaded, given.images, wanted, strength=strength, steps=steps, w=w, seed=seed)
    save_images(x, wanted, loaded, out)
    taken = steps_for(strength, loaded.default_steps if steps is None else steps)
    tell(out, len(x), f"{taken} x {loaded.evaluations_per_step}", w)


def inpaint(
    model: ModelFile,
    images: ImageFiles,
    mask: Annotated[
        str,
        typer.Option(
            metavar="FILE|left|right|top|bottom",
            help="What is missing: white in an image of the size of the given one, `mask` in an .npz, or a half.",
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
) -> None:
    """Fill in what is missing of images; the pixels that are known come back exactly.

    Example: fewstep inpaint outputs/digits/progressive/TIME/model-4.safetensors 3.png --mask left --label 8 --out b.png
    """
    import fewstep
    from fewstep.inference.image_io import read_mask

    loaded, given = opened(model, images, out, autoencoder, text_encoder)
    missing = read_mask(mask, given.sizes, loaded.card.data.pixels)
    wanted = condition(loaded, label, prompt, given, "--label")
    w = loaded.default_w if w is None else w
    x = fewstep.inpaint(loaded, given.images, missing, wanted, steps=steps, w=w, seed=seed)
    save_images(x, wanted, loaded, out)
    tell(out, len(x), f"{loaded.default_steps if steps is None else steps} x {loaded.evaluations_per_step}", w)


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
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
) -> None:
    """Make images into another class or prompt and keep their style: encode as the one, decode as the other.

    Nothing is random. With --from equal to --to the images come back, up to the error of the two ways.

    Example: fewstep transfer outputs/digits/progressive/TIME/model-4.safetensors --encoder
    outputs/digits/encoder/TIME/model-4.safetensors 7.png --from 7 --to 1 --out 1.png
    """
    import fewstep

    loaded, given = opened(model, images, out, autoencoder, text_encoder)
    wanted = condition(loaded, *parsed(loaded, target, "--to"), given, "--to")
    w = loaded.default_w if w is None else w
    x = fewstep.transfer(
        loaded,
        given.images,
        condition(loaded, *parsed(loaded, source, "--from"), given, "--from"),
        wanted,
        encoder=(encoding := encoder_of(encoder, loaded)),
        steps=steps,
        encode_steps=encode_steps,
        w=w,
        encode_w=encode_w,
    )
    save_images(x, wanted, loaded, out)
    tell(out, len(x), both_ways(loaded, encoding, steps, encode_steps), w)


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
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
) -> None:
    """Go from one image to another through the noise that they encode to, along the sphere.

    The ends are the images encoded and decoded again; each way is a row of the picture. A class is that of the nearer
    end; prompts are blended.

    Example: fewstep interpolate outputs/digits/guidance/TIME/model.safetensors a.png b.png --from 3 --num 8 --out c.png
    """
    import fewstep
    from fewstep.inference.image_io import read_images

    loaded, given = opened(model, [first], out, autoencoder, text_encoder)
    end = read_images([second], loaded.card.data.pixels)
    start_is = condition(loaded, *parsed(loaded, source, "--from"), given, "--from")
    other = target if target is not None or end.labels is not None else source
    end_is = condition(loaded, *parsed(loaded, other, "--to"), end, "--to")
    w = loaded.default_w if w is None else w
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
    )
    labels = [start_is if frame <= (num - 1) / 2 else end_is for frame in range(num)]
    wanted = start_is if start_is.is_floating_point() else _interleaved(labels)
    save_images(x.flatten(0, 1), wanted, loaded, out, columns=num)
    tell(out, len(x) * num, both_ways(loaded, encoding, steps, encode_steps), w)


def _interleaved(labels: list["Tensor"]) -> "Tensor":
    import torch

    return torch.stack(labels, 1).flatten()


def check_out(out: Path) -> None:
    """Refuse a name that says nothing of what to write.

    Raises:
        ValueError: it ends neither in .png nor in .npz.
    """
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz, got {out}")


def opened(
    model: Path, images: list[Path], out: Path, autoencoder: Path | None, text_encoder: Path | None
) -> tuple["Model", "LoadedImages"]:
    """The model and the images, after a look at where the result goes."""
    check_out(out)
    import fewstep
    from fewstep.inference.image_io import read_images

    loaded = fewstep.load(model, autoencoder=autoencoder, text_encoder=text_encoder)
    return loaded, read_images(images, loaded.card.data.pixels)


def encoder_of(path: Path | None, model: "Model") -> "Model | None":
    """The model at `path`, with the companions of `model`."""
    import fewstep

    return path and fewstep.load(path, autoencoder=model.autoencoder_folder, text_encoder=model.text_encoder_folder)


def parsed(model: "Model", given: str | None, option: str) -> tuple[int | None, str | None]:
    """The class or the prompt that was typed, whichever the model knows."""
    if given is None or model.card.data.text is not None:
        return None, given
    try:
        return int(given), None
    except ValueError:
        classes = model.card.data.num_classes
        raise ValueError(
            f"{option} must be a class 0..{classes - 1} of {model.card.data.name}, got {given!r}"
        ) from None


def condition(model: "Model", label: int | None, prompt: str | None, given: "LoadedImages", option: str) -> "Condition":
    """One condition for each image, checked: the class or prompt that was typed, or the labels that came with them."""
    data, count = model.card.data, len(given.images)
    if data.text is not None:
        if prompt is None or label is not None:
            what = "--prompt" if option == "--label" else option
            raise ValueError(f"this model is told by a prompt what to make: give {what} TEXT")
        return model.condition([prompt]).expand(count, -1, -1)
    if prompt is not None:
        raise ValueError(
            f"this model knows classes 0..{data.num_classes - 1} of {data.name}, no prompts: give {option}"
        )
    if label is not None:
        return model.condition([label] * count)
    if given.labels is None:
        raise ValueError(
            f"give {option} NUMBER, a class 0..{data.num_classes - 1}: the images have no labels of their own"
        )
    return model.condition(given.labels)


def save_images(
    x: "Tensor",
    wanted: "Condition",
    model: "Model",
    out: Path,
    *,
    columns: int | None = None,
    prompts: list[str] | None = None,
) -> None:
    """Write images as a picture, or as arrays with their classes or prompts, whole or not at all."""
    import numpy as np
    import torch
    from PIL import Image

    from fewstep.evaluation.images import evaluation_tensor
    from fewstep.reports.pictures import picture, save_png
    from fewstep.system.files import atomic_write

    facts = model.card.data.pixels
    classes = None if wanted.is_floating_point() else wanted
    judged = evaluation_tensor(x, facts)
    if out.suffix == ".png" and facts.is_image and len(x) == 1:
        pixels = judged[0].permute(1, 2, 0).numpy()
        save_png(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), out)
    elif out.suffix == ".png":
        labels = torch.zeros(len(x)).long() if classes is None else classes
        save_png(picture(judged, labels, facts, columns or min(len(x), facts.in_a_row)), out)
    else:
        arrays = {"images": (judged.permute(0, 2, 3, 1) if facts.is_image else judged).numpy()}
        if classes is not None or prompts:
            arrays["labels"] = np.asarray(prompts if classes is None else classes)
        buffer = BytesIO()
        np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        with atomic_write(out) as temporary:
            temporary.write_bytes(buffer.getvalue())


def both_ways(model: "Model", encoder: "Model | None", steps: int | None, encode_steps: int | None) -> str:
    """Evaluations of encoding and decoding, in words."""
    encoding = encoder or model
    there = encoding.default_steps if encode_steps is None else encode_steps
    back = model.default_steps if steps is None else steps
    return f"{there} x {encoding.evaluations_per_step} + {back} x {model.evaluations_per_step}"


def tell(out: Path, count: int, evaluations: str, w: float) -> None:
    """Say what was made."""
    typer.echo(f"{out}: {count} images, {evaluations} evaluations each, w = {w:g} (guidance_scale {1 + w:g})")
