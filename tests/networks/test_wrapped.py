"""What holds for every network that wraps a diffusers model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn
from wrapped import FEATURES, TOKENS, WRAPPED, lively, question, with_config

from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.data.facts import DataFacts
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, Frozen, ResidualMLP, network_class, with_guidance_input
from fewstep.networks.memory import checkpoint_gradients, denoisers_in, to_channels_last

each = pytest.mark.parametrize("name", list(WRAPPED))
MODEL = {"UNet2D": "unet", "TextUNet": "unet", "DiT": "transformer"}


def stock(network: nn.Module) -> nn.Module:
    """diffusers' own class, built from the config that the wrapped model shows, with its weights."""
    inner = getattr(network, MODEL[type(network).__name__])
    model = type(inner).from_config(dict(inner.config))
    model.load_state_dict(inner.state_dict())  # strict: not a name is another
    return model.eval()


@each
@pytest.mark.parametrize("learned_variance", [False, True])
def test_outputs_are_those_of_the_stock_model(name: str, learned_variance: bool) -> None:
    kind, sizes = WRAPPED[name]
    if learned_variance:
        sizes = with_config(sizes, out_channels=6)
    network = lively(kind(**sizes))
    z, time, label, _ = question(sizes)
    model = stock(network)
    if name == "text":
        expected = model(z, 1000 * time, encoder_hidden_states=label).sample
    else:
        expected = model(z, 1000 * time, class_labels=label).sample
    assert expected.shape[1] == (6 if learned_variance else 3)
    assert expected.std() > 0.1
    assert torch.equal(network(z, time, label, None), expected[:, :3])


@each
@pytest.mark.parametrize("guidance_input", [False, True])
def test_all_inputs_are_used(name: str, guidance_input: bool) -> None:
    kind, sizes = WRAPPED[name]
    network = lively(kind(**sizes, guidance_input=guidance_input))
    z, time, label, w = question(sizes)
    output = network(z, time, label, w)
    assert output.shape == z.shape
    assert not torch.allclose(output, network(z, time.flip(0), label, w))
    assert not torch.allclose(output, network(z, time, label.flip(0), w))
    assert torch.equal(output, network(z, time, label, w.flip(0))) != guidance_input
    if guidance_input:
        with pytest.raises(AssertionError, match="has a w input"):
            network(z, time, label, None)


@each
def test_examples_of_a_batch_do_not_meet(name: str) -> None:
    kind, sizes = WRAPPED[name]
    network = lively(kind(**sizes, guidance_input=True))
    inputs = question(sizes)
    alone = torch.cat([network(*(part[i, None] for part in inputs)) for i in range(4)])
    torch.testing.assert_close(network(*inputs), alone, rtol=1e-4, atol=1e-4)


@each
def test_a_new_student_is_its_teacher_for_every_w_and_learns_w(name: str) -> None:
    kind, sizes = WRAPPED[name]
    teacher = Denoiser(lively(kind(**sizes)))
    student = with_guidance_input(teacher).eval()
    z, time, label, w = question(sizes)
    log_snr = CosineSchedule().log_snr(time)
    expected = teacher(z, log_snr, label, None).v
    for value in (0.0, 0.3, 4.0, 100.0):
        assert torch.equal(student(z, log_snr, label, torch.full((4,), value)).v, expected)

    (new,) = set(student.state_dict()) - set(teacher.state_dict())
    assert new.endswith("weight")
    student(z, log_snr, label, w).v.square().mean().backward()
    projection = dict(student.named_parameters())[new]
    assert projection.grad is not None
    assert projection.grad.abs().max() > 0


@each
def test_the_null_condition_is_one_of_its_own(name: str) -> None:
    kind, sizes = WRAPPED[name]
    teacher = Frozen(Denoiser(lively(kind(**sizes))))
    z, time, label, w = question(sizes)
    log_snr = CosineSchedule().log_snr(time)
    if name == "text":
        assert isinstance(teacher.null, torch.Tensor)
        assert teacher.null.shape == (TOKENS, FEATURES)
        null = teacher.null.expand_as(label)
    else:
        assert teacher.null == sizes["num_classes"]
        null = torch.full_like(label, sizes["num_classes"])
    conditional, unconditional = (teacher(z, log_snr, condition, None).v for condition in (label, null))
    guided = Guided(teacher, teacher.null)(z, log_snr, label, w).v
    expected = conditional + w[:, None, None, None] * (conditional - unconditional)
    torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-3)


def saved(path: Path, network: nn.Module) -> Path:
    arguments = network.arguments
    assert isinstance(arguments, dict)
    card = ModelCard(
        method="guidance",
        data=DataFacts("somewhere", tuple(arguments["shape"]), arguments["num_classes"], -1.0, 1.0),
        prediction="v",
        schedule=CosineSchedule(),
        sampling=Sampling(guidance="input"),
        w_min=0.0,
        w_max=4.0,
        images=0,
        parents=(),
    )
    save_model(path, Denoiser(network), card)
    return path


@each
def test_a_model_file_gives_the_same_network_back(name: str, tmp_path: Path) -> None:
    kind, sizes = WRAPPED[name]
    network = lively(kind(**sizes, guidance_input=True))
    denoiser, _ = load_model(saved(tmp_path / "model.safetensors", network))
    loaded = denoiser.network
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert torch.equal(loaded(*question(sizes)), network(*question(sizes)))
    assert loaded.arguments == network.arguments == json.loads(json.dumps(network.arguments))
    assert network_class(kind.__name__) is kind


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("unet2d-biggan", "layers_per_block", 10**9),
        ("text", "layers_per_block", [1, 10**9]),
        ("text", "transformer_layers_per_block", [[1, 10**9], [1]]),
        ("dit", "num_layers", 10**9),
    ],
)
def test_a_file_cannot_ask_for_more_blocks_than_it_holds(name: str, key: str, value: Any, tmp_path: Path) -> None:
    kind, sizes = WRAPPED[name]
    network = lively(kind(**sizes, guidance_input=True))
    network.arguments["config"][key] = value  # pyright: ignore
    with pytest.raises(ValueError, match="1000000000 blocks are more than the"):
        load_model(saved(tmp_path / "model.safetensors", network))


@each
@pytest.mark.parametrize("way", [checkpoint_gradients, to_channels_last])
def test_saving_memory_leaves_outputs_and_gradients_as_they_are(name: str, way: Any) -> None:
    kind, sizes = WRAPPED[name]
    networks = [lively(kind(**with_config(sizes, dropout=0.0), guidance_input=True)).train() for _ in range(2)]
    way(networks[1])
    outputs = [network(*question(sizes)) for network in networks]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for output in outputs:
        output.square().mean().backward()
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-3 * float(one.grad.abs().max() + 1e-6))


@each
def test_activations_inside_blocks_are_computed_again(name: str) -> None:
    """The test above would pass too if nothing had been done."""
    kind, sizes = WRAPPED[name]
    kept = []
    for way in (lambda network: None, checkpoint_gradients):
        network, size = kind(**sizes).train(), 0
        way(network)

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(*question(sizes))
        kept.append(size)
    assert kept[1] < 0.6 * kept[0]


@each
def test_channels_last_is_how_convolutions_lie_afterwards(name: str) -> None:
    kind, sizes = WRAPPED[name]
    network = kind(**sizes)
    to_channels_last(network)
    weights = [p for p in network.parameters() if p.ndim == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@each
def test_attention_is_torchs_own(name: str) -> None:
    kind, sizes = WRAPPED[name]
    attentions = [module for module in kind(**sizes).modules() if isinstance(module, Attention)]
    assert attentions
    assert all(isinstance(attention.processor, AttnProcessor2_0) for attention in attentions)


@each
def test_it_runs_in_bfloat16(name: str) -> None:
    kind, sizes = WRAPPED[name]
    network = lively(kind(**sizes, guidance_input=True))
    expected = network(*question(sizes))
    z, time, label, w = question(sizes)
    label = label.bfloat16() if label.is_floating_point() else label
    output = network.bfloat16()(z.bfloat16(), time, label, w)  # time and w are angles a thousand times as large
    assert output.dtype == torch.bfloat16
    assert (output - expected).square().mean().sqrt() < 0.3 * expected.std()


def test_only_diffusers_blocks_are_checkpointed() -> None:
    mlp = ResidualMLP(shape=(2,), num_classes=3, width=8, num_blocks=1, embedding_dim=8)
    with pytest.raises(ValueError, match="needs a network of diffusers, and ResidualMLP is none"):
        checkpoint_gradients(mlp)
    to_channels_last(mlp)


def test_denoisers_are_found_in_teachers() -> None:
    denoiser = Denoiser(ResidualMLP(shape=(2,), num_classes=3, width=8, num_blocks=1, embedding_dim=8))
    assert list(denoisers_in(denoiser)) == [denoiser]
    assert list(denoisers_in(Guided(Frozen(denoiser), denoiser.null))) == [denoiser]
    assert list(denoisers_in(lambda z: z)) == []
    assert list(denoisers_in(None)) == []


@each
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"layers": 3}, "'layers' is none; remove it"),
        ({"sample_size": 8}, "must not hold 'sample_size', which follows"),
        ({"out_channels": 4}, "out_channels must be 3, or 6 for a model that learns its variance too, got 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name: str, change: dict[str, Any], rule: str) -> None:
    kind, sizes = WRAPPED[name]
    with pytest.raises(ValueError, match=rule):
        kind(**with_config(sizes, **change))
