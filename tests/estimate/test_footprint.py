"""What shapes tell, against networks that are really there."""

import pytest
import torch
from running import config_of
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fewstep.estimate.footprint import Footprint
from fewstep.runs.build import Setup
from fewstep.runs.pipeline import prepare, stage_of


def setup_of(*settings: str) -> Setup:
    config = config_of(*settings)
    prepare(config)
    return Setup.of(stage_of(config, "guidance"))


@pytest.mark.parametrize("dataset", ["digits", "patches"])
def test_parameters_operations_and_what_the_gradient_keeps(dataset: str) -> None:
    setup = setup_of(f"dataset={dataset}")
    shapes, network = Footprint.of(setup, guidance_input=True), setup.network(guidance_input=True)
    assert shapes.parameters == sum(p.numel() for p in network.parameters())
    count, kept = 4, {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    x, label = (part.clone() for part in setup.examples(count))  # not views of the whole held-out part
    with saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as operations:
        network(x, torch.zeros(count), label, torch.ones(count))
    assert shapes.flops == pytest.approx(operations.get_total_flops() / count, rel=0.01)
    assert shapes.fixed + count * shapes.kept == pytest.approx(sum(s.nbytes() for s in kept.values()), rel=0.05)


def test_it_knows_the_network_that_is_too_large_to_be_made() -> None:
    setup = setup_of("dataset=patches", "model=imagenet64")
    large = Footprint.of(setup, guidance_input=True)
    assert large.parameters > 200e6
    assert large.weight_bytes >= 4 * large.parameters
    small, whole = (large.training("guidance", rows, averaged=True) for rows in (1, 2048))
    assert small > 6 * large.weight_bytes  # student, gradient, two moments, average, teacher
    assert whole > 100 * 2**30


def test_half_precision_and_checkpointing_keep_less() -> None:
    whole = Footprint.of(setup_of("dataset=patches"), guidance_input=True)
    half = Footprint.of(setup_of("dataset=patches", "trainer.precision=bf16-mixed"), guidance_input=True)
    again = Footprint.of(setup_of("dataset=patches", "trainer.gradient_checkpointing=true"), guidance_input=True)
    assert half.kept < 0.8 * whole.kept
    assert again.kept < 0.8 * whole.kept
