"""A foreign teacher as it is read: an architecture of diffusers, weights, and how the output reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import PredictionKind


@dataclass(frozen=True)
class Foreign:
    """A foreign teacher's architecture, weights and schedule.

    Args:
        kind: diffusers' class. config: its settings. tensors: its weights by diffusers' names, float32.
        prediction: how its output reads. native_schedule: its beta schedule.
        pipeline: the folder that also holds its vae/ and text_encoder/, if there is one.
        digest: sha256 over what was read; the same teacher has the same.
    """

    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    prediction: PredictionKind
    native_schedule: BetaSchedule
    pipeline: Path | None
    digest: str


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: there is no such file, or no object in it.
    """
    if not path.is_file():
        raise ValueError(f"the teacher lacks {path}; give a folder that is complete, as save_pretrained writes it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}); get it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object; get it again")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle that holds nothing else; float32.

    Raises:
        ValueError: it is damaged, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is truncated, damaged, or holds more than tensors, which is never executed; get the safetensors "
            "of this teacher"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} must hold tensors by name and nothing else; give the state dict alone")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
