"""An adapter file is what diffusers and PEFT load: the exported backbone with it makes what our adapted model makes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from exporting import write_model
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

import fewstep
from fewstep.artifacts.adapter_file import AdapterCard, save_adapter_file
from fewstep.export.folder import Trial, export
from fewstep.networks.adapter import adapter_tensors, is_adapters, with_adapter

STRENGTH = 1.5


def write_adapter(path: Path, model: fewstep.Model) -> None:
    """Random factors of every layer, as training leaves them, of rank 3 and alpha 2."""
    adapted = with_adapter(model.denoiser, rank=3, alpha=2.0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if is_adapters(name):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    card = AdapterCard(
        kind="style",
        about="noise",
        data="tiny",
        network="any",
        base_method="teacher",
        base_sha256="ab" * 32,
        rank=3,
        alpha=2.0,
        eta=None,
        images=0,
        seed=0,
    )
    save_adapter_file(path, adapter_tensors(adapted), card)


def load_into(backbone: Any, prefix: str, adapter: Path) -> None:
    """By diffusers' own loader where the class has one, else by PEFT's, as docs/control.md says."""
    state = load_file(adapter)
    if hasattr(backbone, "load_lora_adapter"):
        backbone.load_lora_adapter(state, prefix=prefix)
        backbone.set_adapters(backbone.active_adapters(), STRENGTH)
        return
    state = {name.removeprefix(f"{prefix}."): value for name, value in state.items()}
    layers = sorted({name.partition(".lora_")[0] for name in state})
    rank = len(state[f"{layers[0]}.lora_A.weight"])
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=STRENGTH * rank, target_modules=layers), backbone)  # pyright: ignore[reportArgumentType]
    assert not set_peft_model_state_dict(backbone, state).unexpected_keys


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UNet", "UNet2D", "DiT"])
def test_the_exported_backbone_loads_it(tmp_path: Path, name: str) -> None:
    file, adapter = write_model(tmp_path / "model-4.safetensors", name), tmp_path / "adapter.safetensors"
    write_adapter(adapter, fewstep.load(file))
    export(file, tmp_path / "exported")
    pipe: Any = DiffusionPipeline.from_pretrained(
        tmp_path / "exported", custom_pipeline=str(tmp_path / "exported"), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    plain = fewstep.load(file)
    trial = Trial.of(plain)

    def made() -> Tensor:
        own = {"class_labels": trial.label, "guidance_scale": 1 + trial.w, "latents": trial.noise}
        return pipe(**own, num_inference_steps=trial.steps, output_type="latent").images

    torch.testing.assert_close(made(), trial.of_ours(plain), rtol=1e-5, atol=1e-5)
    prefix = "transformer" if name == "DiT" else "unet"
    backbone = getattr(pipe, prefix)
    assert isinstance(backbone, nn.Module)
    load_into(backbone, prefix, adapter)
    expected = trial.of_ours(fewstep.with_adapters(plain, [(adapter, STRENGTH)]))
    assert float((expected - trial.of_ours(plain)).abs().max()) > 0.05
    torch.testing.assert_close(made(), expected, rtol=1e-5, atol=1e-5)
