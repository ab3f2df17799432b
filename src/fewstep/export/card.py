"""The model card of an exported folder: description, use, quality, provenance; its text is in README.md.jinja."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fewstep.artifacts.provenance_file import read_provenance
from fewstep.artifacts.quality_file import QualityRow, read_rows
from fewstep.artifacts.run_folder import QUALITY
from fewstep.inference.model import Model
from fewstep.networks.adapter import adapter_file
from fewstep.system.files import sha256_of
from fewstep.system.stored import leave_out

Format = Literal["diffusers", "safetensors", "onnx"]

README = "README.md"
CARD = "fewstep.json"  # the model file's own description
LIBRARY: dict[Format, str] = {"diffusers": "diffusers", "safetensors": "fewstep", "onnx": "onnx"}
FIGURES = (
    *("sampler", "steps", "nfe", "w", "fid", "inception_score", "precision", "recall", "accuracy", "diversity"),
    "num_images",
)


def readme(path: Path, model: Model, format: Format, half: bool, licence: str, difference: float) -> str:
    """The text of README.md, with the front matter that the hub reads.

    Args:
        difference: the largest between the model and its export, as measured when it was written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    environment.filters["figure"] = shown
    card, rows = model.card, [row.as_dict() for row in figures(path, model)]
    licence = " ".join(licence.split())
    return environment.get_template("README.md.jinja").render(
        card=card,
        data=card.data,
        sampling=card.sampling,
        schedule=type(card.schedule).__name__,
        format=format,
        library=LIBRARY[format],
        onnx=onnx_usage(model) if format == "onnx" else "",
        steps=model.default_steps,
        guided=card.sampling.guidance != "none",
        w=model.default_w,
        half=half,
        difference=difference,
        licence=licence,
        is_licence_id=re.fullmatch(r"[\w.+-]+", licence),
        rows=rows,
        figures=[name for name in FIGURES if any(row.get(name) is not None for row in rows)],
        sha256=sha256_of(path),
        has_adapter=adapter_file(path).is_file(),
        version=version("fewstep"),
        description=CARD,
    )


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
    inputs = model.denoiser.time_input(card.schedule.log_snr(card.sampling.grid()))
    return f"{text}, calling it at time = {', '.join(f'{value:.6g}' for value in inputs.tolist())}."


def shown(value: object) -> str:
    """A figure in four digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else "" if value is None else str(value)


def figures(path: Path, model: Model) -> list[QualityRow]:
    """The rows of the newest quality.json that were measured of this file, by the provenance.json in its folder."""
    own = path.with_name(f"{path.stem}-quality") / QUALITY
    sha256, newest, rows = sha256_of(path), "", []
    for file in (own, *path.parent.parent.parent.glob(f"*/*/{QUALITY}")):
        try:
            about = read_provenance(file.parent) if file.is_file() else None
            if about and about.created >= newest and any(judged.sha256 == sha256 for judged in about.models):
                newest, rows = about.created, read_rows(file)
        except (ValueError, OSError) as error:  # another run's
            leave_out(file.parent, error)
    card = model.card
    rows = [row for row in rows if row.model == card.label]
    if card.num_steps is None:
        return rows
    sampler = "ddim" if card.sampling.sampler == "deterministic" else card.sampling.sampler  # two chains may be in it
    return [row for row in rows if row.steps in card.sampling.steps and row.sampler == sampler]
