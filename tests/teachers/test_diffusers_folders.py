"""Diffusers folders: what is read from one says what diffusers says, and a folder that is not whole is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.artifacts.model_file import load_model
from fewstep.data.facts import DataFacts
from fewstep.networks import with_guidance_input
from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder
from fewstep.networks.frozen.text_encoder import TextEncoder, write_tiny_text_encoder
from fewstep.teachers.imported import imported, is_foreign, read

FACTS = DataFacts(name="tiny", shape=(3, 8, 8), num_classes=4, low=-1.0, high=1.0)
READINGS = {"eps": "epsilon", "v": "v_prediction", "x": "sample"}
TIMESTEPS = torch.tensor([0, 1, 7, 500, 998, 999])
SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
UNET_BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}


def unet2d(classes: int | None = 5, **settings: Any) -> nn.Module:
    own = SMALL | UNET_BLOCKS | {"attention_head_dim": 8, "num_class_embeds": classes} | settings
    return UNet2DModel(sample_size=8, **own)


def class_unet(classes: int | None = 5, **settings: Any) -> nn.Module:
    mid = {"mid_block_type": "UNetMidBlock2D", "attention_head_dim": 8, "num_class_embeds": classes}
    return UNet2DConditionModel(sample_size=8, in_channels=3, out_channels=3, **SMALL | UNET_BLOCKS | mid | settings)


def dit(classes: int = 4, **settings: Any) -> nn.Module:
    own = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2} | settings
    return DiTTransformer2DModel(
        in_channels=3, out_channels=6, sample_size=8, norm_num_groups=1, num_embeds_ada_norm=classes, **own
    )


MAKERS: dict[str, Callable[..., nn.Module]] = {"UNet2DModel": unet2d, "classes UNet": class_unet, "DiT": dit}


def randomised(network: nn.Module) -> nn.Module:
    """No weight is at a start value that hides what it does."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.15, generator=generator)
    return network.eval()


def write(network: Any, folder: Path, reading: str = "eps", **scheduler: Any) -> nn.Module:
    """The network with its scheduler's config, as save_pretrained writes them."""
    randomised(network).save_pretrained(folder)  # pyright: ignore
    DDIMScheduler(prediction_type=READINGS[reading], **scheduler).save_pretrained(folder)
    return network


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", MAKERS)
def test_an_imported_teacher_says_what_diffusers_says(tmp_path: Path, kind: str, reading: str) -> None:
    original = write(MAKERS[kind](), tmp_path / "folder", reading)
    assert is_foreign(tmp_path / "folder")
    path = imported(tmp_path / "folder", tmp_path / "outputs", FACTS)
    assert path == tmp_path / "outputs" / "tiny" / "teacher" / path.parent.name / "model.safetensors"
    denoiser, card = load_model(path)
    assert (card.label, card.prediction, card.data, card.schedule) == ("teacher", reading, FACTS, card.native_schedule)
    check_parity(original, denoiser, torch.tensor([0, 1, 2, 3, 4, 4]), 4)
    student = with_guidance_input(denoiser)  # starts as its teacher
    native_schedule = card.native_schedule
    assert native_schedule is not None
    log_snr = native_schedule.log_snr((TIMESTEPS + 1) / 1000)
    question = torch.randn(6, 3, 8, 8), log_snr, torch.tensor([0, 1, 2, 3, 4, 4])
    torch.testing.assert_close(student(*question, torch.ones(6)).v, denoiser(*question).v)


@torch.no_grad()
def check_parity(original: Any, denoiser: Any, label: Tensor, null: int) -> None:
    """The output as the network's own, at whole timesteps, to 1e-5."""
    native_schedule = denoiser.native_schedule
    z = torch.randn(6, *FACTS.shape, generator=torch.Generator().manual_seed(1))
    log_snr = native_schedule.log_snr((TIMESTEPS + 1) / 1000)
    theirs = [
        original(z[i : i + 1], TIMESTEPS[i : i + 1], **arguments(original, label[i : i + 1]), return_dict=False)[0]
        for i in range(6)
    ]
    expected = torch.cat(theirs)[:, :3]
    ours = getattr(denoiser(z, log_snr, label), denoiser.prediction)
    scale = expected.abs().max()
    assert scale > 0.05
    output = denoiser.network(z, native_schedule.timestep(log_snr) / 1000, label, None)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * float(scale))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4 * float(scale))  # through v, which divides by alpha
    assert denoiser.null == null


def arguments(original: Any, label: Tensor) -> dict[str, Any]:
    if isinstance(original, UNet2DConditionModel):
        return {"encoder_hidden_states": None, "class_labels": label}
    return {"class_labels": label}


def test_the_schedule_is_that_of_the_scheduler(tmp_path: Path) -> None:
    betas = [0.01 * (i + 1) for i in range(20)]
    for number, (settings, has_zero) in enumerate(
        [
            ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, False),
            ({"beta_schedule": "linear", "rescale_betas_zero_snr": True}, True),
            ({"trained_betas": betas, "num_train_timesteps": 20}, False),
        ]
    ):
        folder = tmp_path / str(number)
        write(unet2d(), folder, "v", **settings)
        theirs = DDIMScheduler(**settings).alphas_cumprod.double()  # pyright: ignore
        native_schedule = read(folder, FACTS).denoiser.native_schedule
        assert native_schedule is not None
        steps = len(theirs)
        t = (torch.arange(steps) + 1).double() / steps
        torch.testing.assert_close(torch.sigmoid(native_schedule.log_snr(t)), theirs, rtol=0, atol=2e-6)
        assert native_schedule.has_zero_terminal_snr == has_zero


def test_a_teacher_is_written_once_and_again_when_it_changes(tmp_path: Path) -> None:
    folder, outputs = tmp_path / "folder", tmp_path / "outputs"
    write(unet2d(), folder)
    path = imported(folder, outputs, FACTS)
    before = path.stat().st_mtime_ns
    assert imported(folder, outputs, FACTS) == path
    assert path.stat().st_mtime_ns == before
    config = json.loads((folder / "scheduler_config.json").read_text())
    (folder / "scheduler_config.json").write_text(json.dumps(config | {"prediction_type": "v_prediction"}))
    other = imported(folder, outputs, FACTS)
    assert other != path
    assert load_model(other)[1].prediction == "v"
    assert json.loads((path.parent / "source.json").read_text())["teacher"] == str(folder)


def test_old_names_and_pickles_of_tensors_open(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    original = write(unet2d(), folder)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}
    named = {
        ".".join(old.get(part, part) for part in name.split(".")).replace("to_out.0", "proj_attn"): tensor.half()
        for name, tensor in tensors.items()
    }
    assert named.keys() != tensors.keys()
    torch.save(named, folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    tensors = read(folder, FACTS).denoiser.network.state_dict()
    for name, value in original.state_dict().items():
        assert torch.equal(tensors[f"unet.{name}"], value.half().float())


def test_parts_of_weights_and_a_pipeline_of_a_transformer_open(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    randomised(original := dit()).save_pretrained(folder / "transformer", max_shard_size="20KB")  # pyright: ignore
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    DDIMScheduler().save_pretrained(folder / "scheduler")
    parts = {"transformer": ["diffusers", "DiTTransformer2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", "id2label": {"0": "a"}} | parts))
    assert is_foreign(folder)
    check_parity(original, read(folder, FACTS).denoiser, torch.tensor([0, 1, 2, 3, 4, 4]), 4)
    sorted((folder / "transformer").glob("*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match=r"lacks .*-00002-of-.*safetensors"):
        read(folder, FACTS)
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="names no unet and no transformer"):
        read(folder, FACTS)


@pytest.mark.parametrize("classes", [None, 4])
def test_a_teacher_without_a_null_condition_is_refused(tmp_path: Path, classes: int | None) -> None:
    folder = tmp_path / "folder"
    original: Any = write(unet2d(classes), folder)
    found = read(folder, FACTS)
    assert (found.has_null, found.conditional) == (False, classes is not None)
    z, label = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    with torch.no_grad():
        theirs = original(z, 7, class_labels=label if classes else None, return_dict=False)[0]
        ours = found.denoiser.network(z, torch.full((2,), 0.007, dtype=torch.float64), label, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be guided, because it can be called only with"):
        imported(folder, tmp_path / "outputs", FACTS)
    assert not (tmp_path / "outputs").exists()


# A whole pipeline ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, DataFacts]:
    """A tiny Stable Diffusion as save_pretrained writes it, and facts of data that were made with its parts."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("pipeline")
    write_tiny_autoencoder(folder / "parts" / "vae")
    write_tiny_text_encoder(folder / "parts")
    encoder, vae = TextEncoder.open(folder / "parts"), Autoencoder.open(folder / "parts" / "vae")
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=16, attention_head_dim=(1, 2), use_linear_projection=True, **SMALL | blocks
    )
    randomised(unet)
    scheduler = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1)
    made = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "parts" / "vae"),
        text_encoder=encoder.network,
        tokenizer=encoder.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore
        feature_extractor=None,  # pyright: ignore
        requires_safety_checker=False,
    )
    made.save_pretrained(folder / "whole")
    whole = folder / "whole"
    own = Autoencoder.open(whole / "vae")
    image = (3, 8 * own.downsampling, 8 * own.downsampling)
    facts = DataFacts("prompts", (4, 8, 8), 0, -1000.0, 1000.0, own.facts(image), TextEncoder.open(whole).facts())
    assert vae.digest == own.digest
    return whole, unet, facts


def test_a_whole_pipeline_says_what_its_unet_says(pipeline: tuple[Path, Any, DataFacts], tmp_path: Path) -> None:
    folder, unet, facts = pipeline
    path = imported(folder, tmp_path, facts)
    denoiser, card = load_model(path)
    assert (card.prediction, card.data.text, card.data.latent) == ("eps", facts.text, facts.latent)
    assert card.native_schedule is not None
    assert (card.native_schedule.kind, card.native_schedule.beta_end) == ("scaled_linear", 0.012)
    encoder = TextEncoder.open(folder)
    prompts = encoder.encode(["a temple", "", "two cats", "rain"])
    torch.testing.assert_close(denoiser.null, encoder.encode([""])[0])
    z, steps = torch.randn(4, 4, 8, 8), torch.tensor([0, 250, 998, 999])
    with torch.no_grad():
        theirs = unet(z, steps, encoder_hidden_states=prompts, return_dict=False)[0]
        ours = denoiser.network(z, steps.double() / 1000, prompts, None)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert imported(folder / "unet", tmp_path, facts) == path  # its unet/ alone finds the rest beside it
    assert facts.latent is not None
    moved = replace(facts, latent=replace(facts.latent, autoencoder="/elsewhere"))
    assert imported(folder, tmp_path, moved) == path


# Bad input ----------------------------------------------------------------------------------------------------------


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def settle(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | values))

    return change


def reweigh(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def write_again(folder: Path) -> None:
        file = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return write_again


def bomb(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weights": print}, folder / "diffusion_pytorch_model.bin")


def truncate(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("diffusion_pytorch_model.safetensors"), "lacks .*diffusion_pytorch_model.safetensors; give a folder"),
        (drop("scheduler_config.json"), "lacks .*scheduler_config.json"),
        (drop("config.json"), "lacks .*config.json"),
        (truncate, "truncated, damaged"),
        (bomb, "holds more than tensors, which is never executed"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (settle("config.json", _class_name="FluxTransformer2DModel"), "one of UNet2DModel, .* says 'FluxTransformer2D"),
        (
            settle("scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
            "scheduler must be one of DDIM",
        ),
        (settle("scheduler_config.json", prediction_type="flow_prediction"), "epsilon, v_prediction, sample"),
        (settle("scheduler_config.json", beta_schedule="laplace"), "one of linear, scaled_linear, .*'laplace'"),
        (settle("scheduler_config.json", beta_end=2.0), "between 1e-09 and 1"),
        (settle("config.json", block_out_channels=[8, 24]), "do not fit its config: unet.* is .* and should be"),
        (settle("config.json", layers_per_block=10**8), "more than its tensors"),
        (settle("config.json", nonsense=1), "'nonsense' is none"),
        (settle("config.json", time_embedding_type="fourier"), "positional"),
        (settle("config.json", in_channels=4), r"makes 4 channels of size 8, and tiny has \(3, 8, 8\)"),
        (settle("config.json", sample_size=64), "of size 64"),
        (settle("config.json", num_class_embeds=1000), "knows 1000 classes, and tiny has 4"),
        (reweigh(lambda t: t.pop("conv_out.bias")), "lack unet.conv_out.bias"),
        (reweigh(lambda t: t.update(extra=torch.ones(1))), "hold unet.extra"),
        (reweigh(lambda t: t.update({"conv_in.bias": torch.ones(9)})), r"conv_in.bias is \(9,\) and should be \(8,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], words: str) -> None:
    folder = tmp_path / "folder"
    write(unet2d(), folder)
    spoil(folder)
    with pytest.raises(ValueError, match=words) as refused:
        imported(folder, tmp_path / "outputs", FACTS)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("unchecked")
def test_a_pipeline_of_other_companions_is_refused(pipeline: tuple[Path, Any, DataFacts], tmp_path: Path) -> None:
    folder, _, facts = pipeline
    assert facts.text is not None
    assert facts.latent is not None
    for others, words in (
        (replace(facts, text=None, num_classes=3), "no prompts; use dataset=text"),
        (replace(facts, text=replace(facts.text, features=17)), "prompts of 17 features"),
        (replace(facts, text=replace(facts.text, sha256="0" * 64)), "has another text encoder"),
        (replace(facts, latent=replace(facts.latent, sha256="0" * 64)), "its own autoencoder"),
        (replace(facts, latent=None), "its own autoencoder"),
    ):
        with pytest.raises(ValueError, match=words):
            imported(folder, tmp_path, others)


def test_a_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    assert is_foreign("someone/model-32")
    with pytest.raises(ValueError, match="hf download someone/model-32 --local-dir FOLDER` and give the folder"):
        read("someone/model-32", FACTS)
    write(unet2d(), tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert read("someone/model-32", FACTS).has_null


@pytest.mark.parametrize("name", ["outputs/digits/teacher/time/model.safetensors", "a/model.safetensors", "exact", "."])
def test_paths_of_ours_are_no_hub_ids(name: str) -> None:
    assert not is_foreign(name)
