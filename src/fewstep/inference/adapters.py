"""A model with adapters: sliders and styles added to its weights, each with a strength."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewstep.artifacts.adapter_file import load_adapter_file
from fewstep.artifacts.model_file import AppliedAdapter
from fewstep.inference.model import Model
from fewstep.networks.low_rank import misfit, with_changes
from fewstep.system.files import sha256_of


def with_adapters(model: Model, adapters: Sequence[tuple[Path, float]]) -> Model:
    """The model with adapter files added, each with its strength; the order does not matter, and 0 changes nothing.

    An adapter fits every model whose layers have its shapes: the teacher it was trained on, its students, and the
    other way round.

    Raises:
        FileNotFoundError, ValueError: see `load_adapter_file`.
        ValueError: an adapter of another network, or a strength that is not finite.
    """
    changes, applied = [], []
    for path, strength in adapters:
        if not math.isfinite(strength):
            raise ValueError(f"the strength of an adapter must be finite, got {strength} for {path}")
        factors, card = load_adapter_file(path)
        if reason := misfit(model.denoiser.network, factors):
            raise ValueError(
                f"{path} was trained on another network ({card.network} of {card.data}): {reason}; train one on a "
                "model of this shape"
            )
        changes.append((factors, strength))
        applied.append(AppliedAdapter(str(path), f"{card.kind}: {card.about}", sha256_of(path), strength))
    card = replace(model.card, adapters=(*model.card.adapters, *applied))
    return replace(model, denoiser=with_changes(model.denoiser, changes), card=card)
