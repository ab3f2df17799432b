"""What shapes tell, against closed forms and against networks that are really there."""

from itertools import chain

import pytest
import torch
from planning import first_phase
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fewstep.estimate.shapes import Footprint, examples, footprint_of, shapes_only, size
from fewstep.system.hardware import current_memory

ROWS = 8


def footprint(*settings: str, rows: int = ROWS) -> Footprint:
    job, build, _ = first_phase(*settings)
    with shapes_only("cpu"):
        return footprint_of(build(), job.facts, rows, job.settings.trainer)


@pytest.mark.parametrize(("stage", "copies"), [("teacher", 5), ("guidance", 6), ("progressive", 5)])
def test_memory_at_rest_is_that_of_all_copies_of_the_weights(stage: str, copies: int) -> None:
    """Student, gradient and two moments; an average where one is kept; the teacher where there is one."""
    found = footprint(f"stage={stage}")
    assert found.at_rest == pytest.approx(copies * 4 * found.parameters, rel=0.02)
    kept = copies - (stage != "teacher") - 1  # no teacher and no gradients
    assert found.checkpoint_bytes == pytest.approx(kept * 4 * found.parameters, rel=0.02)
    assert found.model_bytes == pytest.approx(4 * found.parameters, rel=0.02)


def test_methods_that_train_several_networks_have_them_all() -> None:
    """Student and fake score with gradients and moments, the student's average, and the teacher."""
    found = footprint("stage=dmd2", "stage.w_min=0", "stage.w_max=4")
    assert found.at_rest == pytest.approx(10 * 4 * found.parameters, rel=0.02)


@pytest.mark.parametrize("settings", [("stage=teacher", "dataset=patches"), ("stage=guidance", "dataset=digits")])
def test_operations_and_activations_are_those_of_a_real_update(settings: tuple[str, ...]) -> None:
    found = footprint(*settings)
    job, build, _ = first_phase(*settings)
    module, kept = build(), {}
    networks = [module, *([module.nets.teacher.denoise.denoiser] if module.nets.teacher else [])]
    weights = {t.untyped_storage().data_ptr() for t in chain(*(n.state_dict().values() for n in networks))}

    def keep(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            kept[address] = tensor
        return tensor

    with FlopCounterMode(display=False) as operations:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module.training_step(examples(job.facts, ROWS, "cpu"), 0)
        loss.backward()
    assert found.parameters == sum(weight.numel() for weight in module.nets.model.parameters())
    assert found.flops * ROWS == operations.get_total_flops()
    bytes_kept = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert found.kept * ROWS == pytest.approx(bytes_kept, rel=0.02)
    assert found.model_bytes == size(module.nets.model.state_dict().values())


@pytest.mark.parametrize(("stage", "evaluations"), [("teacher", 1), ("guidance", 3), ("progressive", 3)])
def test_evaluations_are_those_of_student_and_teacher(stage: str, evaluations: int) -> None:
    """Two branches of the guided teacher, or two steps of a student with w."""
    assert footprint(f"stage={stage}").evaluations == evaluations


@pytest.mark.slow
def test_a_network_that_is_too_large_to_be_made_is_not_made() -> None:
    before = current_memory()
    found = footprint("stage=guidance", "dataset=patches", "model=imagenet64")
    assert found.parameters > 200e6
    assert found.at_rest > 6 * 4 * 200e6
    assert found.peak(2048) - found.peak(1024) == pytest.approx(1.15 * 1024 * found.kept, rel=0.01)
    assert found.peak(2048) > 100 * 2**30
    assert current_memory() - before < 2**30


def test_half_precision_and_checkpointing_keep_less() -> None:
    whole = footprint("stage=teacher", "dataset=patches")
    half = footprint("stage=teacher", "dataset=patches", "trainer.precision=bf16-mixed")
    again = footprint("stage=teacher", "dataset=patches", "trainer.gradient_checkpointing=true")
    assert half.kept < 0.8 * whole.kept
    assert again.kept < 0.8 * whole.kept
    assert again.flops > 1.1 * whole.flops  # activations are computed again


def test_values_that_have_to_be_known_are_false_or_one() -> None:
    with shapes_only("cpu"):
        assert not torch.rand(3).any()
        assert torch.rand(3).sum().item() == 1
