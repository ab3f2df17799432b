"""Labels in the place of a data set's own: none at all, or those that `fewstep data label` made.

A file of labels is safetensors: a cluster for each training and each held-out image, and a card that says of what they
were made. It belongs to one data set, which is recognised by its images.
"""

import copy
import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import Data, ImagesInMemory, class_balance, source_digest
from fewstep.system.files import atomic_write, tensor_digest
from fewstep.system.stored import plain_json
from fewstep.system.validation import build

OWN, NONE = "own", "none"
LABEL_FILES = (".csv", ".tsv", ".npy")  # that data sets of files read themselves, as labels of their own
KEY, CHECKSUM = "fewstep-labels", "checksum"
TRAINING, HELD_OUT = "training", "held_out"


@dataclass(frozen=True, kw_only=True)
class LabelCard:
    """What a file of labels says of itself.

    Args:
        data: name of the data set. source: digest of its training images, see `source_digest`.
        model: digest of the file of the network whose features were clustered. knew: the labels that this network was
            trained with: own, none, or a digest.
        by: how they were clustered. clusters: their number. share: of data in the noised images that were looked at.
        images: that the prototypes were trained on; 0 for k-means. seed: of all that was drawn.
    """

    data: str
    source: str
    model: str
    knew: str
    by: Literal["prototypes", "kmeans"]
    clusters: int
    share: float
    images: int
    seed: int


@dataclass(frozen=True)
class Labels:
    """A label in 0, ..., num_classes - 1 of each training and each held-out image.

    `digest` names them. Without `held_out` all images are of one class.
    """

    training: Int[Tensor, "training"]
    held_out: Int[Tensor, "held_out"] | None
    num_classes: int
    digest: str

    @classmethod
    def none(cls, count: int) -> "Labels":
        """One class for all."""
        return cls(torch.zeros(count, dtype=torch.long), None, 1, NONE)

    def in_turn(self, count: int) -> Int[Tensor, "count"]:
        """`count` labels, each as often as among the training images to within one, and spread evenly."""
        total = len(self.training)
        drawn = self.training.sort().values[(2 * torch.arange(count) + 1) * total // (2 * count)]
        counts = drawn.bincount(minlength=self.num_classes)
        number = torch.arange(count) - (counts.cumsum(0) - counts)[drawn]  # the how-manieth of its label each is
        return drawn[((2 * number + 1) / counts[drawn]).argsort(stable=True)]


class Relabelled(Data):
    """A data set with other labels than its own; samples are conditioned on them as often as training images are.

    Args:
        source: with its own labels. labels: of its images.
    """

    def __init__(self, source: ImagesInMemory, labels: Labels) -> None:
        super().__init__(batch_size=source.batch_size, stream=source.stream)
        self.source, self.others = source, labels
        self.facts = replace(source.facts, num_classes=labels.num_classes, labels=labels.digest)
        self.reference_split = source.reference_split
        self._training = copy.copy(source)
        self._training.labels = labels.training

    @property
    def num_examples(self) -> int:
        return self.source.num_examples

    def batch(self, step: int) -> Batch:
        return self._training.batch(step)

    def rows(self, step: int) -> Batch:
        return self._training.rows(step)

    def reference(self) -> Batch:
        x, own = self.source.reference()
        held_out = torch.zeros_like(own) if self.others.held_out is None else self.others.held_out
        if len(held_out) != len(x):
            raise ValueError(
                f"dataset.labels has labels of {len(held_out)} held-out images, and there are {len(x)}; make it again "
                "with `fewstep data label` and the same settings of the data set"
            )
        return Batch(x, held_out)

    def conditions(self, count: int) -> Int[Tensor, "count"]:
        return self.others.in_turn(count)

    def check(self) -> list[str]:
        return [
            *self.source.check(),
            class_balance(self.facts, f"other labels ({self.others.digest[:12]}), training", self.others.training),
            class_balance(self.facts, "other labels, held out", self.reference().label),
        ]


def relabelled(source: Data, labels: str) -> Data:
    """The data set with the labels that dataset.labels says: own, none, or a file of them.

    Raises:
        ValueError: it is no data set of pixels in memory, or the file is not one of its labels.
    """
    if labels == OWN:
        return source
    pixels = pixels_of(source, f"dataset.labels={labels}")
    return Relabelled(
        pixels, Labels.none(len(pixels.labels)) if labels == NONE else read_labels(Path(labels), pixels)[0]
    )


def pixels_of(source: Data, what: str) -> ImagesInMemory:
    """A data set whose images can have other labels, wanted by `what`; with its own if it has others already.

    Raises:
        ValueError: it has latents, prompts or points.
    """
    if isinstance(source, Relabelled):
        return source.source
    if not isinstance(source, ImagesInMemory) or source.facts.latent is not None:
        raise ValueError(
            f"{what} needs images of pixels with classes, and {source.facts.name} has none; use labels=own, "
            "or a data set of images"
        )
    return source


def save_labels(path: Path, card: LabelCard, labels: dict[str, Tensor]) -> None:
    """Write labels and their card, whole or not at all."""
    tensors = {name: each.contiguous() for name, each in labels.items()}
    described = asdict(card)
    described |= {CHECKSUM: checksum_of(described, tensors)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: json.dumps(described)})


def checksum_of(described: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Hex SHA-256 of a card and its labels."""
    return sha256((json.dumps(described, sort_keys=True) + tensor_digest(tensors)).encode()).hexdigest()


def read_labels(path: Path, source: ImagesInMemory) -> tuple[Labels, LabelCard]:
    """The labels in a file, and their card.

    Raises:
        ValueError: there is none, it is damaged, or its labels are of other images than those of `source`.
    """
    make = f"make it with `fewstep data label {source.facts.name} MODEL --out {path}`"
    if not path.is_file():
        raise ValueError(
            f"dataset.labels must be {OWN}, {NONE} or a file of labels, and there is none at {path}; {make}"
        )
    try:
        card, tensors = parse(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no file of labels, or is damaged ({error}); {make}") from error
    if card.source != source_digest(source):
        raise ValueError(
            f"{path} has labels of other images: of {card.data}, not of these of {source.facts.name}; {make}"
        )
    digest = tensor_digest(tensors)
    return Labels(tensors[TRAINING], tensors[HELD_OUT], card.clusters, digest), card


def parse(path: Path) -> tuple[LabelCard, dict[str, Tensor]]:
    """Card and labels of a file, which agree; raises where they do not."""
    with safe_open(path, framework="pt") as file:
        described: dict[str, Any] = plain_json((file.metadata() or {})[KEY])
        tensors = {name: file.get_tensor(name) for name in (TRAINING, HELD_OUT)}
    written = described.pop(CHECKSUM)
    card = build(LabelCard, described, "its card")
    if written != checksum_of(described, tensors):
        raise ValueError("its checksum is not that of what it holds")
    for each in tensors.values():
        if each.dtype != torch.int64 or each.ndim != 1 or not 0 <= int(each.min()) <= int(each.max()) < card.clusters:
            raise ValueError(f"its labels are not whole numbers from 0 to {card.clusters - 1}")
    return card, tensors
