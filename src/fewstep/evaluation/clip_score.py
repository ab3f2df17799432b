"""The CLIP score of images and their prompts, by torchmetrics and a local CLIPModel; nothing is downloaded."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torchmetrics.multimodal.clip_score import CLIPScore

from fewstep.evaluation.intervals import Interval, interval
from fewstep.networks.frozen.loading import quiet, require_complete, require_weights
from fewstep.system.files import tensor_digest

BATCH, MIN_BATCHES = 64, 10  # for an interval
WHAT = "CLIP scores need a local folder of a CLIPModel and its processor in safetensors"


class Projected(nn.Module):
    """A CLIPModel whose features are tensors, as torchmetrics expects and transformers 5 no longer returns."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.config = model.config

    def get_image_features(self, *inputs: Tensor) -> Tensor:
        return as_tensor(self.model.get_image_features(*inputs))

    def get_text_features(self, *inputs: Tensor) -> Tensor:
        return as_tensor(self.model.get_text_features(*inputs))


def as_tensor(output: Any) -> Tensor:
    """The projected features, in the output of either version of transformers."""
    return output if isinstance(output, Tensor) else output.pooler_output


class ClipScore:
    """100 max(cos(image, prompt), 0), averaged over pairs before the maximum (Hessel et al. 2021, without their 2.5).

    Args:
        folder: config.json, model.safetensors, preprocessor_config.json and the tokenizer's files.

    Raises:
        ValueError: a file is missing or damaged, or the weights are a pickle.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel, CLIPProcessor

        require_weights(folder, WHAT)
        if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
            raise ValueError(
                f"{WHAT}, and {folder / 'preprocessor_config.json'} is missing; put the whole folder there"
            )
        try:
            with quiet():
                loaded: Any = CLIPModel.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
                )
                processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many types for a config or weights that do not fit
            raise ValueError(f"{WHAT}, and {folder} cannot be read: {' '.join(str(error).split())[:300]}") from error
        model, info = loaded
        require_complete(info, folder, WHAT)
        model.eval().requires_grad_(False)
        self.digest = tensor_digest(model.state_dict())
        self.metric = CLIPScore(lambda: (Projected(model), processor))

    @torch.no_grad()
    def __call__(
        self,
        images: UInt8[Tensor, "batch channels height width"],
        prompts: Sequence[str],
        device: torch.device | str = "cpu",
    ) -> tuple[float, Interval]:
        """The score of image i with prompt i, computed on `device`, and its interval, by the variance of batches.

        Raises:
            ValueError: not one prompt per image, or fewer than two images.
        """
        if len(images) != len(prompts) or len(images) < 2:
            raise ValueError(
                f"a CLIP score needs one prompt per image and two images, got {len(images)} and {len(prompts)}"
            )
        self.metric.to(device).reset()
        size, sums = min(BATCH, -(-len(images) // MIN_BATCHES)), [0.0]
        batches = images.split(size)
        for batch, start in zip(batches, range(0, len(images), size), strict=True):
            self.metric.update(batch.expand(-1, 3, -1, -1).to(device), list(prompts[start : start + size]))
            sums.append(float(self.metric.score))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            score = float(self.metric.compute())
        counts = torch.tensor([len(batch) for batch in batches])
        excess = torch.tensor(sums).double().diff() - counts * score
        excess = torch.tensor(sums).double().diff() - counts * score  # of the batch, its share of the score's variation
        return score, interval(score, excess * len(batches) / len(images))
