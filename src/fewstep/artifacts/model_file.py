"""A model file describes itself: safetensors weights, and plain JSON that says how to build and use them.

Loading one executes nothing: the network is one of a fixed list, its arguments are numbers, and no pickle is opened.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fewstep.data.facts import DataFacts, LatentFacts, TextFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import PredictionKind
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, network_class
from fewstep.networks.denoiser import arguments_of
from fewstep.system.files import atomic_write, tensor_digest
from fewstep.system.validation import require_card_types

FORMAT = 1
KEY = "fewstep"
CHECKSUM = "checksum"

Role = Literal["teacher", "guided", "progressive", "encoder"]
Sampling = Literal["deterministic", "stochastic"]
SCHEDULES: dict[str, type[CosineSchedule] | type[BetaSchedule]] = {
    c.__name__: c for c in (CosineSchedule, BetaSchedule)
}


BLOCKS = ("num_blocks", "num_layers", "layers_per_block", "transformer_layers_per_block")  # of networks' arguments


@dataclass(frozen=True)
class Parent:
    """A model that this one was made from: where it lay, relative to this file's folder, and its SHA-256."""

    role: Role
    path: str
    sha256: str


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself.

    Args:
        role: teacher, guided (stage one), progressive (a rung) or encoder (a rung of the reversed chain).
        data: facts of the data it makes.
        prediction: how its network's output reads. schedule: of its diffusion.
        w_min, w_max: guidance range it was made for, None for a teacher and for a rung without w input: such models are
            guided by two evaluations a step.
        num_steps: steps it was made for, None for any.
        sampling: the sampler it was made for. clock: see `Denoiser`.
        w_draw, w_values: how w was drawn; see `GuidanceRange`.
        guidance_interval: the times between which its teacher was guided, None for all.
        images: training images of its last stage or rung.
        parents: its ancestors, nearest first.

    Raises:
        ValueError: an unknown role, or a guidance range, steps or value range that no model has.
    """

    role: Role
    data: DataFacts
    prediction: PredictionKind
    schedule: CosineSchedule | BetaSchedule
    w_min: float | None
    w_max: float | None
    num_steps: int | None
    images: int
    parents: tuple[Parent, ...]
    sampling: Sampling = "deterministic"
    clock: BetaSchedule | None = None
    w_draw: Literal["uniform", "log_uniform", "list"] = "uniform"
    w_values: tuple[float, ...] | None = None
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role) or self.sampling not in get_args(Sampling):
            raise ValueError(
                f"role must be one of {', '.join(get_args(Role))} and sampling one of {', '.join(get_args(Sampling))}, "
                f"got {self.role!r} and {self.sampling!r}"
            )
        if self.w_min is None or self.w_max is None:
            good = self.w_min is self.w_max and self.role in ("teacher", "progressive")
        else:
            good = self.role != "teacher" and 0 <= self.w_min <= self.w_max
        if not (good and (self.num_steps is None or self.num_steps >= 1) and self.data.low < self.data.high):
            raise ValueError(
                "a student has a guidance range 0 <= w_min <= w_max and a teacher none, steps are at least 1 and data "
                f"has low < high, got {self.w_min}, {self.w_max}, {self.num_steps} and {self.data}"
            )

    @property
    def is_guided_outside(self) -> bool:
        """Whether guidance takes two evaluations a step, for want of a w input."""
        return self.w_min is None


def save_model(path: Path, denoiser: Denoiser, card: ModelCard) -> None:
    """Write weights and card to `path`, whole or not at all."""
    description = asdict(card) | {
        "format": FORMAT,
        "network": type(denoiser.network).__name__,
        "arguments": arguments_of(denoiser.network),
        "schedule": {"name": type(card.schedule).__name__} | asdict(card.schedule),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in denoiser.network.state_dict().items()}
    description |= {CHECKSUM: checksum(description, tensors)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: json.dumps(description)})


def checksum(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Hex SHA-256 of what a model file holds: its description, and its tensors."""
    return sha256((json.dumps(description, sort_keys=True) + tensor_digest(tensors)).encode()).hexdigest()


def load_model(path: Path) -> tuple[Denoiser, ModelCard]:
    """The network in eval mode on the CPU, and its card.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a pickle, a file that is not a fewstep model, or a damaged one.
    """
    description, tensors = _read(path)
    try:
        written = description.pop(CHECKSUM, None)  # files of before it was have none
        found = written and checksum(description, tensors)
        if description.pop("format") != FORMAT:
            raise ValueError("its format is of another version of fewstep")
        name, arguments = description.pop("network"), description.pop("arguments")
        clock = description.pop("clock", None)
        card = ModelCard(
            data=data_facts(description.pop("data")),
            schedule=schedule_of(description.pop("schedule")),
            parents=tuple(Parent(**parent) for parent in description.pop("parents")),
            clock=None if clock is None else BetaSchedule(**tuples(clock)),
            **tuples(description),
        )
        require_card_types(card)
        if (list(card.data.shape), card.data.num_classes) != (arguments["shape"], arguments["num_classes"]):
            raise ValueError(f"its network does not make {card.data}")
        if (blocks := most_blocks(arguments | arguments.get("config", {}))) > len(tensors):
            raise ValueError(f"{blocks} blocks are more than the {len(tensors)} tensors it holds")
        with torch.device("meta"):  # shapes only: a file cannot make us allocate more than it holds
            network = network_class(name)(**arguments)
        network.load_state_dict(tensors, assign=True)
        if written != found:
            raise ValueError(
                "it is damaged, its checksum is not that of what it holds; once it is deleted, the same command makes "
                "it again"
            )
        # a file of `fewstep export --half` holds float16, which is for keeping, not for computing
        return Denoiser(network.float(), card.prediction, card.clock).eval(), card
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a model that this fewstep can read: {reason}; make it again or ask its maker"
        ) from error


def most_blocks(arguments: Any) -> int:
    """The largest number of blocks that a network's arguments name, whether for all levels or for each."""
    if isinstance(arguments, dict):
        return max((most_blocks(arguments[key]) for key in BLOCKS if key in arguments), default=0)
    return max(map(most_blocks, arguments), default=0) if isinstance(arguments, list) else int(arguments)


def data_facts(described: dict[str, Any]) -> DataFacts:
    """DataFacts of their JSON."""
    latent, text = described.get("latent"), described.get("text")
    parts = {
        "shape": tuple(described["shape"]),
        "latent": None if latent is None else LatentFacts(**latent | {"image_shape": tuple(latent["image_shape"])}),
        "text": None if text is None else TextFacts(**text),
    }
    return DataFacts(**described | parts)


def schedule_of(described: dict[str, Any]) -> CosineSchedule | BetaSchedule:
    """A schedule of its JSON: its name and its arguments."""
    if not isinstance(described, dict):
        raise ValueError(f"its schedule must be a mapping, got {described!r}")
    arguments = tuples(described)
    return SCHEDULES[arguments.pop("name", CosineSchedule.__name__)](**arguments)


def tuples(described: dict[str, Any]) -> dict[str, Any]:
    """Lists, as JSON has them, made tuples, as frozen dataclasses do."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in described.items()}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The JSON and the tensors of a model file, after the checks that tell what else it may be."""
    if not path.is_file():
        raise FileNotFoundError(f"a model must be a file, and there is none at {path}; `fewstep info MODEL` shows one")
    with path.open("rb") as file:
        start = file.read(9)
    # The first 8 bytes of safetensors are a length, which may look like a pickle's first two; then comes "{".
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start[8:] != b"{":
        raise ValueError(
            f"a model must be safetensors, and {path} is a pickle, which could run code and is never opened; "
            "give the model.safetensors that the run left beside it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated, damaged or no safetensors file ({error}); make it again") from error
    if KEY not in metadata:
        raise ValueError(f"{path} is safetensors but not made by fewstep: it lacks the description under {KEY!r}")
    try:
        description = json.loads(metadata[KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its description is not JSON ({error}); make it again") from error
    if not isinstance(description, dict):
        raise ValueError(f"{path} is damaged: its description is no JSON object; make it again")
    return description, tensors
