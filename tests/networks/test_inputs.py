"""Scalar inputs beside w: alike for every network, zero at first, in the model file, refused where they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_networks import MLP, UNET
from torch import Tensor, nn
from wrapped import DIT, TEXT, UNET2D, lively, question

from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.data.facts import DataFacts
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import (
    Denoiser,
    DiT,
    Frozen,
    ResidualMLP,
    TextMLP,
    TextUNet,
    UNet,
    UNet2D,
    with_guidance_input,
    with_inputs,
)
from fewstep.networks.adapter import guidance_file, guidance_weights, save_adapter, trained_parameters, with_adapter
from fewstep.networks.denoiser import arguments_of, without_inputs
from fewstep.networks.ema import Average, constant
from fewstep.networks.features import MiddleFeatures
from fewstep.networks.inputs import ScalarInputs, sinusoid
from fewstep.networks.smaller import smaller_student

NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "ResidualMLP": (ResidualMLP, MLP | {"shape": [3, 8, 8]}),
    "UNet": (UNet, UNET | {"shape": [3, 8, 8]}),
    "UNet2D": (UNet2D, UNET2D),
    "DiT": (DiT, DIT),
    "TextUNet": (TextUNet, TEXT),
    "TextMLP": (TextMLP, MLP | {key: TEXT[key] for key in ("shape", "num_classes", "tokens", "features")}),
}
each = pytest.mark.parametrize("name", NETWORKS)
EXTRA = {"s": torch.linspace(0, 1, 4), "d": torch.tensor([0.5, 0.25, 0.125, 1.0])}


def made(name: str, guidance_input: bool = True, extra_inputs: tuple[str, ...] = ()) -> Denoiser:
    """A denoiser of that network with random weights everywhere."""
    kind, sizes = NETWORKS[name]
    return Denoiser(lively(kind(**sizes, guidance_input=guidance_input, extra_inputs=extra_inputs)))


def inputs_of(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, log-SNR, condition and w of four images."""
    z, time, label, w = question(NETWORKS[name][1])
    return z, CosineSchedule().log_snr(time), label, w


def stirred(denoiser: Denoiser) -> Denoiser:
    """Its scalar inputs' weights made random, as training leaves them."""
    generator = torch.Generator().manual_seed(2)
    named = dict(denoiser.network.named_parameters())
    for key in sorted(guidance_weights(denoiser.network)):
        named[key].data.normal_(0, 0.3, generator=generator)
    return denoiser


@each
@pytest.mark.parametrize("guidance_input", [False, True])
def test_new_inputs_change_nothing_whatever_their_values(name: str, guidance_input: bool) -> None:
    parent = made(name, guidance_input)
    student = with_inputs(parent, ("s", "d")).eval()
    expected = parent(*inputs_of(name)).v
    assert expected.std() > 0.1  # or the comparison would say nothing
    for scale in (0.0, 1.0, 100.0):
        extra = {key: scale * value for key, value in EXTRA.items()}
        assert torch.equal(student(*inputs_of(name), extra=extra).v, expected)
    assert (student.has_guidance_input, student.extra_inputs) == (guidance_input, ("s", "d"))
    assert parent.extra_inputs == ()


@each
def test_w_may_come_after_the_others(name: str) -> None:
    parent = stirred(made(name, guidance_input=False, extra_inputs=("s",)))
    student = with_inputs(parent, ("d", "w", "s")).eval()
    assert (student.has_guidance_input, student.extra_inputs) == (True, ("s", "d"))
    z, log_snr, label, w = inputs_of(name)
    expected = parent(z, log_snr, label, extra={"s": EXTRA["s"]}).v
    assert torch.equal(student(z, log_snr, label, 3 * w, extra=EXTRA).v, expected)


@each
def test_every_input_is_seen_apart_from_the_others(name: str) -> None:
    student = stirred(with_inputs(made(name), ("s", "d")))
    z, log_snr, label, w = inputs_of(name)
    output = student(z, log_snr, label, w, extra=EXTRA).v
    others = [
        student(z, log_snr, label, w + 1, extra=EXTRA).v,
        student(z, log_snr, label, w, extra=EXTRA | {"s": EXTRA["s"] + 0.1}).v,
        student(z, log_snr, label, w, extra=EXTRA | {"d": EXTRA["d"] + 0.1}).v,
        student(z, log_snr, label, w, extra={"s": EXTRA["d"], "d": EXTRA["s"]}).v,
    ]
    assert all(not torch.allclose(output, other) for other in others)
    reordered = {"d": EXTRA["d"], "s": EXTRA["s"]}
    assert torch.equal(student(z, log_snr, label, w, extra=reordered).v, output)


@each
def test_they_learn_from_the_first_step(name: str) -> None:
    student = with_inputs(with_guidance_input(made(name, guidance_input=False)), ("s", "d"))
    new = guidance_weights(student.network)
    student(*inputs_of(name), extra=EXTRA).v.square().mean().backward()
    gradients = {key: weight.grad for key, weight in student.network.named_parameters() if key in new}
    assert len(gradients) == 3
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())


@each
def test_the_projection_of_w_keeps_its_name(name: str) -> None:
    plain, both = made(name).state_dict(), made(name, extra_inputs=("s",)).state_dict()
    (place,) = {"network." + key for key in guidance_weights(made(name).network)}
    assert both.keys() - plain.keys() == {place.removesuffix("weight") + "extra.s"}
    assert plain.keys() < both.keys()
    assert place in {
        "network.guidance_projection.weight",
        "network.unet.time_embedding.cond_proj.weight",
        "network.time_features.projection.weight",
    }


def test_they_enter_as_w_does() -> None:
    """One projection alone: s in the place of w computes what w does."""
    by_w, by_s = made("ResidualMLP"), made("ResidualMLP", guidance_input=False, extra_inputs=("s",))
    state = by_w.network.state_dict()
    state["guidance_projection.extra.s"] = state.pop("guidance_projection.weight")
    by_s.network.load_state_dict(state)
    z, log_snr, label, w = inputs_of("ResidualMLP")
    assert torch.equal(by_s(z, log_snr, label, extra={"s": w}).v, by_w(z, log_snr, label, w).v)
    inputs = by_s.network.get_submodule("guidance_projection")
    assert isinstance(inputs, ScalarInputs)
    assert torch.equal(inputs.sinusoids(None, {"s": w}), sinusoid(w, MLP["embedding_dim"]))


@each
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "here s, d, got none"),
        ({"s": EXTRA["s"]}, "here s, d, got s"),
        (EXTRA | {"r": EXTRA["s"]}, "here s, d, got s, d, r"),
    ],
)
def test_a_missing_or_unknown_input_is_refused(name: str, given: dict[str, Tensor] | None, words: str) -> None:
    student = made(name, extra_inputs=("s", "d"))
    with pytest.raises(ValueError, match=f"extra inputs must all be given, {words}; pass extra="):
        student(*inputs_of(name), extra=given)
    with pytest.raises(ValueError, match="here none, got s, d"):
        made(name)(*inputs_of(name), extra=EXTRA)


@pytest.mark.parametrize("names", [("w",), ("s", "s"), ("a.b",), ("",)])
def test_names_that_are_none_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"extra_inputs must be different names other than w, like \[s, r\], got"):
        made("ResidualMLP", extra_inputs=names)


def card_of(denoiser: Denoiser) -> ModelCard:
    arguments = arguments_of(denoiser.network)
    return ModelCard(
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


@each
def test_a_model_file_says_what_the_inputs_are(name: str, tmp_path: Path) -> None:
    student = made(name, extra_inputs=("s", "d"))
    save_model(tmp_path / "model.safetensors", student, card_of(student))
    loaded, _ = load_model(tmp_path / "model.safetensors")
    assert loaded.extra_inputs == ("s", "d")
    assert json.loads(json.dumps(arguments_of(loaded.network)))["extra_inputs"] == ["s", "d"]
    assert torch.equal(loaded(*inputs_of(name), extra=EXTRA).v, student(*inputs_of(name), extra=EXTRA).v)


def test_arguments_of_before_there_were_others_still_load(tmp_path: Path) -> None:
    student = made("UNet2D")
    del student.network.arguments["extra_inputs"]  # pyright: ignore
    save_model(tmp_path / "model.safetensors", student, card_of(student))
    loaded, _ = load_model(tmp_path / "model.safetensors")
    assert (loaded.has_guidance_input, loaded.extra_inputs) == (True, ())
    assert torch.equal(loaded(*inputs_of("UNet2D")).v, student(*inputs_of("UNet2D")).v)


def test_a_student_differs_from_its_teachers_arguments_in_the_inputs_alone() -> None:
    teacher = made("UNet", guidance_input=False)
    student = with_inputs(teacher, ("w", "s"))
    assert without_inputs(arguments_of(student.network)) == arguments_of(teacher.network)


@each
def test_an_adapter_leaves_them_to_be_trained_whole(name: str, tmp_path: Path) -> None:
    student = with_inputs(made(name), ("s", "d"))
    new = guidance_weights(student.network)
    assert len(new) == 3
    adapted = with_adapter(student, rank=2, alpha=2.0)
    trained = {id(parameter) for parameter in trained_parameters(adapted)}
    named = dict(adapted.network.named_parameters())
    assert new <= named.keys()
    assert all(id(named[key]) in trained for key in new)
    assert len(trained) == 3 + sum(".lora_" in key for key in named)
    save_adapter(tmp_path / "adapter.safetensors", adapted, "ab" * 32)
    assert load_file(guidance_file(tmp_path / "adapter.safetensors")).keys() == new


def test_a_smaller_student_keeps_them_and_a_setting_cannot_add_them() -> None:
    parent = made("ResidualMLP", extra_inputs=("s",))
    student = smaller_student(parent, {"width": 8})
    assert (student.has_guidance_input, student.extra_inputs) == (True, ("s",))
    with pytest.raises(ValueError, match="got 'extra_inputs'"):
        smaller_student(parent, {"extra_inputs": ["d"]})


def test_frozen_networks_averages_and_feature_hooks_pass_them_on() -> None:
    student = made("UNet", extra_inputs=("s", "d"))
    expected = student(*inputs_of("UNet"), extra=EXTRA).v
    for copied in (Average(student, constant(0.5)), Frozen(student)):
        assert torch.equal(copied(*inputs_of("UNet"), extra=EXTRA).v, expected)
    assert MiddleFeatures(student).channels == 16


def test_a_text_mlp_has_prompts_and_no_classes() -> None:
    kind, sizes = NETWORKS["TextMLP"]
    for wrong in ({"num_classes": 3}, {"tokens": 0}, {"features": 0}):
        with pytest.raises(ValueError, match="prompts of at least 1 token and 1 feature and no classes, got"):
            kind(**sizes | wrong)
