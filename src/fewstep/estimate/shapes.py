"""Memory and operations of training, from tensors that have shapes and no values."""

import ctypes
import gc
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fewstep.data.batch import Batch, Pairs
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Denoise
from fewstep.networks.memory import denoisers_in
from fewstep.training.module import DistillationModule
from fewstep.training.settings import TrainerSettings

MOST_STEPS = 1000  # of which one has the most roles that move
SPARE = 1.15  # of activations: what the backward pass holds besides those of the forward pass


class AssumedValues(TorchDispatchMode):
    """Where tensors have no values, one that has to be known, as in `if x.any()`, is False or 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            return False if args[0].dtype == torch.bool else 1


@contextmanager
def shapes_only(device: str) -> Iterator[None]:
    """Make tensors without values inside the block, on `device` by default.

    They are never freed: torch 2.15 corrupts its memory where a cycle with such tensors is collected.
    """
    fake, collects = FakeTensorMode(allow_non_fake_inputs=True), gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(), fake, torch.device(device), AssumedValues():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield
    finally:
        for each in gc.get_objects():
            if issubclass(type(each), FakeTensor):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
        if collects:
            gc.enable()


@dataclass(frozen=True)
class Footprint:
    """What one process needs in a phase.

    Attributes:
        parameters: of the model that the phase makes. model_bytes, checkpoint_bytes: of its files.
        at_rest: bytes of networks, gradients and the optimiser's state.
        kept: bytes of activations for the gradient, of each example.
        flops: floating-point operations of an update, for each example.
        evaluations: network evaluations of an update for each example, without backward passes.
    """

    parameters: int
    model_bytes: int
    checkpoint_bytes: int
    at_rest: int
    kept: float
    flops: float
    evaluations: float

    def peak(self, rows: int) -> int:
        """Bytes at the peak of an update of so many examples."""
        return self.at_rest + round(SPARE * self.kept * rows)


def footprint_of(module: DistillationModule, facts: DataFacts, rows: int, trainer: TrainerSettings) -> Footprint:
    """One update of `rows` examples by a module without values; called inside `shapes_only`."""
    networks = [module, *denoisers_in(module.nets.teacher)]
    weights = {id_of(tensor): tensor for network in networks for tensor in network.state_dict(keep_vars=True).values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in weights:
            kept[id_of(tensor)] = tensor  # and its storage with it: no other one gets its address
        return tensor

    optimizer = cast(dict[str, Any], module.configure_optimizers())["optimizer"]
    with FlopCounterMode(display=False) as operations:
        with saved_tensors_hooks(keep, lambda tensor: tensor), precision_of(trainer):
            losses = module.losses_at(all_move(module), training_examples(module, facts, rows, trainer.device))
            loss = torch.stack([each.error.mean() for each in losses.values()]).sum()
        loss.backward()
        optimizer.step()
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    model = module.nets.model
    return Footprint(
        parameters=sum(weight.numel() for weight in model.parameters()),
        model_bytes=size(model.state_dict().values()),
        checkpoint_bytes=size([*module.state_dict().values(), *states]),
        at_rest=size([*weights.values(), *trained, *states]),  # the trained ones again for their gradients
        kept=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / rows,
        flops=operations.get_total_flops() / rows,
        evaluations=max(1.0, module.evaluated / rows - 2),  # a backward pass counts two
    )


def all_move(module: DistillationModule) -> int:
    """An optimiser step in which as many roles move as in any, which takes the most."""
    return max(range(MOST_STEPS), key=lambda step: len(module.method.moving(step)))


def id_of(tensor: Tensor) -> int:
    """Of the storage."""
    return tensor.untyped_storage()._cdata


@torch.no_grad()
def evaluate_once(denoise: Denoise, facts: DataFacts, number: int, trainer: TrainerSettings) -> None:
    """One evaluation of each of `number` examples."""
    x, label = examples(facts, number, trainer.device)
    inputs = next(denoisers_in(denoise)).extra_inputs
    given = {"extra": dict.fromkeys(inputs, x.new_zeros(number))} if inputs else {}
    with precision_of(trainer):
        cast(Any, denoise)(x, x.new_zeros(number), label, x.new_zeros(number), **given)


def examples(facts: DataFacts, number: int, device: str) -> Batch:
    """Examples and conditions of the data's shapes."""
    x, embedding = torch.zeros(number, *facts.shape, device=device), facts.embedding
    if facts.degraded is not None:
        return Batch(x, x)
    label = torch.zeros(number, dtype=torch.long) if embedding is None else torch.zeros(number, *embedding)
    return Batch(x, label.to(device))


def training_examples(module: DistillationModule, facts: DataFacts, number: int, device: str) -> Batch | Pairs:
    """What a training step of the module is given, of the data's shapes."""
    x, label = examples(facts, number, device)
    return Pairs(x, label, x, x.new_zeros(number)) if module.method.inputs == "pairs" else Batch(x, label)


def precision_of(trainer: TrainerSettings) -> torch.autocast:
    """The trainer's precision, as a context."""
    return torch.autocast(trainer.device, torch.bfloat16, enabled=trainer.precision != "32-true")


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
