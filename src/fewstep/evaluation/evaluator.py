"""What samples of a data set are judged by: its held-out part, through a feature extractor."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.features import FeatureNet, feature_net
from fewstep.evaluation.images import Reference, evaluation_tensor
from fewstep.evaluation.metrics import KID_SUBSET_SIZE, KID_SUBSETS
from fewstep.evaluation.statistics import ReferenceStatistics
from fewstep.system.files import tensor_digest

if TYPE_CHECKING:
    from fewstep.evaluation.clip_score import ClipScore


@dataclass(frozen=True)
class Evaluator:
    """The reference of a data set and the feature extractor that compares samples with it.

    Args:
        cache: folder where features of the reference are kept from run to run, see `ReferenceStatistics.of`.
    """

    facts: DataFacts
    net: FeatureNet
    reference: Reference
    exact: GaussianMixture | None
    data: Data
    cache: Path | None = None

    @classmethod
    def of(cls, data: Data, features: str = "auto", cache: Path | None = None) -> "Evaluator":
        """The evaluator of a data set, with the feature extractor that `feature_net` chooses for `features`."""
        held_out = data.reference()
        return cls(
            facts=data.facts,
            net=feature_net(data.evaluation_facts, mixture=data.exact, wanted=features),
            reference=Reference(data.reference_split, evaluation_tensor(held_out.x, data.evaluation_facts), held_out.label),
            exact=data.exact,
            data=data,
            cache=cache,
        )

    @cached_property
    def reference_statistics(self) -> ReferenceStatistics:
        """The reference's features and what follows from them, computed once."""
        return ReferenceStatistics.of(self.net, self.reference, self.cache)

    @cached_property
    def clip(self) -> "ClipScore | None":
        """CLIP, which scores how images fit their prompts, where there are prompts and a CLIP.

        Raises:
            ValueError: CLIP's folder lacks a file.
        """
        if self.data.clip is None or self.data.prompts(1) is None:
            return None
        from fewstep.evaluation.clip_score import ClipScore  # transformers takes seconds

        return ClipScore(Path(self.data.clip))

    def labels(self, num_images: int) -> str:
        """The conditions that samples are made for, in words, for the protocol."""
        if self.facts.text is None:
            return "classes in turn"
        asked = tensor_digest({"prompts": self.data.conditions(min(num_images, len(self.reference.images)))})[:12]
        clip = "no CLIP" if self.clip is None else f"CLIP {self.clip.digest[:12]}"
        return f"held-out prompts in turn, {asked}; {clip}; {KID_SUBSETS} KID subsets of {KID_SUBSET_SIZE} or all"
