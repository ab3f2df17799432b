"""What a model is asked for, as the conditions that its network takes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition

Requested = Condition | Sequence[int] | Sequence[str]
"""What is asked for: classes, prompts, or embeddings of prompts."""


def condition_of(wanted: Requested, data: DataFacts, text_encoder: Callable[[], Any]) -> Condition:
    """Classes as a tensor, prompts as their embeddings; tensors, as degraded images must be, are only checked.

    Args:
        text_encoder: opens the encoder of prompts, where there are any.

    Raises:
        ValueError: see `Model.condition`.
    """
    if data.degraded is not None:
        if isinstance(wanted, Tensor) and wanted.is_floating_point() and wanted.shape[1:] == data.shape and len(wanted):
            return wanted
        require_no_images(data)
    words = not isinstance(wanted, Tensor) and any(isinstance(each, str) for each in wanted)
    if data.state is not None:
        if not isinstance(wanted, Tensor) or wanted.shape[1:] != data.embedding or not len(wanted):
            raise ValueError(
                f"this model takes states, not labels or prompts: in Python, a tensor of (count, 1, {data.state}); "
                "`python train.py stage=evaluate` runs it in closed loop"
            )
        return wanted
    if data.text is None:
        try:
            labels = torch.as_tensor([] if words else wanted)
            good = labels.ndim == 1 and len(labels) > 0 and not labels.is_floating_point()
            good = good and 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes
        except (RuntimeError, TypeError, ValueError):  # past 64 bits, or no numbers at all
            labels, good = torch.empty(0), False
        if not good:
            got = ", ".join(dict.fromkeys(map(str, wanted.tolist() if isinstance(wanted, Tensor) else wanted)))
            raise ValueError(
                f"labels must be whole numbers in 0..{data.num_classes - 1} for {data.name}, not prompts, and at "
                f"least one, got [{got:.80}]"
            )
        return labels.long()
    if words:
        from fewstep.networks.frozen.text_encoder import require_prompts

        prompts = require_prompts([str(each) for each in wanted])
        encoder = text_encoder()
        assert encoder is not None, "a model of text has an encoder"
        different = list(dict.fromkeys(prompts))
        return encoder.encode(different)[[different.index(prompt) for prompt in prompts]]
    shape = data.embedding
    if not isinstance(wanted, Tensor) or wanted.shape[1:] != shape or not len(wanted):
        raise ValueError(f"this model takes prompts, not labels: give prompts or embeddings {shape}")
    return wanted


def require_no_images(data: DataFacts) -> None:
    """Refuse data whose conditions are degraded images, where classes or prompts are asked for.

    Raises:
        ValueError: they are.
    """
    if data.degraded is not None:
        raise ValueError(
            f"this model takes degraded images {data.shape}, not labels or prompts; use `fewstep upscale MODEL "
            "small.png --out large.png`"
        )
