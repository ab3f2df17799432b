"""TextUNet: Stable Diffusion's U-Net, its native schedule, its empty prompt."""

from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hydra.utils import instantiate
from omegaconf import OmegaConf
from wrapped import FEATURES, TEXT, TOKENS, lively, question, with_config

from fewstep.networks import Denoiser, TextUNet, with_guidance_input

CONF = Path(__file__).parents[2] / "conf" / "model"
SD15 = OmegaConf.load(CONF / "text.yaml")
SD21 = OmegaConf.merge(SD15, OmegaConf.load(CONF / "text_sd21.yaml"))


def test_a_student_is_called_as_stock_pipelines_call_it() -> None:
    """With diffusers' own embedding of w as `timestep_cond`, and its plain state dict in its own class."""
    network = lively(TextUNet(**TEXT, guidance_input=True))
    z, time, prompt, w = question(TEXT)
    stock = UNet2DConditionModel.from_config(dict(network.unet.config))
    stock.load_state_dict(network.unet.state_dict())
    assert stock.config["time_cond_proj_dim"] == TEXT["guidance_dim"]
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    embedded = StableDiffusionPipeline.get_guidance_scale_embedding(None, w, embedding_dim=8)  # pyright: ignore
    expected = stock.eval()(z, 1000 * time, encoder_hidden_states=prompt, timestep_cond=embedded).sample
    torch.testing.assert_close(network(z, time, prompt, w), expected, rtol=1e-3, atol=1e-3)


def test_the_native_schedule_of_the_settings_is_stable_diffusions() -> None:
    native_schedule = instantiate(SD15.native_schedule)
    scheduler = DDIMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alphas = scheduler.alphas_cumprod.double()
    log_snr = (alphas / (1 - alphas)).log()
    torch.testing.assert_close(native_schedule.log_snr((torch.arange(1000) + 1) / 1000), log_snr, rtol=1e-4, atol=1e-4)

    network = lively(TextUNet(**TEXT))
    z, _, prompt, _ = question(TEXT)
    denoiser = Denoiser(network, "eps", native_schedule)
    steps = torch.tensor([0, 10, 500, 999])
    prediction = denoiser(z, log_snr[steps], prompt, None)
    torch.testing.assert_close(prediction.eps, network(z, steps / 1000, prompt, None), rtol=1e-3, atol=1e-3)


def test_the_empty_prompt_is_saved_with_the_weights_and_handed_to_students() -> None:
    network = TextUNet(**TEXT)
    assert not network.empty_prompt.any()
    network.empty_prompt.copy_(torch.ones(TOKENS, FEATURES))
    assert "empty_prompt" in network.state_dict()
    student = with_guidance_input(Denoiser(network))
    assert torch.equal(student.network.empty_prompt, torch.ones(TOKENS, FEATURES))
    assert torch.equal(torch.as_tensor(student.null), torch.ones(TOKENS, FEATURES))


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        (TEXT | {"num_classes": 3}, "prompts and no classes, got num_classes=3; use dataset=text"),
        (with_config(TEXT, cross_attention_dim=12), "must not hold 'cross_attention_dim'"),
        (with_config(TEXT, addition_embed_type="text_time"), "addition_embed_type must be null, got 'text_time'"),
        (with_config(TEXT, class_embed_type="timestep"), "class_embed_type must be null"),
        (TEXT | {"shape": [3, 9, 8]}, r"divisible by 2, got \(3, 9, 8\)"),
    ],
)
def test_what_it_cannot_be_is_refused(sizes: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        TextUNet(**sizes)


@pytest.mark.parametrize(
    ("model", "shape", "features", "count"),
    [(SD15, (4, 64, 64), 768, 859_520_964), (SD21, (4, 96, 96), 1024, 865_910_724)],
    ids=["sd15", "sd21"],
)
def test_stable_diffusions_sizes(model, shape: tuple[int, ...], features: int, count: int) -> None:
    arguments = {str(key): value for key, value in OmegaConf.to_container(model.network).items() if key != "_target_"}
    with torch.device("meta"):
        counts = [
            sum(
                p.numel()
                for p in TextUNet(
                    shape=shape, tokens=77, features=features, **arguments, guidance_input=guidance_input
                ).parameters()
            )
            for guidance_input in (False, True)
        ]
    assert counts == [count, count + 256 * 320]
