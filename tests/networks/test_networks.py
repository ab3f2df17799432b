import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from fewstep.diffusion.prediction import KINDS, PredictionKind
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, Frozen, ResidualMLP, UNet, network_class, with_guidance_input
from fewstep.networks.inputs import sinusoid

CONF = Path(__file__).parents[2] / "conf" / "model"
MLP = {"shape": (1, 8, 8), "num_classes": 10, "width": 16, "num_blocks": 2, "embedding_dim": 8}
POINTS = {"shape": (2,), "num_classes": 3, "width": 16, "num_blocks": 2, "embedding_dim": 8}
UNET = {
    "shape": (1, 8, 8),
    "num_classes": 10,
    "channels": (8, 16),
    "num_blocks": 1,
    "attention": (False, True),
    "head_dim": 8,
    "norm_groups": 4,
    "guidance_dim": 8,
}
NETWORKS = [(ResidualMLP, MLP), (ResidualMLP, POINTS), (UNet, UNET)]
each_network = pytest.mark.parametrize(("kind", "sizes"), NETWORKS, ids=["mlp-images", "mlp-points", "unet"])


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere: layers that start at zero would hide what comes before them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def question(sizes: dict[str, Any], count: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, log-SNR, labels with the null label among them, and w."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, *sizes["shape"], generator=generator)
    label = torch.tensor([0, 1, sizes["num_classes"] - 1, sizes["num_classes"]])[:count]
    return z, CosineSchedule().log_snr(torch.linspace(0, 1, count)), label, torch.linspace(0, 4, count)


@pytest.mark.parametrize("dim", [4, 8, 128, 256])
def test_the_sinusoid_is_that_of_diffusers_pipelines(dim: int) -> None:
    w = torch.tensor([0.0, 0.001, 0.5, 1.0, 3.7, 14.0])
    expected = get_timestep_embedding(1000 * w, dim, flip_sin_to_cos=False, downscale_freq_shift=1)
    rounding = 1e-6 + 2.0**-22 * 1000 * w  # of the angles, which are float32 in both
    assert ((sinusoid(w, dim) - expected).abs() <= rounding[:, None]).all()


@each_network
@pytest.mark.parametrize("guidance_input", [False, True])
def test_outputs_have_the_shape_of_z_and_use_all_inputs(
    kind: type[nn.Module], sizes: dict[str, Any], guidance_input: bool
) -> None:
    network = lively(kind(**sizes, guidance_input=guidance_input))
    z, _, label, w = question(sizes)
    time = torch.linspace(0, 1, 4)
    output = network(z, time, label, w)
    assert output.shape == z.shape
    assert not torch.allclose(output, network(z, time.flip(0), label, w))
    assert not torch.allclose(output, network(z, time, label.flip(0), w))
    assert torch.equal(output, network(z, time, label, w.flip(0))) != guidance_input


@each_network
def test_examples_of_a_batch_do_not_meet(kind: type[nn.Module], sizes: dict[str, Any]) -> None:
    network = lively(kind(**sizes, guidance_input=True))
    z, _, label, w = question(sizes)
    time = torch.linspace(0, 1, 4)
    alone = torch.cat([network(z[i, None], time[i, None], label[i, None], w[i, None]) for i in range(4)])
    torch.testing.assert_close(network(z, time, label, w), alone, rtol=1e-4, atol=1e-4)


@each_network
@pytest.mark.parametrize("prediction", KINDS)
def test_a_new_student_is_the_conditional_teacher_for_every_w(
    kind: type[nn.Module], sizes: dict[str, Any], prediction: PredictionKind
) -> None:
    teacher = Denoiser(lively(kind(**sizes)), prediction)
    student = with_guidance_input(teacher).eval()
    z, log_snr, label, _ = question(sizes)
    expected = teacher(z, log_snr, label, None).v
    assert expected.std() > 0.1  # or the comparison would say nothing
    for w in (0.0, 0.3, 1.0, 4.0, 100.0):
        assert torch.equal(student(z, log_snr, label, torch.full((4,), w)).v, expected)
    assert not teacher.has_guidance_input
    assert student.has_guidance_input
    assert student.prediction == prediction


@each_network
def test_only_the_projection_of_w_is_new_and_it_learns(kind: type[nn.Module], sizes: dict[str, Any]) -> None:
    teacher = Denoiser(lively(kind(**sizes)))
    student = with_guidance_input(teacher)
    old, new = teacher.state_dict(), student.state_dict()
    (key,) = set(new) - set(old)
    assert set(old) < set(new)
    assert not new[key].any()
    assert not key.endswith("bias")
    assert all(torch.equal(new[k], old[k]) and new[k].data_ptr() != old[k].data_ptr() for k in old)

    z, log_snr, label, w = question(sizes)
    projection = dict(student.named_parameters())[key]
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    student(z, log_snr, label, w).v.square().mean().backward()
    assert projection.grad is not None
    assert projection.grad.abs().max() > 0
    optimizer.step()
    assert not torch.equal(student(z, log_snr, label, w).v, student(z, log_snr, label, w + 1).v)


@each_network
@pytest.mark.parametrize("guidance_input", [False, True])
def test_arguments_rebuild_the_network(kind: type[nn.Module], sizes: dict[str, Any], guidance_input: bool) -> None:
    network = lively(kind(**sizes, guidance_input=guidance_input))
    arguments = json.loads(json.dumps(network.arguments))
    rebuilt = network_class(kind.__name__)(**arguments)
    rebuilt.load_state_dict(network.state_dict())
    z, _, label, w = question(sizes)
    time = torch.linspace(0, 1, 4)
    assert torch.equal(rebuilt.eval()(z, time, label, w), network(z, time, label, w))
    assert rebuilt.arguments == arguments


@each_network
def test_a_network_with_a_w_input_needs_w(kind: type[nn.Module], sizes: dict[str, Any]) -> None:
    z, log_snr, label, _ = question(sizes)
    with pytest.raises(AssertionError, match="has a w input"):
        Denoiser(kind(**sizes, guidance_input=True))(z, log_snr, label, None)


@each_network
def test_a_new_network_predicts_nothing_yet(kind: type[nn.Module], sizes: dict[str, Any]) -> None:
    """The last layer of the MLP starts at zero; the U-Net is diffusers' own, whose last layer does not."""
    z, log_snr, label, _ = question(sizes)
    v = Denoiser(kind(**sizes))(z, log_snr, label, None).v
    assert bool(v.any()) == (kind is UNet)


def test_a_frozen_teacher_is_no_module_and_gives_no_gradient() -> None:
    denoiser = Denoiser(lively(ResidualMLP(**MLP, dropout=0.5)).train())
    frozen = Frozen(denoiser)
    assert not isinstance(frozen, nn.Module)
    assert not denoiser.training
    assert not any(p.requires_grad for p in denoiser.parameters())
    z, log_snr, label, w = question(MLP)
    first = frozen(z.requires_grad_(), log_snr, label, w).v
    assert not first.requires_grad
    assert torch.equal(first, frozen(z, log_snr, label, w).v)
    assert frozen.evaluations == 1
    holder = nn.Module()
    holder.teacher = frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert not holder.state_dict()
    assert not list(holder.parameters())


def test_dropout_is_on_in_training_only() -> None:
    network = lively(ResidualMLP(**MLP, dropout=0.5))
    z, _, label, _ = question(MLP)
    time = torch.linspace(0, 1, 4)
    assert torch.equal(network(z, time, label, None), network(z, time, label, None))
    network.train()
    assert not torch.equal(network(z, time, label, None), network(z, time, label, None))


def test_a_unet_of_class_models_has_no_cross_attention() -> None:
    network = UNet(**UNET)
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    assert attentions
    assert not any(module.is_cross_attention for module in attentions)
    assert not any("CrossAttn" in type(module).__name__ for module in network.modules())


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "teacher", "student"),
    [
        ("digits", (1, 8, 8), 10, 858_560, 874_944),
        ("unet", (1, 8, 8), 10, 603_617, 607_713),
        ("mixture", (2,), 5, 158_594, 162_690),
    ],
)
def test_the_default_networks_have_the_stated_sizes(
    name: str, shape: tuple[int, ...], num_classes: int, teacher: int, student: int
) -> None:
    arguments = yaml.safe_load((CONF / f"{name}.yaml").read_text())["network"]
    kind = network_class(arguments.pop("_target_").removeprefix("fewstep.networks."))
    with torch.device("meta"):
        counts = [
            sum(
                p.numel()
                for p in kind(shape=shape, num_classes=num_classes, **arguments, guidance_input=w).parameters()
            )
            for w in (False, True)
        ]
    assert counts == [teacher, student]


@pytest.mark.parametrize(
    ("kind", "sizes", "change", "rule"),
    [
        (ResidualMLP, MLP, {"embedding_dim": 5}, "even and at least 4, got 5"),
        (ResidualMLP, MLP, {"embedding_dim": 2}, "even and at least 4, got 2"),
        (ResidualMLP, MLP, {"width": 0}, "at least 1 .* got width=0"),
        (ResidualMLP, MLP, {"num_blocks": 0}, "at least 1 .* num_blocks=0"),
        (ResidualMLP, MLP, {"dropout": 1.0}, r"dropout in \[0, 1\), got .* dropout=1.0"),
        (UNet, UNET, {"shape": (1, 7, 8)}, r"divisible by 2, got \(1, 7, 8\); choose another model="),
        (UNet, UNET, {"shape": (2,)}, r"needs images \(C, H, W\) .* got \(2,\)"),
        (UNet, UNET, {"attention": (True,)}, r"one value per level \(2\), got \[True\]"),
        (UNet, UNET, {"channels": (6, 16)}, r"multiples of norm_groups.* got channels=\[6, 16\], norm_groups=4"),
        (UNet, UNET, {"norm_groups": 0}, "got .* norm_groups=0"),
        (UNet, UNET, {"head_dim": 0}, "head_dim of at least 1, got .* head_dim=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    kind: type[nn.Module], sizes: dict[str, Any], change: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        kind(**sizes | change)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="one of x, eps, v, got 'score'"):
        Denoiser(ResidualMLP(**MLP), "score")  # pyright: ignore[reportArgumentType]


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of ResidualMLP, UNet, .* got 'os\.system'"):
        network_class("os.system")
