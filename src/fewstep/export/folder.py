"""Export of a model to a folder that others can open, compared with the model before it is written."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from fewstep.artifacts.model_file import KEY, save_model
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.sampler import SAMPLERS, Fresh, sample
from fewstep.export import UNKNOWN_LICENCE
from fewstep.export.card import CARD, README, Format, readme
from fewstep.inference.model import Model, load
from fewstep.networks import Denoiser, Routed
from fewstep.networks.adapter import adapter_file, guidance_file
from fewstep.system.files import atomic_write, sha256_of
from fewstep.system.seeds import starting_noise

FORMATS: tuple[Format, ...] = ("diffusers", "safetensors", "onnx")
PROMPTS = ("a photograph", "a drawing of a house")
CHECKED = len(PROMPTS)  # images in the comparison
CHECKED_STEPS = 4  # of a model that is not made for a number of steps
TOLERANCE = 1e-3  # of float32 weights, relative to the largest value compared: more is a bug, and is not written


@dataclass(frozen=True)
class Trial:
    """The inputs from which a model and its export make the images that are compared."""

    noise: Float[Tensor, "count *shape"]
    label: Condition
    prompts: tuple[str, ...]
    w: float
    steps: int

    @classmethod
    def of(cls, model: Model, *, encode: bool = True) -> "Trial":
        """Prompts where the model has them, which needs its text encoder if they are to be encoded; else classes."""
        prompts = PROMPTS if model.card.data.text and encode else ()
        label = model.condition(list(prompts)) if prompts else example_conditions(model, CHECKED)
        noise = starting_noise(0, 0, CHECKED, model.card.data.shape)
        return cls(noise, label, prompts, model.default_w, model.card.num_steps or CHECKED_STEPS)

    def fresh(self) -> Fresh:
        """The noise of a sampler that is given a generator of seed 0, in the order of its draws."""
        generator = torch.Generator().manual_seed(0)
        return lambda step: torch.randn(self.noise.shape, generator=generator)

    def of_ours(self, model: Model) -> Float[Tensor, "count *shape"]:
        """The samples of our own sampler, not decoded."""
        facts, sampling = model.card.data, model.card.sampling
        x = sample(
            model.denoise,
            self.noise,
            schedule=model.card.schedule,
            times=sampling.grid(self.steps),
            label=self.label,
            w=torch.full((len(self.noise),), self.w),
            sampler=SAMPLERS[sampling.sampler],
            fresh=self.fresh(),
        )
        return x.clamp(facts.low, facts.high)


def export(
    path: Path,
    folder: Path,
    *,
    format: str = "diffusers",
    half: bool = False,
    licence: str = UNKNOWN_LICENCE,
    autoencoder: Path | None = None,
    text_encoder: Path | None = None,
) -> float:
    """Write the model at `path` into the new `folder`; give the largest difference between their samples.

    Args:
        format: diffusers (a pipeline), safetensors (our own model file) or onnx (the bare network).
        half: round the weights to float16.
        licence: of the parent, for the model card.
        autoencoder, text_encoder: their folders, where they have moved.

    Raises:
        ValueError: an unknown format, a folder that is not empty, a model that this format cannot hold, or an
            autoencoder or text encoder that is missing or another one.
        OSError: the folder cannot be written or the disk is full.
    """
    if format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    if half and format == "onnx":
        raise ValueError("--half goes with --format diffusers or safetensors: times and w would lose digits in ONNX")
    model = load(path, autoencoder=autoencoder, text_encoder=text_encoder)
    if format != "safetensors" and (what := only_ours(model)):
        raise ValueError(f"{what} fewstep alone; use --format safetensors")
    with new_folder(folder) as temporary:
        match format:
            case "diffusers":
                from fewstep.export import diffusers_folder

                difference = diffusers_folder.write(temporary, model, path, half)
            case "onnx":
                from fewstep.export import onnx_file

                difference = onnx_file.write(temporary, model)
            case _:
                difference = write_safetensors(temporary, folder, model, path, half)
        if not difference < (inf if half else TOLERANCE):
            raise ValueError(
                f"the export must do what the model does, and differs by {difference:.1e}; nothing was written: please "
                f"report this, with `fewstep info {path}`"
            )
        (temporary / CARD).write_text(json.dumps(described(path), indent=1) + "\n")
        (temporary / README).write_text(readme(path, model, format, half, licence, difference))
    return difference


def only_ours(model: Model) -> str | None:
    """Why no other library can open a model, as the beginning of a message; None where one can."""
    inputs = dict.fromkeys([*model.denoiser.networks_inputs, *model.denoiser.extra_inputs])
    if model.card.data.state is not None:
        return "a policy, whose conditions are states, opens in"
    if inputs:
        return f"a network with inputs beside w ({', '.join(inputs)}) opens in"
    if model.card.data.degraded is not None:
        return "a model that restores images opens in"
    if isinstance(model.denoiser.network, Routed):
        return "several networks, of which each has its times or classes, open in"
    return None


def write_safetensors(temporary: Path, folder: Path, model: Model, path: Path, half: bool) -> float:
    """Write our own model file, its ancestors' paths relative to `folder`, and its adapter where it has one."""
    card = model.card
    parents = tuple(replace(each, path=os.path.relpath(path.parent / each.path, folder)) for each in card.parents)
    applied = tuple(replace(each, path=os.path.relpath(path.parent / each.path, folder)) for each in card.adapters)
    network = deepcopy(model.denoiser.network).half() if half else model.denoiser.network
    own = temporary / "model.safetensors"
    save_model(
        own, Denoiser(network, card.prediction, card.native_schedule), replace(card, parents=parents, adapters=applied)
    )
    for file in (adapter_file(path), guidance_file(adapter_file(path))):
        if file.is_file():
            shutil.copyfile(file, temporary / file.name)
    again = load(own)
    trial = Trial.of(model, encode=False)
    return difference_of(trial.of_ours(model), trial.of_ours(again))


def example_conditions(model: Model, count: int) -> Condition:
    """The classes in turn, or noise in the place of prompts' embeddings or of degraded images."""
    data = model.card.data
    if data.num_classes:
        return torch.arange(count) % data.num_classes
    return starting_noise(1, 0, count, data.shape if data.text is None else (data.text.tokens, data.text.features))


def difference_of(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value of ours, or absolute where that is below 1; inf for a NaN."""
    difference = (ours - theirs).abs().max() / ours.abs().max().clamp(min=1)
    return float(difference.nan_to_num(nan=torch.inf, posinf=torch.inf))


def described(path: Path) -> dict[str, object]:
    """The model file's own description, and the file's hash."""
    with safe_open(path, framework="pt") as file:
        return {"sha256": sha256_of(path), **json.loads(file.metadata()[KEY])}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`; on success rename it to `folder`, on failure remove it.

    Raises:
        ValueError: there is something at `folder` already, or it is where the command runs, which cannot be renamed to.
        OSError: it cannot be written or the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) or folder.samefile(".")):
        raise ValueError(f"FOLDER must be new or empty, and {folder} is not; choose another or remove it")
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        yield temporary
