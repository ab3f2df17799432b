"""What a network needs, worked out without allocating it: tensors of shapes alone go through it once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fewstep.networks import Denoiser
from fewstep.networks.memory import checkpoint_gradients
from fewstep.runs.build import Setup

# Copies of the weights while a stage trains. Student, its gradient and Adam's two moments; the average; the teacher.
TRAINED, AVERAGED, TAUGHT = 4, 1, 1
# Evaluations of a step in units of a forward pass: with its gradient three; two more of the teacher.
FORWARDS = {"teacher": 3, "guidance": 5, "progressive": 5, "encoder": 5}
SPARE = 1.15  # of activations: what the gradient's first layers need beside what the forward pass has kept


@dataclass(frozen=True)
class Footprint:
    """Of one network, told of it by its shapes.

    Args:
        parameters: their number. weight_bytes: of parameters and buffers.
        kept: bytes of activations that the gradient needs: `fixed` ones and so many for each example.
        flops: of one evaluation of one example.
    """

    parameters: int
    weight_bytes: int
    fixed: int
    kept: int
    flops: int

    @classmethod
    def of(cls, setup: Setup, *, guidance_input: bool) -> "Footprint":
        """The footprint of the settings' network, in their precision and with their gradient checkpointing."""
        with FakeTensorMode():
            denoiser = setup.built(guidance_input)
            if setup.settings.gradient_checkpointing:
                checkpoint_gradients(denoiser.network)
                denoiser.train()
            one, two = (passed(denoiser, setup, count) for count in (1, 2))
            parameters = sum(p.numel() for p in denoiser.parameters())
            held = sum(t.numel() * t.element_size() for t in (*denoiser.parameters(), *denoiser.buffers()))
        slope = max(0, two[0] - one[0])
        return cls(parameters, held, max(0, one[0] - slope), slope, max(0, two[1] - one[1]))

    def training(self, stage: str, rows: int, *, averaged: bool) -> int:
        """Bytes that a training step of `rows` examples holds at its peak, the process itself aside."""
        copies = TRAINED + AVERAGED * averaged + TAUGHT * (stage != "teacher")
        return self.weight_bytes * copies + round(SPARE * (self.fixed + rows * self.kept))

    def step_flops(self, stage: str, rows: int) -> int:
        """Floating-point operations of an update."""
        return FORWARDS[stage] * rows * self.flops


def passed(denoiser: Denoiser, setup: Setup, count: int) -> tuple[int, int]:
    """Bytes kept for the gradient, and operations, of one evaluation of `count` examples."""
    facts, kept = setup.facts, {}
    weights = {t.untyped_storage()._cdata for t in (*denoiser.parameters(), *denoiser.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    label = torch.zeros(count, dtype=torch.long)
    if facts.text is not None:
        label = torch.zeros(count, facts.text.tokens, facts.text.features)
    z, log_snr, w = torch.randn(count, *facts.shape), torch.zeros(count), torch.ones(count)
    precise = setup.settings.precision == "32-true"
    with (
        FlopCounterMode(display=False) as operations,
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=not precise),
    ):
        denoiser(z, log_snr, label, w if denoiser.has_guidance_input else None)
    return sum(storage.nbytes() for storage in kept.values()), operations.get_total_flops()
