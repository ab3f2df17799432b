"""stage.adapter=lora: little is trained, the merged student is the adapted one, and diffusers reads the adapter."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from running import TINY, Commands, files_below, run_as_composed
from safetensors.torch import load_file
from small_methods import SCHEDULE, fit, module, small
from small_methods import network as mlp
from torch import Tensor, nn

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import uniform_times
from fewstep.networks import Denoiser, Frozen, UNet, with_guidance_input
from fewstep.networks.adapter import (
    adapter_file,
    adapter_tensors,
    check_adapter,
    guidance_file,
    guidance_weights,
    merged,
    save_adapter,
    trained_parameters,
    with_adapter,
)
from fewstep.networks.inputs import sinusoid

pytest_plugins = ("running",)
LORA = ("stage.adapter=lora", "stage.adapter_rank=2", "stage.adapter_alpha=4")
FAST = ("trainer.max_images=256", "stage.training.batch_size=32", "stage.training.warmup_images=0")


def unet() -> Denoiser:
    torch.manual_seed(0)
    made = UNet(
        shape=(1, 8, 8),
        num_classes=3,
        channels=[8, 16],
        num_blocks=1,
        attention=[False, True],
        head_dim=4,
        norm_groups=4,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Denoiser(made).eval()


def stirred(denoiser: Denoiser) -> Denoiser:
    """Its trained weights made random, as training leaves them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained_parameters(denoiser):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return denoiser.eval()


def samples(denoiser: Denoiser) -> Tensor:
    shape = denoiser.network.arguments["shape"]
    noise = torch.randn(6, *shape, generator=torch.Generator().manual_seed(2))
    label, w = torch.arange(6) % 3, torch.linspace(0, 4, 6)
    return sample(Frozen(copy.deepcopy(denoiser)), noise, schedule=SCHEDULE, times=uniform_times(4), label=label, w=w)


@pytest.mark.parametrize("make", [mlp, unet], ids=["mlp", "unet"])
def test_before_training_the_student_is_the_teacher_and_merged_it_is_itself(make) -> None:
    student = with_guidance_input(make())
    plain = samples(student)
    adapted = with_adapter(copy.deepcopy(student), rank=2, alpha=4.0)
    assert torch.equal(samples(adapted), plain)
    changed = samples(stirred(adapted))
    assert float((changed - plain).abs().max()) > 1e-2
    alone = merged(adapted)
    assert alone.network.state_dict().keys() == student.network.state_dict().keys()
    torch.testing.assert_close(samples(alone), changed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(samples(adapted), changed, rtol=0, atol=0)  # merging left it as it was


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_only_the_adapter_and_the_w_input_change(ema_decay: float) -> None:
    teacher = mlp()
    student = with_adapter(with_guidance_input(teacher), rank=2, alpha=2.0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    made = module(small("guidance", {"ema_decay": ema_decay}), student, Guided(Frozen(teacher), 3))
    fit(made)
    for model in (made.student, made.nets.model):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert "network.guidance_projection.weight" in changed
        others = changed - {"network.guidance_projection.weight"}
        assert others
        assert all(".lora_A." in name or ".lora_B." in name for name in others)
        lora = {name for name in before if ".lora_" in name}
        assert others == lora  # and all of it
    optimised = made.trainer.optimizers[0].param_groups[0]["params"]
    assert sum(weight.numel() for weight in optimised) == sum(before[name].numel() for name in changed)


def test_without_an_adapter_everything_is_trained() -> None:
    student = with_guidance_input(mlp())
    assert len(trained_parameters(student)) == len(list(student.parameters()))
    assert guidance_weights(student.network) == {"guidance_projection.weight"}
    assert guidance_weights(mlp().network) == set()
    assert guidance_weights(with_guidance_input(unet()).network) == {"unet.time_embedding.cond_proj.weight"}


class Stock(nn.Module):
    """diffusers' own U-Net, called as its pipelines call it."""

    def __init__(self, unet: nn.Module, student: Denoiser) -> None:
        super().__init__()
        self.unet, self.arguments = unet, student.network.arguments

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor) -> Tensor:
        cond = sinusoid(w, 256)  # what the pipelines make of w, to rounding
        return self.unet(z, 1000 * time, None, class_labels=label, timestep_cond=cond).sample


def test_a_stock_unet_reads_the_adapter(tmp_path: Path) -> None:
    base = unet()
    student = stirred(with_adapter(with_guidance_input(base), rank=2, alpha=5.0))
    path = adapter_file(tmp_path / "model-4.safetensors")
    save_adapter(path, student, "ab" * 32)
    assert files_below(tmp_path) == ["adapter-4-w.safetensors", "adapter-4.safetensors"]

    base.network.unet.save_pretrained(tmp_path / "unet")
    own = {"time_cond_proj_dim": 256, "low_cpu_mem_usage": False}  # its w input is not in the base's file
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "unet", **own).eval()
    assert isinstance(stock, nn.Module)
    w_input = {name.removeprefix("unet."): value for name, value in load_file(guidance_file(path)).items()}
    assert stock.load_state_dict(w_input, strict=False).unexpected_keys == []
    stock.load_lora_adapter(load_file(path), prefix="unet")
    torch.testing.assert_close(samples(Denoiser(Stock(stock, student))), samples(student), rtol=1e-5, atol=1e-5)


def test_the_adapters_of_a_chain_add_up(tmp_path: Path) -> None:
    first = stirred(with_adapter(with_guidance_input(unet()), rank=2, alpha=2.0))
    save_adapter(tmp_path / "one", first, "ab" * 32)
    second = stirred(with_adapter(merged(first), rank=3, alpha=6.0))
    save_adapter(tmp_path / "two", second, "cd" * 32, older=tmp_path / "one")
    both = load_file(tmp_path / "two")
    weights, start = merged(second).network.state_dict(), unet().network.state_dict()
    for name, a in both.items():
        if ".lora_A." in name:
            assert a.shape[0] == 2 + 3
            b = both[name.replace(".lora_A.", ".lora_B.")]
            target = name.replace(".lora_A.", ".")
            change = (b.flatten(1) @ a.flatten(1)).reshape(start[target].shape)
            torch.testing.assert_close(start[target] + change, weights[target], rtol=1e-4, atol=1e-5)
    save_adapter(tmp_path / "alone", second, "cd" * 32, older=tmp_path / "none")
    assert load_file(tmp_path / "alone").keys() == adapter_tensors(second).keys()


@pytest.mark.parametrize(
    ("adapter", "rank", "alpha", "rule"),
    [
        ("dora", 4, 4.0, "null or one of lora, got 'dora'"),
        ("lora", 0, 4.0, "at least 1 .* got 0 and 4.0"),
        ("lora", 1.5, 4.0, "whole number .* got 1.5"),
        ("lora", 4, 0.0, "adapter_alpha positive, got 4 and 0.0"),
        ("lora", 4, float("nan"), "adapter_alpha positive, got 4 and nan"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_adapters_are_refused(adapter, rank, alpha, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        check_adapter(adapter, rank, alpha)


# As typed -----------------------------------------------------------------------------------------------------------


def run_stage(outputs: Path, *settings: str) -> None:
    run_as_composed(f"outputs={outputs}", *TINY, *FAST, *settings)


def test_a_chain_of_adapters_from_the_command_line(commands: Commands, tmp_path: Path) -> None:
    run_stage(tmp_path, "stage=teacher")
    run_stage(tmp_path, "stage=guidance", *LORA)
    run_stage(tmp_path, "stage=progressive", "stage.ladder=[4,2]", *LORA)
    (guided,), (rung,) = tmp_path.glob("*/guidance/*"), tmp_path.glob("*/progressive/*")
    assert {"model.safetensors", "adapter.safetensors", "adapter-w.safetensors"} <= set(files_below(guided))
    assert {"model-2.safetensors", "adapter-2.safetensors", "adapter-2-w.safetensors"} <= set(files_below(rung))
    one, both = load_file(guided / "adapter.safetensors"), load_file(rung / "adapter-2.safetensors")
    assert {value.shape[0] for name, value in one.items() if ".lora_A." in name} == {2}
    assert {value.shape[0] for name, value in both.items() if ".lora_A." in name} == {4}

    out = tmp_path / "exported"
    result = commands.fewstep("export", rung / "model-2.safetensors", out, "--format", "safetensors")
    assert result.status == 0, result
    assert files_below(out) == [
        "README.md",
        "adapter-2-w.safetensors",
        "adapter-2.safetensors",
        "fewstep.json",
        "model.safetensors",
    ]
    assert "low-rank adapter" in (out / "README.md").read_text()
    commands.train("stage=guidance", "stage.adapter=dora", f"outputs={tmp_path}").is_one_error("null or one of lora")
    exact = ("stage=guidance", "dataset=mixture", "teacher=exact", "stage.adapter=lora", *FAST, f"outputs={tmp_path}")
    commands.train(*exact).is_one_error("teacher=exact has none")


def test_an_interrupted_adapter_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.training.checkpointing import SaveCheckpoint
    from fewstep.training.module import DistillationModule

    run_stage(tmp_path, "stage=teacher")
    (teacher,) = tmp_path.glob("*/teacher/*/model.safetensors")
    settings = ("stage=guidance", f"teacher={teacher}", "trainer.checkpoint_seconds=0", *LORA)
    run_stage(tmp_path / "whole", *settings)

    step, save = DistillationModule.training_step, SaveCheckpoint.on_train_end

    def stopped(self: DistillationModule, *given: Any) -> Tensor:
        if self.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(DistillationModule, "training_step", stopped)
        patched.setattr(SaveCheckpoint, "on_train_end", lambda *_: None)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_stage(tmp_path / "halves", *settings)
    assert SaveCheckpoint.on_train_end is save
    (last,) = (tmp_path / "halves").glob("*/guidance/*/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 4
    run_stage(tmp_path / "halves", *settings)
    for name in ("model.safetensors", "adapter.safetensors", "adapter-w.safetensors"):
        (whole,), (halves,) = ((tmp_path / part).glob(f"*/guidance/*/{name}") for part in ("whole", "halves"))
        expected, found = load_file(whole), load_file(halves)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
