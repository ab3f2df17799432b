"""The protocol: everything besides the model that changes a quality figure, and a short name for it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from fewstep.data.facts import DataFacts
from fewstep.evaluation.features import FeatureExtractor
from fewstep.evaluation.images import Reference, image_path

INCEPTION_SPLITS = 1  # one split needs no shuffle and is the least biased at a few thousand images
NEIGHBOURHOOD = 3  # of precision and recall (Kynkaanniemi et al. 2019)


@dataclass(frozen=True)
class Protocol:
    """How figures were measured. Two figures compare if and only if their protocols are equal.

    `labels` describes the conditions of the samples, `comparison` what same_noise_rmse compares with.
    """

    dataset: str
    reference_split: str
    reference_sha256: str
    feature_net: str
    feature_net_sha256: str
    image_path: str
    num_images: int
    seed: int
    labels: str = "classes in turn"
    comparison: str = "none"
    inception_splits: int = INCEPTION_SPLITS
    neighbourhood: int = NEIGHBOURHOOD
    torch_fidelity: str = version("torch-fidelity")

    @classmethod
    def of(
        cls,
        facts: DataFacts,
        net: FeatureExtractor,
        reference: Reference,
        *,
        num_images: int,
        seed: int,
        labels: str = "classes in turn",
        comparison: str = "none",
    ) -> "Protocol":
        """The protocol of `num_images` samples from `seed`, compared with `reference` by the features of `net`."""
        return cls(
            dataset=facts.name,
            reference_split=reference.split,
            reference_sha256=reference.digest,
            feature_net=net.name,
            feature_net_sha256=net.digest,
            image_path=image_path(facts),
            num_images=num_images,
            seed=seed,
            labels=labels,
            comparison=comparison,
        )

    @property
    def id(self) -> str:
        """First 8 hex digits of the sha256 of the fields as canonical JSON."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]

    def as_dict(self) -> dict[str, Any]:
        """The fields and the id, as provenance.json keeps them."""
        return {**asdict(self), "id": self.id}
