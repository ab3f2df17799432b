"""The reference of a data set and the feature extractor by which samples are compared with it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.extractors import build_feature_extractor
from fewstep.evaluation.features import FeatureExtractor
from fewstep.evaluation.images import EvaluationImages, Reference, evaluation_tensor
from fewstep.evaluation.metrics import KID_SUBSET_SIZE, KID_SUBSETS
from fewstep.evaluation.statistics import ReferenceStatistics
from fewstep.system.files import tensor_digest

if TYPE_CHECKING:
    from fewstep.evaluation.clip_score import ClipScore


@dataclass(frozen=True)
class Evaluator:
    """All that figures of a data set need.

    Args:
        cache: folder of cached features of references, see `ReferenceStatistics.of`, and of trained extractors.
    """

    facts: DataFacts
    net: FeatureExtractor
    reference: Reference
    exact: GaussianMixture | None
    data: Data
    cache: Path | None = None

    @classmethod
    def of(cls, data: Data, features: str = "auto", cache: Path | None = None) -> "Evaluator":
        """The evaluator of a data set; `features` is the choice of `build_feature_extractor`."""
        held_out, facts = data.reference(), data.evaluation_facts
        return cls(
            facts=data.facts,
            net=build_feature_extractor(facts, mixture=data.exact, choice=features, data=data, folder=cache),
            reference=Reference(data.reference_split, evaluation_tensor(held_out.x, facts), held_out.label),
            exact=data.exact,
            data=data,
            cache=cache,
        )

    @cached_property
    def reference_statistics(self) -> ReferenceStatistics:
        """The features and statistics of the reference, computed once."""
        return ReferenceStatistics.of(self.net, self.reference, self.cache)

    def originals(self, num_images: int) -> EvaluationImages | None:
        """What each of so many samples is to restore, where conditions are degraded images."""
        if self.facts.degraded is None:
            return None
        return self.reference.images[torch.arange(num_images) % len(self.reference.images)]

    @cached_property
    def clip(self) -> "ClipScore | None":
        """The CLIP score, None where there are no prompts or no CLIP.

        Raises:
            ValueError: CLIP's folder lacks a file.
        """
        if self.data.clip is None or self.data.prompts(1) is None:
            return None
        from fewstep.evaluation.clip_score import ClipScore  # transformers takes seconds

        return ClipScore(Path(self.data.clip))

    def labels(self, num_images: int) -> str:
        """The conditions of the samples, in words, for the protocol."""
        if self.facts.labels is not None:
            return f"labels {self.facts.labels[:12]}, as often as in training"
        if self.facts.degraded is not None:
            return (
                f"degraded held-out images in turn, {tensor_digest({'images': self.data.conditions(num_images)})[:12]}"
            )
        if self.facts.embedding is None:
            return "classes in turn"
        if self.facts.state is not None:
            states = self.data.conditions(min(num_images, len(self.reference.images)))
            return f"held-out states in turn, {tensor_digest({'states': states})[:12]}"
        digest = tensor_digest({"prompts": self.data.conditions(min(num_images, len(self.reference.images)))})[:12]
        clip = "no CLIP" if self.clip is None else f"CLIP {self.clip.digest[:12]}"
        return f"held-out prompts in turn, {digest}; {clip}; {KID_SUBSETS} KID subsets of {KID_SUBSET_SIZE} or all"
