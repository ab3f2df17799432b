"""`fewstep export` as it is typed: what lies in the folder, what is refused, and that nothing half-written is left."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from exporting import BETAS, companions, write_model
from running import Commands, files_below

import fewstep
from fewstep.diffusion.sampling import Sampling
from fewstep.export import folder as folder_module
from fewstep.export import onnx_file
from fewstep.export.card import onnx_usage
from fewstep.export.folder import Trial, difference_of, export, new_folder
from fewstep.system.files import sha256_of

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return write_model(tmp_path / "digits" / "progressive" / "now" / "model-4.safetensors", "UNet")


ENCODES = Sampling.uniform(4, guidance="input", direction="encode")


def cell(role: str, steps: int, fid: float) -> dict[str, object]:
    """A row of quality.json."""
    figures = ("inception_score", "precision", "recall", "accuracy", "diversity", "same_noise_rmse")
    cost = {"nfe": steps, "num_images": 2000, "seed": 0, "images_per_second": 10.0}
    own = {"model": role, "sampler": "ddim", "steps": steps, "w": 2.0, "fid": fid, "protocol": "0a1b2c3d"}
    return dict.fromkeys(figures, 0.5) | cost | own


def test_the_folder_says_all(commands: Commands, student: Path, tmp_path: Path) -> None:
    judged = tmp_path / "digits" / "pipeline" / "now"
    judged.mkdir(parents=True)
    models = [{"sha256": sha256_of(student)}]
    (judged / "provenance.json").write_text(json.dumps({"models": models, "created": "2030-01-01"}))
    rows = [cell("teacher", 4, 1.0), cell("progressive", 2, 9.0), cell("progressive", 4, 7.125)]
    (judged / "quality.json").write_text(json.dumps(rows))

    result = commands.fewstep("export", student, tmp_path / "out", "--licence", "openrail++")
    assert result.status == 0, result
    assert "largest difference" in result.out
    assert files_below(tmp_path / "out") == [
        "README.md",
        "fewstep.json",
        "model_index.json",
        "pipeline.py",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    text = (tmp_path / "out" / "README.md").read_text()
    for words in ("license: openrail++\n", sha256_of(student), "ab" * 32, "w in [0, 4]", "guidance_scale 1 to 5"):
        assert words in text
    for words in ("4-step progressive", "deterministic sampler", "Protocol `0a1b2c3d`", "7.125", "w=1)", "one network"):
        assert words in text
    assert "Made for 4 step(s), at t = 1, 0.75, 0.5, 0.25, of the deterministic sampler" in text
    assert "9.0" not in text  # of another model
    described = json.loads((tmp_path / "out" / "fewstep.json").read_text())
    assert (described["method"], described["sha256"]) == ("progressive", sha256_of(student))
    assert described["sampling"]["times"] == [1.0, 0.75, 0.5, 0.25]


def test_safetensors_is_our_own_file_and_knows_its_parents(commands: Commands, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = commands.fewstep("export", student, out, "--format", "safetensors")
    assert result.status == 0, result
    before, after = fewstep.load(student), fewstep.load(out / "model.safetensors")
    assert torch.equal(before.sample([0, 5], w=2.0), after.sample([0, 5], w=2.0))
    (parent,) = after.card.parents
    assert (out / parent.path).resolve() == (student.parent / "../guidance/model.safetensors").resolve()
    assert "unknown: ask the teacher's maker" in (out / "README.md").read_text()
    assert "license: other\n" in (out / "README.md").read_text()


def test_a_teacher_is_exported_and_its_two_evaluations_are_said(commands: Commands, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors", "UNet", w=None)
    result = commands.fewstep("export", path, tmp_path / "out")
    assert result.status == 0, result
    assert "warning: this model has no w input, so the export takes two network evaluations a step" in result.err
    assert "**two** network evaluations" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "pt"], ["--format must be one of diffusers, safetensors, onnx, got 'pt'"]),
        (["--format", "onnx", "--half"], ["--half goes with --format diffusers or safetensors"]),
    ],
)
def test_bad_options(commands: Commands, student: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    commands.fewstep("export", student, tmp_path / "out", *arguments).is_one_error(*words)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_as_it_is(
    commands: Commands, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    assert commands.fewstep("export", student, tmp_path / "out", "--format", "safetensors").status == 0  # it was empty
    before = files_below(tmp_path / "out")
    commands.fewstep("export", student, tmp_path / "out").is_one_error("FOLDER must be new or empty", "out is not")
    assert files_below(tmp_path / "out") == before
    commands.fewstep("export", student, student).is_one_error("FOLDER must be new or empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    commands.fewstep("export", student, ".").is_one_error("FOLDER must be new or empty", ". is not")
    commands.fewstep("export", tmp_path / "no.safetensors", tmp_path / "new").is_one_error("no.safetensors")


def test_models_that_diffusers_cannot_hold(commands: Commands, tmp_path: Path) -> None:
    mlp = write_model(tmp_path / "mlp.safetensors", "ResidualMLP")
    commands.fewstep("export", mlp, tmp_path / "out").is_one_error("a ResidualMLP is no network of diffusers", "onnx")
    assert commands.fewstep("export", mlp, tmp_path / "out", "--format", "safetensors").status == 0
    encoder = write_model(tmp_path / "encoder.safetensors", "UNet", method="encoder", sampling=ENCODES)
    commands.fewstep("export", encoder, tmp_path / "encoder").is_one_error("an encoder goes from data to noise")
    assert commands.fewstep("export", encoder, tmp_path / "encoder", "--format", "safetensors").status == 0
    text = (tmp_path / "encoder" / "README.md").read_text()
    assert ".sample(" not in text  # which refuses an encoder
    assert "fewstep.transfer(student, images, source, target, encoder=encoder)" in text


@pytest.mark.parametrize("format", ["diffusers", "onnx"])
def test_inputs_that_no_other_library_knows_are_refused(tmp_path: Path, format: str) -> None:
    path = write_model(tmp_path / "model.safetensors", "UNet", extra_inputs=("s", "d"))
    with pytest.raises(ValueError, match=r"inputs beside w \(s, d\) opens in fewstep alone; use --format safetensors"):
        export(path, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_a_sampler_that_the_pipeline_lacks_is_refused(tmp_path: Path) -> None:
    sampling = Sampling.uniform(4, sampler="ancestral", guidance="input")
    path = write_model(tmp_path / "model.safetensors", "UNet", sampling=sampling)
    with pytest.raises(ValueError, match="the exported pipeline has no ancestral sampler; use --format safetensors"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_guidance_says_so(tmp_path: Path) -> None:
    sampling = Sampling(sampler="renoise", times=(1.0, 0.6), guidance="none")
    path = write_model(tmp_path / "model.safetensors", "UNet", w=None, sampling=sampling, method="consistency")
    export(path, tmp_path / "out", format="safetensors")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "# tiny: a 2-step consistency diffusion model" in text
    assert "Made without guidance: one network evaluation a step, and no w." in text
    assert "Made for 1 or 2 step(s), at t = 1, 0.6, of the renoise sampler" in text
    assert ".sample([0, 1, 2], steps=2)" in text
    assert "guidance_scale" not in text


def test_an_autoencoder_or_encoder_that_is_gone_or_another_one(commands: Commands, tmp_path: Path) -> None:
    latent, text = companions(tmp_path / "sd")
    native = {"schedule": BETAS, "native_schedule": BETAS}
    path = write_model(tmp_path / "model.safetensors", "TextUNet", latent=latent, text=text, **native)
    (tmp_path / "sd").rename(tmp_path / "moved")
    commands.fewstep("export", path, tmp_path / "out").is_one_error("--autoencoder")
    moved = ("--autoencoder", tmp_path / "moved", "--text-encoder", tmp_path / "moved")
    assert commands.fewstep("export", path, tmp_path / "out", *moved).status == 0
    shutil.rmtree(tmp_path / "moved" / "vae")
    from fewstep.networks.frozen.autoencoder import write_tiny_autoencoder

    write_tiny_autoencoder(tmp_path / "moved" / "vae", downsampling=2, seed=1)
    commands.fewstep("export", path, tmp_path / "other", *moved).is_one_error("--autoencoder", "sha256")


def test_an_export_that_differs_is_not_written(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Trial.of_ours
    monkeypatch.setattr(Trial, "of_ours", lambda self, model: right(self, model) + 0.009)
    with pytest.raises(ValueError, match=r"must do what the model does, and differs by .*e-03; nothing was written"):
        export(student, tmp_path / "out")
    monkeypatch.setattr(Trial, "of_ours", lambda self, model: right(self, model) / 0)
    with pytest.raises(ValueError, match="differs by inf; nothing was written"):  # of halves much is allowed, not all
        export(student, tmp_path / "out", half=True)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_difference_that_is_no_number_is_infinite() -> None:
    ours = torch.tensor([0.5, -4.0])
    assert difference_of(ours, ours) == 0
    assert difference_of(ours, ours + 0.4) == pytest.approx(0.1)
    assert difference_of(ours / 4, ours / 4 + 0.4) == pytest.approx(0.4)
    assert difference_of(ours, ours / 0) == float("inf")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "out") as temporary:
            (temporary / "part").write_text("half")
            raise RuntimeError("hidden") from OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


# ONNX ---------------------------------------------------------------------------------------------------------------


def test_onnx_without_its_packages(
    commands: Commands, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    result = commands.fewstep("export", student, tmp_path / "out", "--format", "onnx")
    result.is_one_error("--format onnx needs onnxruntime", "pip install fewstep[onnx]")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "w"), [("ResidualMLP", None), ("UNet", (0.0, 4.0))])
def test_onnx_computes_what_the_network_does(tmp_path: Path, name: str, w: tuple[float, float] | None) -> None:
    import onnxruntime

    path = write_model(tmp_path / "model.safetensors", name, w=w)
    assert export(path, tmp_path / "out", format="onnx") < 1e-5
    assert files_below(tmp_path / "out") == ["README.md", "fewstep.json", "model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["z", "time", "label", *(["w"] if w else [])]
    assert [given.name for given in session.get_inputs()] == names
    given = onnx_file.inputs_of(fewstep.load(path), 5)  # a third number of images
    (output,) = session.run(None, {key: value.numpy() for key, value in given.items()})
    network = fewstep.load(path).denoiser.network
    with torch.no_grad():
        expected = network(given["z"], given["time"], given["label"], given.get("w"))
    torch.testing.assert_close(torch.as_tensor(output), expected, rtol=1e-4, atol=1e-5)


def test_formats_are_those_the_card_knows() -> None:
    from fewstep.export.card import LIBRARY

    assert set(folder_module.FORMATS) == set(LIBRARY)


@pytest.mark.parametrize(
    ("name", "card"), [("UNet", {}), ("UNet2D", {"schedule": BETAS, "native_schedule": BETAS})], ids=["cosine", "betas"]
)
def test_the_readme_of_onnx_says_at_which_times_the_network_is_called(
    tmp_path: Path, name: str, card: dict[str, object]
) -> None:
    sampling = Sampling(sampler="renoise", times=(1.0, 0.6, 0.2), guidance="input")
    model = fewstep.load(write_model(tmp_path / "model.safetensors", name, sampling=sampling, **card))
    text = onnx_usage(model)
    times: list[float] = []

    def record(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        times.append(float(arguments[1][0]))

    model.denoiser.network.register_forward_pre_hook(record)
    model.sample([0], w=1.0)
    assert "The sampler is yours: renoise, calling it at time = " in text
    assert [float(value) for value in text.removesuffix(".").split("= ")[-1].split(", ")] == pytest.approx(times, 1e-4)
