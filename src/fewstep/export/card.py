"""The model card of an exported folder: description, use, quality, provenance."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fewstep.artifacts.model_file import ModelCard
from fewstep.artifacts.run_folder import QUALITY
from fewstep.diffusion.schedule import network_time
from fewstep.inference.model import Model
from fewstep.networks.adapter import adapter_file
from fewstep.networks.denoiser import lowest_log_snr
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
CARD = "fewstep.json"  # the model file's own description
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
    """The model in a line."""
    card = model.card
    steps = f"{card.num_steps}-step " if card.num_steps else ""
    return f"{card.data.name}: a {steps}{card.label} diffusion model"


def summary(model: Model) -> str:
    """The numbers that sampling needs."""
    card = model.card
    return (
        f"{guidance(card)}\n\n{steps(card)} of the {card.sampling.sampler} sampler; predicts {card.prediction}; "
        f"schedule {type(card.schedule).__name__}; makes {'x'.join(map(str, card.data.shape))}"
        f"{' latents' if card.data.latent else ''}."
    )


def guidance(card: ModelCard) -> str:
    """How the model is guided."""
    if card.sampling.guidance == "none":
        return "Made without guidance: one network evaluation a step, and no w."
    if card.w_min is None or card.w_max is None:
        kind = "Guided by **two** network evaluations a step: it has no guidance input."
    else:
        kind = (
            f"Guidance is an input, w in [{card.w_min:g}, {card.w_max:g}] (guidance_scale {1 + card.w_min:g} to "
            f"{1 + card.w_max:g}): one network evaluation a step."
        )
    return (
        f"{kind} w is the guidance weight of Meng et al. 2023, (1 + w) conditional - w unconditional, so "
        "guidance_scale = 1 + w."
    )


def steps(card: ModelCard) -> str:
    """The numbers of steps, and the times of the most of them."""
    if card.sampling.times is None:
        return "Made for any number of steps"
    times = ", ".join(f"{t:.4g}" for t in card.sampling.times)
    return f"Made for {' or '.join(map(str, card.sampling.steps))} step(s), at t = {times},"


def usage(path: Path, model: Model, format: Format) -> str:
    """How to open the folder."""
    card = model.card
    if format == "onnx":
        return onnx_usage(model)
    if card.encodes:
        code = (
            'import fewstep\nencoder = fewstep.load("FOLDER/model.safetensors")\n'
            "x = fewstep.transfer(student, images, source, target, encoder=encoder)"
        )
        return f"It takes data to noise, for a student of the same teacher to decode:\n\n```python\n{code}\n```"
    w = None if card.sampling.guidance == "none" else model.default_w
    if format == "safetensors":
        wanted = '["a photograph"]' if card.data.text else "[0, 1, 2]"
        weight = "" if w is None else f", w={w:g}"
        arguments = f"{wanted}, steps={model.default_steps}{weight}"
        return f'```python\nimport fewstep\nx = fewstep.load("FOLDER/model.safetensors").sample({arguments})\n```'
    code, note = prompt_usage(model, model.default_w) if card.data.text else class_usage(model, w)
    return f"```python\n{code}\n```\n\n{note}{LORA if adapter_file(path).is_file() else ''}"


def onnx_usage(model: Model) -> str:
    """The inputs and the output of model.onnx, and the times at which a sampler calls it."""
    card = model.card
    label = "label (images, tokens, features), embeddings of prompts" if card.data.text else "label (images)"
    names = f"z (images, C, H, W), time (images), {label}"
    if model.denoiser.has_guidance_input:
        names += ", w (images)"
    if card.sampling.guidance == "two_evaluations" and not card.data.text:
        names += f" (without a class: label {card.data.num_classes})"
    time = "the timestep over 1000" if card.native_schedule else "2 / pi * arctan(sigma / alpha)"
    text = (
        f"`model.onnx` is the bare network: {names} -> output. `time` is {time}; the output reads as "
        f"{card.prediction}. The sampler is yours: {card.sampling.sampler}"
    )
    if card.sampling.times is None:
        return f"{text}, in any number of steps."
    log_snr, native = card.schedule.log_snr(card.sampling.grid()), card.native_schedule
    if native is None:
        inputs = network_time(log_snr)
    else:
        inputs = native.timestep(log_snr.clamp(min=lowest_log_snr(card.prediction, native))) / 1000
    return f"{text}, calling it at time = {', '.join(f'{value:.6g}' for value in inputs.tolist())}."


def prompt_usage(model: Model, w: float) -> tuple[str, str]:
    """Code that opens a text model, and what its scheduler does."""
    code = (
        "from diffusers import StableDiffusionPipeline\n\n"
        'pipe = StableDiffusionPipeline.from_pretrained("FOLDER")\n'
        f"# guidance_scale = 1 + w, w = {w:g}\n"
        f'image = pipe("a photograph", num_inference_steps={model.default_steps}, guidance_scale={1 + w:g}).images[0]'
    )
    note = (
        f"The sampler is DDIM with trailing timesteps, exactly fewstep's for numbers of steps that divide "
        f"{timesteps(model)} and rounded to whole timesteps for others."
    )
    return code, note


def class_usage(model: Model, w: float | None) -> tuple[str, str]:
    """Code that opens a model of classes, and what it runs."""
    weight, scale = ("", "") if w is None else (f", w={w:g}", f"  # or guidance_scale={1 + w:g}")
    code = (
        "from diffusers import DiffusionPipeline\n\n"
        'pipe = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER", trust_remote_code=True)\n'
        f"images = pipe(class_labels=[0, 1, 2], num_inference_steps={model.default_steps}{weight}).images{scale}"
    )
    return code, "`trust_remote_code` runs `pipeline.py` of this folder, which is short: read it."


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
    """The rows of the newest quality.json that were measured of this file, by the provenance.json in its folder."""
    own = path.with_name(f"{path.stem}-quality") / QUALITY
    sha256, found = sha256_of(path), []
    for file in (own, *path.parent.parent.parent.glob(f"*/*/{QUALITY}")):
        if file.is_file() and file.with_name(PROVENANCE).is_file():
            about = json.loads(file.with_name(PROVENANCE).read_text())
            if any(judged["sha256"] == sha256 for judged in about["models"]):
                found.append((about["created"], file))
    if not found:
        return []
    card = model.card
    rows = [row for row in json.loads(max(found)[1].read_text()) if row["model"] == card.label]
    if card.num_steps is None:
        return rows
    sampler = "ddim" if card.sampling.sampler == "deterministic" else card.sampling.sampler  # two chains may be in it
    return [row for row in rows if row["steps"] in card.sampling.steps and row["sampler"] == sampler]


def provenance(path: Path, model: Model, licence: str) -> str:
    """Hashes of the model and of all its ancestors, and the licence."""
    card = model.card
    trained = f"last trained on {card.images:,} images of {card.data.name}"
    lines = [f"- this model: {card.method}, sha256 `{sha256_of(path)}`, {trained}"]
    lines += [f"- made from: {parent.method}, sha256 `{parent.sha256}`" for parent in card.parents]
    if card.data.latent:
        lines.append(f"- autoencoder: weights' sha256 `{card.data.latent.sha256}`")
    if card.data.text:
        lines.append(f"- text encoder: weights' sha256 `{card.data.text.sha256}`")
    if adapter_file(path).is_file():
        lines.append("- a low-rank adapter is merged into it, whose metadata say what model it was added to")
    lines.append(f"- licence of the parent, which binds its students: {licence}")
    lines.append(f"- written by fewstep {version('fewstep')}; `{CARD}` is the model file's own description")
    return "\n".join(lines)
