"""Memory and operations of training, from tensors that have shapes and no values."""

import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fewstep.data.batches import Batch
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Denoise
from fewstep.training.module import DistillationModule
from fewstep.training.settings import TrainerSettings


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made while it is active, until they are freed. A value that is read is False or 1."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            found = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            return False if args[0].dtype == torch.bool else 1
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages and self._storages[key]() is storage:
            return

        def free(_: object) -> None:
            self.live -= size
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


@contextmanager
def shapes_only(device: str) -> Iterator[LiveBytes]:
    """Make tensors without values inside the block, on `device` by default, and count what they would take."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings(), fake, torch.device(device), LiveBytes() as memory:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield memory


@dataclass(frozen=True)
class Footprint:
    """What one process needs in a phase.

    Attributes:
        parameters: of the model that the phase makes. model_bytes, checkpoint_bytes: of its files.
        at_rest, peak: bytes between two updates (networks, gradients, optimiser's state), and at most.
        flops: floating-point operations of an update.
        evaluations: network evaluations of an update for each example, without backward passes.
    """

    parameters: int
    model_bytes: int
    checkpoint_bytes: int
    at_rest: int
    peak: int
    flops: int
    evaluations: float


def footprint_of(
    module: DistillationModule, memory: LiveBytes, facts: DataFacts, rows: int, sampled: int, trainer: TrainerSettings
) -> Footprint:
    """Two updates, the second with the optimiser's state of the first, and one step of a sampler.

    Args:
        module: made while `memory` counted. rows: examples of an update. sampled: images of a snapshot, 0 for none.
    """
    optimizer = cast(dict[str, Any], module.configure_optimizers())["optimizer"]
    with FlopCounterMode(display=False) as operations:
        for _ in range(2):
            with precision_of(trainer):
                loss = module.training_step(examples(facts, rows, trainer.device), 0)
            optimizer.zero_grad()  # in Lightning's order: the old gradients are there during the forward pass
            loss.backward()
            optimizer.step()
    at_rest, model = memory.live, module.nets.model
    if sampled:
        evaluate_once(module.phase.sampling.guided(model.eval(), model.null), facts, sampled, trainer)
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return Footprint(
        parameters=sum(weight.numel() for weight in model.parameters()),
        model_bytes=size(model.state_dict().values()),
        checkpoint_bytes=size([*module.state_dict().values(), *states]),
        at_rest=at_rest,
        peak=memory.peak,
        flops=operations.get_total_flops() // 2,
        evaluations=max(1.0, module.evaluations / (2 * rows) - 2),  # a backward pass counts two
    )


@torch.no_grad()
def evaluate_once(
    denoise: Denoise, facts: DataFacts, number: int, trainer: TrainerSettings, device: str | None = None
) -> None:
    """One evaluation of each of `number` examples, on the trainer's device or another."""
    x, label = examples(facts, number, device or trainer.device)
    with precision_of(trainer):
        denoise(x, x.new_zeros(number), label, x.new_zeros(number))


def examples(facts: DataFacts, number: int, device: str) -> Batch:
    """Examples and conditions of the data's shapes."""
    text = facts.text
    label = torch.zeros(number, dtype=torch.long) if text is None else torch.zeros(number, text.tokens, text.features)
    return Batch(torch.zeros(number, *facts.shape, device=device), label.to(device))


def precision_of(trainer: TrainerSettings) -> torch.autocast:
    """The trainer's precision, as a context."""
    return torch.autocast(trainer.device, torch.bfloat16, enabled=trainer.precision != "32-true")


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
