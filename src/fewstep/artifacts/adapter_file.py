"""An adapter file: the low-rank factors as diffusers reads them, and plain JSON that says what they are and are for."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from fewstep.artifacts.model_file import CHECKSUM, KEY, UNREADABLE, checksum, read_described
from fewstep.networks.low_rank import Factors, layers_of
from fewstep.system.files import atomic_write
from fewstep.system.validation import Count, build

ADAPTER_FORMAT = 1
ADAPTER_KEY = f"{KEY}_adapter"


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What an adapter file says of itself.

    Args:
        kind: concept (a slider between conditions), attribute (a slider along a measured quantity) or style (images at
            strength 1).
        about: what it was trained on, in words.
        data: name of the data of the model that it was trained on. network: that model's class of network.
        base_method, base_sha256: of that model.
        rank, alpha: of the factors; alpha / rank is multiplied into B, so that readers need neither.
        eta: amount of a concept's steering at strength 1, None for other kinds.
        images: seen in training. seed: of its random numbers.

    Raises:
        ValueError: a rank below 1, or an alpha that is not positive.
    """

    kind: Literal["concept", "attribute", "style"]
    about: str
    data: str
    network: str
    base_method: str
    base_sha256: str
    rank: int
    alpha: float
    eta: float | None
    images: Count
    seed: Count

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"an adapter has a rank of at least 1 and a positive alpha, got {self.rank}, {self.alpha}")


def save_adapter_file(path: Path, factors: Factors, card: AdapterCard) -> None:
    """Write factors and card to `path`, whole or not at all."""
    description = asdict(card) | {"format": ADAPTER_FORMAT}
    tensors = {name: value.detach().cpu().contiguous() for name, value in factors.items()}
    description |= {CHECKSUM: checksum(description, tensors)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={ADAPTER_KEY: json.dumps(description)})


def load_adapter_file(path: Path) -> tuple[Factors, AdapterCard]:
    """The factors, and the card.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a pickle, a file that is no adapter of fewstep, or a damaged one.
    """
    description, tensors = read_described(path, ADAPTER_KEY, "an adapter")
    try:
        written = description.pop(CHECKSUM)
        if written != checksum(description, tensors):
            raise ValueError("it is damaged, its checksum is not that of what it holds")
        if description.pop("format") != ADAPTER_FORMAT:
            raise ValueError("its format is of another version of fewstep")
        card = build(AdapterCard, description, "its card")
        layers_of(tensors)
    except UNREADABLE as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{path} is not an adapter that this fewstep can read: {reason}; train it again") from error
    return tensors, card
