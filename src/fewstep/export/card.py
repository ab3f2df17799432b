"""The model card of an exported folder: what it is, how to use it, how good it was, and where it comes from."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fewstep.artifacts.run_folder import QUALITY
from fewstep.inference.model import Model
from fewstep.networks.adapter import adapter_file
from fewstep.system.files import sha256_of

Format = Literal["diffusers", "safetensors", "onnx"]

README = "README.md"
LORA = """

The adapter alone is in `lora/`, for the first model of the chain that was adapted (its sha256 is in the file's
metadata). The network must have a w input, which is in a file of its own:

```python
unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet", time_cond_proj_dim=DIM, low_cpu_mem_usage=False)
w_input = load_file("FOLDER/lora/w_input.safetensors")
unet.load_state_dict({name.removeprefix("unet."): weight for name, weight in w_input.items()}, strict=False)
pipe = StableDiffusionPipeline.from_pretrained(BASE, unet=unet)
pipe.load_lora_weights("FOLDER/lora")
```"""
CARD = "fewstep.json"  # what the model file says of itself
PROVENANCE = "provenance.json"
LIBRARY: dict[Format, str] = {"diffusers": "diffusers", "safetensors": "fewstep", "onnx": "onnx"}
FIGURES = (
    "sampler",
    "steps",
    "nfe",
    "w",
    "fid",
    "inception_score",
    "precision",
    "recall",
    "accuracy",
    "diversity",
    "num_images",
)


def readme(path: Path, model: Model, format: Format, half: bool, licence: str, difference: float) -> str:
    """The text of README.md, with the front matter that the hub reads.

    Args:
        difference: the largest between the model and its export, as measured when it was written.
    """
    licence = " ".join(licence.split())
    front = licence if re.fullmatch(r"[\w.+-]+", licence) else "other"
    sections = [
        f"---\nlicense: {front}\nlibrary_name: {LIBRARY[format]}\ntags: [fewstep, diffusion]\n---",
        f"# {title(model)}",
        summary(model),
        "## Use",
        usage(path, model, format),
        "## Quality",
        quality(path, model),
        "## Where it comes from",
        provenance(path, model, licence),
        f"Weights are {'float16' if half else 'float32'}. When this folder was written, what it makes was compared "
        f"with what the model makes: the largest difference was {difference:.1e}, relative to the largest value.",
    ]
    return "\n\n".join(sections) + "\n"


def title(model: Model) -> str:
    """What it is, in a line."""
    card = model.card
    steps = f"{card.num_steps}-step " if card.num_steps else ""
    return f"{card.data.name}: a {steps}{card.role} diffusion model"


def summary(model: Model) -> str:
    """The numbers that who samples has to know."""
    card = model.card
    if card.is_guided_outside or card.w_min is None or card.w_max is None:
        guidance = "Guided from outside by **two** network evaluations a step: it has no guidance input."
    else:
        guidance = (
            f"Guidance is an input, w in [{card.w_min:g}, {card.w_max:g}] (guidance_scale {1 + card.w_min:g} to "
            f"{1 + card.w_max:g}): one network evaluation a step."
        )
    steps = f"Made for {card.num_steps} step(s)" if card.num_steps else "Made for any number of steps"
    return (
        f"{guidance} w is the guidance weight of Meng et al. 2023, (1 + w) conditional - w unconditional, so "
        f"guidance_scale = 1 + w.\n\n{steps} of the {card.sampling} sampler; predicts {card.prediction}; schedule "
        f"{type(card.schedule).__name__}; makes {'x'.join(map(str, card.data.shape))}"
        f"{' latents' if card.data.latent else ''}."
    )


def usage(path: Path, model: Model, format: Format) -> str:
    """Code that opens the folder."""
    card = model.card
    w = 1.0 if card.w_min is None or card.w_max is None else min(max(1.0, card.w_min), card.w_max)
    steps = card.num_steps or model.default_steps
    if format == "onnx":
        label = "label (images, tokens, features), embeddings of prompts" if card.data.text else "label (images)"
        names = f"z (images, C, H, W), time (images), {label}" + (
            ", w (images)" if model.denoiser.has_guidance_input else ""
        )
        if card.is_guided_outside and not card.data.text:
            names += f" (without a class: label {card.data.num_classes})"
        told = "the timestep over 1000" if card.native_schedule else "2 / pi * arctan(sigma / alpha)"
        return (
            f"`model.onnx` is the bare network: {names} -> output. `time` is {told}; the output reads as "
            f"{card.prediction}."
        )
    if card.role == "encoder":
        code = (
            'import fewstep\nencoder = fewstep.load("FOLDER/model.safetensors")\n'
            "x = fewstep.transfer(student, images, source, target, encoder=encoder)"
        )
        return f"It takes data to noise, for a student of the same teacher to decode:\n\n```python\n{code}\n```"
    if format == "safetensors":
        wanted = '["a photograph"]' if card.data.text else "[0, 1, 2]"
        code = f'import fewstep\nx = fewstep.load("FOLDER/model.safetensors").sample({wanted}, steps={steps}, w={w:g})'
        return f"```python\n{code}\n```"
    if card.data.text:
        code = (
            "from diffusers import StableDiffusionPipeline\n\n"
            'pipe = StableDiffusionPipeline.from_pretrained("FOLDER")\n'
            f"# guidance_scale = 1 + w, w = {w:g}\n"
            f'image = pipe("a photograph", num_inference_steps={steps}, guidance_scale={1 + w:g}).images[0]'
        )
        note = (
            f"The sampler is DDIM with trailing timesteps, exactly fewstep's for numbers of steps that divide "
            f"{timesteps(model)} and rounded to whole timesteps for others."
        )
    else:
        code = (
            "from diffusers import DiffusionPipeline\n\n"
            'pipe = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER", trust_remote_code=True)\n'
            f"images = pipe(class_labels=[0, 1, 2], num_inference_steps={steps}, w={w:g}).images  "
            f"# or guidance_scale={1 + w:g}"
        )
        note = "`trust_remote_code` runs `pipeline.py` of this folder, which is short: read it."
    return f"```python\n{code}\n```\n\n{note}{LORA if adapter_file(path).is_file() else ''}"


def timesteps(model: Model) -> int:
    """T of a schedule that has one."""
    return getattr(model.card.schedule, "num_timesteps", 0)


def quality(path: Path, model: Model) -> str:
    """The figures measured of this very file, as a table under their protocol's id."""
    rows = figures(path, model)
    if not rows:
        return "Not measured, or not where this folder was written from."
    names = [name for name in FIGURES if any(row.get(name) is not None for row in rows)]
    lines = [names, ["---"] * len(names), *([shown(row.get(name)) for name in names] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"Protocol `{rows[0]['protocol']}`: figures compare only with those of the same protocol.\n\n{table}"


def shown(value: object) -> str:
    """A figure in four digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else "" if value is None else str(value)


def figures(path: Path, model: Model) -> list[dict[str, Any]]:
    """The rows of the newest quality.json that were measured of this file, by the provenance.json beside it."""
    runs = path.parent.parent.parent
    places = [path.with_name(f"{path.stem}-quality"), path.parent, *runs.glob("pipeline/*/"), *runs.glob("evaluate/*/")]
    sha256, found = sha256_of(path), []
    for place in places:
        if (place / QUALITY).is_file() and (place / PROVENANCE).is_file():
            about = json.loads((place / PROVENANCE).read_text())
            if any(judged["sha256"] == sha256 for judged in about["models"]):
                found.append((about["created"], place))
    if not found:
        return []
    rows = json.loads((max(found)[1] / QUALITY).read_text())
    mine = [row for row in rows if row["model"] == model.card.role]
    if model.card.num_steps is None:
        return mine
    stochastic = model.card.sampling == "stochastic"  # both chains may have been judged together
    return [
        row for row in mine if row["steps"] == model.card.num_steps and (row["sampler"] == "stochastic") == stochastic
    ]


def provenance(path: Path, model: Model, licence: str) -> str:
    """Hashes of the model and of all it was made from, and whose licence holds."""
    card = model.card
    trained = f"last trained on {card.images:,} images of {card.data.name}"
    lines = [f"- this model: {card.role}, sha256 `{sha256_of(path)}`, {trained}"]
    lines += [f"- made from: {parent.role}, sha256 `{parent.sha256}`" for parent in card.parents]
    if card.data.latent:
        lines.append(f"- autoencoder: weights' sha256 `{card.data.latent.sha256}`")
    if card.data.text:
        lines.append(f"- text encoder: weights' sha256 `{card.data.text.sha256}`")
    if adapter_file(path).is_file():
        lines.append("- a low-rank adapter is merged into it, whose metadata say what model it was added to")
    lines.append(f"- licence of the parent, which binds its students: {licence}")
    lines.append(f"- written by fewstep {version('fewstep')}; `{CARD}` is what the model file says of itself")
    return "\n".join(lines)
