"""Exported folders do what our sampler does, in the libraries of those who do not have fewstep."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from exporting import BETAS, COSINE, TRAINED, ZERO_SNR, companions, write_model
from safetensors.torch import load_file
from torch import Tensor, nn

import fewstep
from fewstep.artifacts.model_file import save_model
from fewstep.data.facts import LatentFacts, TextFacts
from fewstep.diffusion.sampler import SAMPLERS, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import alpha
from fewstep.export.folder import export
from fewstep.inference.model import Model
from fewstep.networks import with_guidance_input
from fewstep.networks.adapter import adapter_file, merged, save_adapter, trained_parameters, with_adapter
from fewstep.system.seeds import starting_noise

PROMPTS = ["a temple", "two flowers, in a vase"]
STOCHASTIC = Sampling.uniform(4, sampler="stochastic", guidance="input")
UNEVEN = Sampling(times=(1.0, 0.8, 0.3, 0.1), guidance="input")
RENOISE = Sampling(sampler="renoise", times=(1.0, 0.8, 0.3, 0.1), guidance="input")
UNGUIDED = Sampling(sampler="renoise", times=(1.0, 0.8, 0.3, 0.1), guidance="none")
EVEN_LEVELS = Sampling(sampler="renoise", times=(1.0, 0.75, 0.5, 0.25), guidance="input")
LCM_LEVELS = Sampling(sampler="renoise", times=(1.0, 0.76, 0.5, 0.26), guidance="input")
Companions = tuple[LatentFacts, TextFacts]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Companions:
    return companions(tmp_path_factory.mktemp("companions"))


def ours(model: Model, wanted: Any, noise: Tensor, steps: int, w: float) -> Tensor:
    """Our own sampler, its fresh noise drawn in turn from a generator of seed 3."""
    generator = torch.Generator().manual_seed(3)
    x = sample(
        model.denoise,
        noise,
        schedule=model.card.schedule,
        times=model.card.sampling.grid(steps),
        label=model.condition(wanted),
        w=torch.full((len(noise),), w),
        sampler=SAMPLERS[model.card.sampling.sampler],
        fresh=lambda step: torch.randn(noise.shape, generator=generator),
    )
    return x.clamp(model.card.data.low, model.card.data.high)


class Calls:
    """The number of calls of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        network.register_forward_hook(self.called)

    def called(self, *_: Any) -> None:
        self.count += 1


def opened(folder: Path, kind: Any = DiffusionPipeline, **how: Any) -> Any:
    pipe = kind.from_pretrained(folder, **how)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Prompts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        pytest.param(BETAS, "v", id="v"),
        pytest.param(TRAINED, "x", id="trained-x"),
        pytest.param(BETAS, "eps", id="eps", marks=pytest.mark.slow),
        pytest.param(ZERO_SNR, "v", id="zero-snr", marks=pytest.mark.slow),
    ],
)
def test_a_text_student_opens_in_stable_diffusion(made: Companions, tmp_path: Path, schedule, prediction) -> None:
    latent, text = made
    native = {"schedule": schedule, "native_schedule": schedule, "prediction": prediction}
    guided = {"sampling": Sampling(guidance="input"), "method": "guidance"}
    path = write_model(tmp_path / "model.safetensors", "TextUNet", latent=latent, text=text, **native, **guided)
    assert export(path, tmp_path / "out") < 1e-4
    model, noise = fewstep.load(path), starting_noise(1, 0, 2, (4, 8, 8))
    pipe = opened(tmp_path / "out", StableDiffusionPipeline)
    calls = Calls(pipe.unet)
    # Of "zero" SNR our schedule keeps alpha = 4.5e-5 of the noise it begins with, and the stock one nothing.
    kept = float(alpha(schedule.table[-1]) * noise.abs().max()) if schedule.has_zero_terminal_snr else 0.0
    for steps, w in ((1, 0.0), (4, 1.5), (10, 4.0)):
        calls.count = 0
        given = {"prompt": PROMPTS, "latents": noise, "num_inference_steps": steps, "guidance_scale": 1 + w}
        theirs = pipe(**given, output_type="latent").images
        expected = ours(model, PROMPTS, noise, steps, w)
        assert calls.count == steps
        assert float((theirs - expected).abs().max()) < kept + 1e-4 * max(1.0, float(expected.abs().max()))
    images = pipe(**given, output_type="pt").images
    assert torch.allclose(images, model.decode(expected) / 2 + 0.5, atol=1e-3)
    without = pipe(**given | {"guidance_scale": 1.0}, output_type="latent").images
    assert (without - theirs).abs().max() > 1e-2  # w is seen


@pytest.mark.parametrize(
    ("sampling", "schedule", "prediction"),
    [
        pytest.param(EVEN_LEVELS, BETAS, "v", id="even-v"),
        pytest.param(LCM_LEVELS, BETAS, "eps", id="lcm-eps", marks=pytest.mark.slow),
        pytest.param(EVEN_LEVELS, TRAINED, "x", id="trained-x", marks=pytest.mark.slow),
    ],
)
def test_a_text_student_that_renoises_opens_in_the_pipeline_of_lcm(
    made: Companions, tmp_path: Path, sampling: Sampling, schedule, prediction
) -> None:
    """The same latents as ours from the same starting and fresh noise, and w moves them as it moves ours."""
    own = {"latent": made[0], "text": made[1], "method": "lcm", "prediction": prediction}
    path = tmp_path / "model.safetensors"
    write_model(path, "TextUNet", sampling=sampling, schedule=schedule, native_schedule=schedule, **own)
    assert export(path, tmp_path / "out") < 1e-4
    model, noise = fewstep.load(path), starting_noise(1, 0, 2, (4, 8, 8))
    pipe = opened(tmp_path / "out")
    assert type(pipe) is LatentConsistencyModelPipeline
    assert type(pipe.scheduler) is LCMScheduler
    calls = Calls(pipe.unet)
    for steps in (1, 2, 4):
        by_w = []
        for w in (0.0, 1.5, 4.0):
            calls.count = 0
            given = {"prompt": PROMPTS, "latents": noise, "num_inference_steps": steps, "guidance_scale": 1 + w}
            theirs = pipe(**given, generator=torch.Generator().manual_seed(3), output_type="latent").images
            expected = ours(model, PROMPTS, noise, steps, w)
            scale = max(1.0, float(expected.abs().max()))
            assert calls.count == steps
            assert float((theirs - expected).abs().max()) < 1e-4 * scale
            by_w.append((theirs, expected, scale))
        for theirs, expected, scale in by_w[1:]:
            moved, as_ours = theirs - by_w[0][0], expected - by_w[0][1]
            assert float(as_ours.abs().max()) > 1e-3 * scale
            assert float((moved - as_ours).abs().max()) < 1e-4 * scale
    images = pipe(**given, generator=torch.Generator().manual_seed(3), output_type="pt").images
    assert torch.allclose(images, (model.decode(expected) / 2 + 0.5).clamp(0, 1), atol=1e-3)


def test_the_boundary_scalings_of_lcm_are_those_of_no_scaling_at_its_levels() -> None:
    """Of the paper to 1e-5, and in an exported scheduler to the last bit of float32."""
    paper, exact = LCMScheduler(), LCMScheduler(timestep_scaling=1e4)
    for timestep in torch.arange(19, 1000, 20):
        skip, out = paper.get_scalings_for_boundary_condition_discrete(timestep)
        assert 0 < skip < 1e-5
        assert abs(out - 1) < 1e-5
    for timestep in torch.arange(1, 1000):
        skip, out = exact.get_scalings_for_boundary_condition_discrete(timestep)
        assert skip < 1e-8
        assert out == 1


@pytest.mark.filterwarnings("ignore:this model has no w input")
def test_a_text_teacher_is_guided_from_outside(made: Companions, tmp_path: Path) -> None:
    latent, text = made
    path = write_model(
        tmp_path / "model.safetensors",
        "TextUNet",
        w=None,
        latent=latent,
        text=text,
        schedule=BETAS,
        native_schedule=BETAS,
    )
    assert export(path, tmp_path / "out") < 1e-4
    assert opened(tmp_path / "out", StableDiffusionPipeline).unet.config.time_cond_proj_dim is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": COSINE}, "its schedule is CosineSchedule"),
        ({"native_schedule": None}, "not the one its network was trained with"),
        ({"sampling": STOCHASTIC}, "stochastic sampler, which no stock scheduler has"),
        ({"sampling": RENOISE}, "its levels 1, 0.8, 0.3, 0.1 are none that LCMScheduler visits"),
        ({"sampling": replace(RENOISE, times=(1.0, 0.001))}, "its levels 1, 0.001 are none that"),
        ({"sampling": replace(EVEN_LEVELS, guidance="none"), "w": None}, "it has no guidance, and the"),
        ({"sampling": UNEVEN}, "made for times of its own, and the scheduler's are evenly spaced"),
        (
            {"sampling": replace(UNGUIDED, sampler="deterministic", times=None), "w": None},
            "it has no guidance, and the",
        ),
        (
            {"schedule": ZERO_SNR, "native_schedule": ZERO_SNR, "prediction": "eps"},
            "it predicts eps where .* divides by",
        ),
    ],
)
def test_text_students_that_no_stock_scheduler_samples_are_refused(
    made: Companions, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    latent, text = made
    own = {"schedule": BETAS, "native_schedule": BETAS} | change
    path = write_model(tmp_path / "model.safetensors", "TextUNet", latent=latent, text=text, **own)
    with pytest.raises(ValueError, match=words):
        export(path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert export(path, tmp_path / "out", format="safetensors") == 0


def test_a_network_of_matrix_products_is_no_stock_pipelines(made: Companions, tmp_path: Path) -> None:
    latent, text = made
    own = {"schedule": BETAS, "native_schedule": BETAS}
    path = write_model(tmp_path / "model.safetensors", "TextMLP", latent=latent, text=text, **own)
    with pytest.raises(ValueError, match="a TextMLP is no network of diffusers; use --format safetensors or onnx"):
        export(path, tmp_path / "out")
    assert export(path, tmp_path / "out", format="safetensors") == 0


# Classes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "card", "evaluations"),
    [
        ("UNet", {}, 1),
        ("UNet2D", {}, 1),
        ("DiT", {}, 1),
        ("UNet", {"w": None}, 2),
        ("UNet2D", {"schedule": BETAS, "native_schedule": BETAS, "prediction": "eps"}, 1),
        ("UNet", {"native_schedule": BETAS, "prediction": "x"}, 1),
        ("UNet2D", {"sampling": STOCHASTIC}, 1),
        ("UNet", {"sampling": UNEVEN}, 1),
        ("UNet2D", {"sampling": RENOISE}, 1),
        ("UNet", {"sampling": UNGUIDED, "w": None}, 1),
    ],
    ids=[
        *("unet", "unet2d", "dit-latent", "teacher", "eps-betas", "x-cosine-with-native-schedule", "stochastic"),
        *("uneven", "renoise", "unguided"),
    ],
)
@pytest.mark.filterwarnings("ignore:this model has no w input", "ignore:made for")
def test_a_class_conditional_model_opens_through_its_own_pipeline(
    made: Companions, tmp_path: Path, name: str, card: dict[str, Any], evaluations: int
) -> None:
    latent = made[0] if name == "DiT" else None
    path = write_model(tmp_path / "model.safetensors", name, latent=latent, **card)
    assert export(path, tmp_path / "out") < 1e-4
    model = fewstep.load(path)
    noise, labels = starting_noise(1, 0, 3, model.card.data.shape), [0, 9, 4]
    pipe = opened(tmp_path / "out", custom_pipeline=str(tmp_path / "out"), trust_remote_code=True)
    calls = Calls(pipe.network)
    unguided = model.card.sampling.guidance == "none"
    for steps, w in ((1, 0.0), (2, 0.5), (4, 1.5), (7, 4.0)):
        calls.count = 0
        given = {"latents": noise, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(3)}
        weight = {} if unguided else {"w": w}
        theirs = pipe(labels, **weight, output_type="latent", **given).images
        expected = ours(model, labels, noise, steps, w)
        assert calls.count == evaluations * steps
        assert float((theirs - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))
    scale = {} if unguided else {"guidance_scale": 5.0}
    again = given | {"generator": given["generator"].manual_seed(3)}
    scaled = pipe(labels, **scale, output_type="pt", **again)
    assert torch.allclose(scaled.images, (model.decode(expected) / 2 + 0.5).clamp(0, 1), atol=1e-3)
    assert len(pipe(labels, num_inference_steps=1).images) == 3  # pictures, of noise of its own


def test_the_pipeline_refuses_and_warns(tmp_path: Path) -> None:
    export(write_model(tmp_path / "model.safetensors", "UNet"), tmp_path / "out")
    pipe = opened(tmp_path / "out", trust_remote_code=True)
    for bad in (
        {"class_labels": [10]},
        {"class_labels": [0], "w": -1.0},
        {"class_labels": 0, "num_inference_steps": 0},
    ):
        with pytest.raises(ValueError, match=r"classes are 0..9, w >= 0"):
            pipe(**bad)
    with pytest.warns(UserWarning, match="made for 4 steps, not 1"):
        pipe([0], num_inference_steps=1)
    with pytest.warns(UserWarning, match=r"made for w in \[0.0, 4.0\], not 9"):
        pipe([0], w=9.0)


@pytest.mark.filterwarnings("error:made for")
def test_the_pipeline_of_a_model_without_guidance_takes_no_w(tmp_path: Path) -> None:
    export(write_model(tmp_path / "model.safetensors", "UNet", w=None, sampling=UNGUIDED), tmp_path / "out")
    pipe = opened(tmp_path / "out", trust_remote_code=True)
    for given in ({"w": 1.0}, {"guidance_scale": 2.0}):
        with pytest.raises(ValueError, match="made without guidance: leave out w and guidance_scale"):
            pipe([0], **given)
    calls = Calls(pipe.network)
    pipe([0])
    assert calls.count == 4
    pipe([0], num_inference_steps=2)  # a divisor of the levels it was made for
    with pytest.warns(UserWarning, match="made for 1 or 2 or 4 steps, not 3"):
        pipe([0], num_inference_steps=3)


@pytest.mark.filterwarnings("error:made for")
def test_the_default_w_is_one_that_the_model_was_made_for(tmp_path: Path) -> None:
    export(write_model(tmp_path / "model.safetensors", "UNet", w=(2.0, 4.0)), tmp_path / "out")
    pipe = opened(tmp_path / "out", trust_remote_code=True)
    noise = starting_noise(1, 0, 1, (3, 8, 8))
    first, second = (pipe([0], **w, latents=noise, output_type="latent").images for w in ({}, {"w": 2.0}))
    assert torch.equal(first, second)


@pytest.mark.slow
def test_the_pipeline_needs_no_fewstep(tmp_path: Path) -> None:
    export(write_model(tmp_path / "model.safetensors", "UNet2D"), tmp_path / "out")
    code = (
        "import sys; sys.modules['fewstep'] = None\n"  # importing it now fails
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True)\n"
        "print(len(pipe([1, 2]).images))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2", done.stderr


def test_the_adapter_goes_along(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model-4.safetensors", "UNet")
    student = with_adapter(fewstep.load(path).denoiser, rank=2, alpha=2.0)
    save_adapter(adapter_file(path), student, "cd" * 32)
    export(path, tmp_path / "out")
    lora = tmp_path / "out" / "lora"
    names = load_file(lora / "pytorch_lora_weights.safetensors")  # the name that load_lora_weights looks for
    assert all(name.startswith("unet.") for name in names)
    assert [*load_file(lora / "w_input.safetensors")] == ["unet.time_embedding.cond_proj.weight"]
    assert "load_lora_weights" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this model has no w input")
@pytest.mark.parametrize(
    ("sampling", "kind"),
    [(Sampling.uniform(4, guidance="input"), StableDiffusionPipeline), (LCM_LEVELS, LatentConsistencyModelPipeline)],
    ids=["ddim", "lcm-lora"],
)
def test_the_stock_pipeline_with_the_adapter_is_the_student(
    made: Companions, tmp_path: Path, sampling: Sampling, kind: Any
) -> None:
    """The steps of the exported README.md, on the teacher's own pipeline."""
    own = {"latent": made[0], "text": made[1], "schedule": BETAS, "native_schedule": BETAS}
    teacher = write_model(tmp_path / "teacher.safetensors", "TextUNet", w=None, **own)
    export(teacher, tmp_path / "base")
    student = with_adapter(with_guidance_input(fewstep.load(teacher).denoiser), rank=2, alpha=3.0)
    for parameter in trained_parameters(student):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    path = write_model(tmp_path / "model-4.safetensors", "TextUNet", sampling=sampling, **own)  # for its card
    save_adapter(adapter_file(path), student, "cd" * 32)
    save_model(path, merged(student), fewstep.load(path).card)
    export(path, tmp_path / "out")

    kept = {"subfolder": "unet", "time_cond_proj_dim": 8, "low_cpu_mem_usage": False}
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "base", **kept)
    w_input = load_file(tmp_path / "out" / "lora" / "w_input.safetensors")
    unet.load_state_dict({name.removeprefix("unet."): weight for name, weight in w_input.items()}, strict=False)
    whole = opened(tmp_path / "out", kind)
    scheduler = type(whole.scheduler).from_pretrained(tmp_path / "out", subfolder="scheduler")
    adapted = opened(tmp_path / "base", kind, unet=unet, scheduler=scheduler)
    adapted.load_lora_weights(tmp_path / "out" / "lora")
    plain = opened(tmp_path / "base", StableDiffusionPipeline)
    noise = starting_noise(1, 0, 2, (4, 8, 8))
    given = {"prompt": PROMPTS, "latents": noise, "num_inference_steps": 4, "guidance_scale": 3.0}
    images = []
    for pipe in (adapted, whole, plain):
        images.append(pipe(**given, generator=torch.Generator().manual_seed(0), output_type="latent").images)
    torch.testing.assert_close(images[0], images[1], rtol=1e-4, atol=1e-4)
    assert float((images[1] - images[2]).abs().max()) > 1e-2


# Halves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["diffusers", "safetensors"])
def test_halves_are_half_as_long_and_nearly_as_right(tmp_path: Path, format: str) -> None:
    path = write_model(tmp_path / "model.safetensors", "UNet2D")
    assert 1e-7 < export(path, tmp_path / "half", format=format, half=True) < 5e-2
    export(path, tmp_path / "whole", format=format)
    sizes = {
        name: sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors"))
        for name in ("half", "whole")
    }
    assert sizes["half"] < 0.7 * sizes["whole"]
    assert json.loads((tmp_path / "half" / "fewstep.json").read_text())["arguments"]["guidance_dim"] == 8
