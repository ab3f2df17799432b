"""A model file describes itself: safetensors weights, and plain JSON that says how to build and use them.

Loading one executes nothing: the network is one of a fixed list, its arguments are numbers, and no pickle is opened.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fewstep.artifacts.format_1 import from_format_1
from fewstep.data.facts import DataFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import PredictionKind
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, network_class
from fewstep.networks.denoiser import arguments_of
from fewstep.networks.own import OwnNetwork
from fewstep.system.files import atomic_write, tensor_digest
from fewstep.system.stored import plain_json, reason_of
from fewstep.system.validation import Count, build, checked_arguments

FORMAT = 2
KEY = "fewstep"
T = TypeVar("T")
# What a description of wrong values raises here, in torch or in a network's constructor.
UNREADABLE = (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, AssertionError)
CHECKSUM = "checksum"
SCHEDULES: dict[str, type[CosineSchedule] | type[BetaSchedule]] = {
    c.__name__: c for c in (CosineSchedule, BetaSchedule)
}
MOST_W = 1e6
BLOCKS = ("num_blocks", "num_layers", "layers_per_block", "transformer_layers_per_block")  # of networks' arguments


class OwnNetworkError(ValueError):
    """A file of a network of its maker's own, without it; or another network than the file's."""


@dataclass(frozen=True)
class Ancestor:
    """A model that this one was made from: its method, its path relative to this file's folder, and its SHA-256."""

    method: str
    path: str
    sha256: str


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter that was added to a model's weights: its path relative to the model file's folder, what it was trained
    on, its SHA-256, and the strength that it was added with."""

    path: str
    about: str
    sha256: str
    strength: float


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model file says of itself, and all that its readers go by.

    Args:
        method: the stage that made it, its name alone: nothing is decided by it.
        data: facts of the data it makes.
        prediction: how its network's output reads. schedule: of its diffusion.
        native_schedule: see `Denoiser`.
        sampling: how it is sampled and guided.
        w_min, w_max, w_draw, w_values: guidance weights it was made for, see `GuidanceRange`; None without a w input.
        w2_min, w2_max: of its second condition; None where it has one weight.
        guidance_interval: the times between which its teacher was guided, None for all.
        images: training images of its last phase.
        evaluations: network evaluations that its last phase cost (forward 1, backward 2); None where nobody counted.
        parents: its ancestors, nearest first.
        adapters: those added to its weights since it was trained.

    Raises:
        ValueError: a guidance range, or a range of values, that no model has.
    """

    method: str
    data: DataFacts
    prediction: PredictionKind
    schedule: CosineSchedule | BetaSchedule
    sampling: Sampling
    images: Count
    parents: tuple[Ancestor, ...]
    native_schedule: BetaSchedule | None = None
    w_min: float | None = None
    w_max: float | None = None
    w_draw: Literal["uniform", "log_uniform", "list"] = "uniform"
    w_values: tuple[float, ...] | None = None
    w2_min: float | None = None
    w2_max: float | None = None
    guidance_interval: tuple[float, float] | None = None
    evaluations: Count | None = None
    adapters: tuple[AppliedAdapter, ...] = ()

    def __post_init__(self) -> None:
        if self.w_min is None or self.w_max is None:
            has_range = self.w_min is not self.w_max
            good = not has_range and self.sampling.guidance != "input"
        else:
            good = self.sampling.guidance == "input" and 0 <= self.w_min <= self.w_max <= MOST_W
        if not good:
            raise ValueError(
                f"a model with a w input has a guidance range 0 <= w_min <= w_max <= {MOST_W:g} and others have none, "
                f"got {self.sampling.guidance}, {self.w_min} and {self.w_max}"
            )
        if self.w2_min is None or self.w2_max is None:
            good = self.w2_min is self.w2_max
        else:
            good = self.w_min is not None and 0 <= self.w2_min <= self.w2_max <= MOST_W
        if not (good and (self.data.styles is not None or not self.has_two_weights)):
            raise ValueError(
                "a second guidance weight is of data with styles, of a model that has a first one, and has a range "
                f"0 <= w2_min <= w2_max, got {self.w2_min}, {self.w2_max} and {self.data}"
            )

    @property
    def label(self) -> str:
        """What it is called in tables and charts: teacher, guided, or for a few-step student its method."""
        own = self.method
        if self.sampling.times is None and not self.encodes:
            if self.sampling.is_combined:
                own = "teacher"
            elif self.sampling.guidance == "input":
                own = "guided"
        return f"{own} + adapter" if self.adapters else own

    @property
    def has_two_weights(self) -> bool:
        """Whether its class and its style have guidance weights of their own."""
        return self.sampling.guidance == "three_evaluations" or self.w2_max is not None

    @property
    def num_steps(self) -> int | None:
        """The most steps that it was made for; None for any number."""
        return None if self.sampling.times is None else len(self.sampling.times)

    @property
    def encodes(self) -> bool:
        """Whether it takes data to noise."""
        return self.sampling.direction == "encode"


def save_model(path: Path, denoiser: Denoiser, card: ModelCard) -> None:
    """Write weights and card to `path`, whole or not at all."""
    description = asdict(card) | {
        "format": FORMAT,
        "network": type(denoiser.network).__name__,
        "arguments": arguments_of(denoiser.network),
        "schedule": {"name": type(card.schedule).__name__} | asdict(card.schedule),
    }
    tensors, places = {}, set()
    for key, value in denoiser.network.state_dict().items():
        tensors[key] = value.detach().cpu().contiguous()
        place = tensors[key].untyped_storage().data_ptr()
        if place in places:  # tied weights, of which safetensors keeps each for itself
            tensors[key] = tensors[key].clone()
        places.add(place)
    description |= {CHECKSUM: checksum(description, tensors)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: json.dumps(description)})


def checksum(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Hex SHA-256 of what a model file holds: its description, and its tensors."""
    return sha256((json.dumps(description, sort_keys=True) + tensor_digest(tensors)).encode()).hexdigest()


def load_model(path: Path, network: torch.nn.Module | None = None) -> tuple[Denoiser, ModelCard]:
    """The network in eval mode on the CPU, and its card.

    Args:
        network: of the user's own, which gets the weights, where the file's is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a pickle, a file that is not a fewstep model, or a damaged one; or a network of the user's own that
            is not given, or has other weights.
    """
    description, tensors = read_described(path, KEY, "a model", "`fewstep info MODEL` shows one")
    try:
        written = description.pop(CHECKSUM, None)  # files of before it was have none
        found = written and checksum(description, tensors)
        name, arguments, card = described_model(description)
        if (list(card.data.shape), card.data.num_classes) != (arguments["shape"], arguments["num_classes"]):
            raise ValueError(f"its network does not make {card.data}")
        made = described_network(name, arguments, tensors, network)
        if written != found:
            raise ValueError(
                "it is damaged, its checksum is not that of what it holds; once it is deleted, the same command makes "
                "it again"
            )
        # a file of `fewstep export --half` holds float16, which is for keeping, not for computing
        return Denoiser(made.float(), card.prediction, card.native_schedule).eval(), card
    except OwnNetworkError as error:
        raise ValueError(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_card(path: Path) -> ModelCard:
    """The card of a model file alone, quickly: the weights are not read, and the checksum is not compared.

    Raises:
        FileNotFoundError, ValueError: see `load_model`.
    """
    description, _ = read_described(path, KEY, "a model", with_tensors=False)
    description.pop(CHECKSUM, None)
    try:
        return described_model(description)[2]
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error of a model file whose description or weights are none."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} is not a model that this fewstep can read: {reason}; make it again or ask its maker")


def described_model(description: dict[str, Any]) -> tuple[str, dict[str, Any], ModelCard]:
    """The name and arguments of the network, and the card, of a file's JSON; raises one of UNREADABLE."""
    if (number := description.pop("format")) not in (1, FORMAT):
        raise ValueError("its format is of another version of fewstep")
    description = from_format_1(description) if number == 1 else description
    name, arguments = description.pop("network"), description.pop("arguments")
    return name, arguments, described_card(description)


def described_network(
    name: str, arguments: dict[str, Any], tensors: dict[str, torch.Tensor], own: torch.nn.Module | None = None
) -> torch.nn.Module:
    """Build the network `name` of the fixed list with these weights, or give them to the user's own.

    Raises:
        ValueError, RuntimeError: an unknown name or other weights, or one's own where the file's is of the list, or the
            other way round.
    """
    if (name == OwnNetwork.__name__) != (own is not None):
        kind = str(arguments.get("name")) if own is None else name
        if not kind.isidentifier():
            raise ValueError("its network has no name")
        advice = "load it without network=" if own is not None else f"fewstep.load(PATH, network={kind}(...)) loads it"
        whose = "of fewstep's own" if own is not None else "of its maker's code, which no file is trusted to name"
        raise OwnNetworkError(f"its network, {kind}, is {whose}; {advice}")
    if own is not None:
        network = OwnNetwork(own, **arguments)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(" ".join(str(error).splitlines()[1:3]).split())
            raise OwnNetworkError(f"its network is made with other arguments than network=: {reason}") from error
        return network
    if (blocks := most_blocks(arguments)) > len(tensors):
        raise ValueError(f"{blocks} blocks are more than the {len(tensors)} tensors it holds")
    checked_arguments(network_class(name), arguments, "its network")
    with torch.device("meta"):  # shapes only: a file cannot make us allocate more than it holds
        network = network_class(name)(**arguments)
    network.load_state_dict(tensors, assign=True)
    return network


def most_blocks(arguments: Any) -> int:
    """The largest number of blocks that a network's arguments name, whether for all levels or for each."""
    if isinstance(arguments, dict):
        return max((most_blocks(arguments[key]) for key in (*BLOCKS, "config") if key in arguments), default=0)
    return max(map(most_blocks, arguments), default=0) if isinstance(arguments, list) else int(arguments)


def described_card(description: Mapping[str, Any]) -> ModelCard:
    """A card of its JSON, every value of the type that its annotation says.

    Raises:
        ValueError: names the first that is not. KeyError: an unknown schedule, or a missing part.
    """
    native, schedule = description.get("native_schedule"), description["schedule"]
    name = schedule.pop("name", CosineSchedule.__name__) if isinstance(schedule, dict) else CosineSchedule.__name__
    parts = {
        "native_schedule": None if native is None else described_part(BetaSchedule, native, "native_schedule"),
        "data": described_part(DataFacts, description["data"], "data"),
        "schedule": described_part(SCHEDULES[name], schedule, "schedule"),
        "sampling": described_part(Sampling, description["sampling"], "sampling"),
        "parents": tuple(described_part(Ancestor, parent, "parents") for parent in description["parents"]),
        "adapters": tuple(described_part(AppliedAdapter, a, "adapters") for a in description.get("adapters", ())),
    }
    return build(ModelCard, {**description, **parts}, "its card")


def described_part(constructor: type[T], described: Any, name: str) -> T:
    """A part of a card of its JSON, built by itself, so that a ValueError names the value within."""
    if not isinstance(described, dict):
        raise ValueError(f"its {name} must be a mapping, got {described!r:.80}")
    return build(constructor, described, f"its {name}")


def read_described(
    path: Path, key: str, what: str, hint: str = "give another path", *, with_tensors: bool = True
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The JSON below `key` and the tensors of a file, after the checks that tell what else it may be.

    Args:
        what: it should be, for messages: "a model". hint: what to do where there is no file.
        with_tensors: read them too; else there are none.

    Raises:
        FileNotFoundError, ValueError: see `load_model`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} must be a file, and there is none at {path}; {hint}")
    with path.open("rb") as file:
        start = file.read(9)
    # The first 8 bytes of safetensors are a length, which may look like a pickle's first two; then comes "{".
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start[8:] != b"{":
        raise ValueError(
            f"{what} must be safetensors, and {path} is a pickle, which could run code and is never opened; "
            "give the .safetensors that was written beside it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in (file.keys() if with_tensors else ())}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated, damaged or no safetensors file ({error}); make it again") from error
    if key not in metadata:
        other = next((each for each in metadata if each.startswith(KEY)), None)
        made = f"is fewstep's but not {what}" if other else "is safetensors but not made by fewstep"
        raise ValueError(f"{path} {made}: it lacks the description under {key!r}")
    try:
        description = plain_json(metadata[key])
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: its description is not JSON as fewstep writes it ({reason_of(error)}); make it again"
        ) from error
    if not isinstance(description, dict):
        raise ValueError(f"{path} is damaged: its description is no JSON object; make it again")
    return description, tensors
