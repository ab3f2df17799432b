"""edit, inpaint, transfer, interpolate: the commands and their Python calls, on models of a second's training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import Commands, files_below

import fewstep
from fewstep.artifacts.model_file import ModelCard, save_model
from fewstep.data.digits import DigitsData
from fewstep.diffusion.prediction import diffuse
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.inference.model import Model
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.system.seeds import fresh_noise, starting_noise

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
TASKS = ("edit", "inpaint", "transfer", "interpolate")
SAMPLINGS = {
    "teacher": Sampling(),
    "guided": Sampling(guidance="input"),
    "2": Sampling.uniform(2, guidance="input"),
    "encoder": Sampling.uniform(2, guidance="input", direction="encode"),
    "stochastic": Sampling.uniform(2, sampler="stochastic", guidance="input"),
    "renoise": Sampling(sampler="renoise", times=(1.0, 0.7, 0.4, 0.1), guidance="input"),
    "unguided": Sampling(sampler="renoise", times=(1.0, 0.6), guidance="none"),
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> dict[str, Path]:
    """Networks of random weights: a teacher, a guided student, few-step students and an encoder of two steps."""
    folder, files, facts = tmp_path_factory.mktemp("chain"), {}, DigitsData.facts
    for name, sampling in SAMPLINGS.items():
        has_w = sampling.guidance == "input"
        network = ResidualMLP(
            shape=facts.shape,
            num_classes=facts.num_classes,
            width=32,
            num_blocks=1,
            embedding_dim=16,
            guidance_input=has_w,
        )
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.1, generator=generator)
        files[name] = folder / f"{name}.safetensors"
        card = ModelCard(
            method=name,
            data=facts,
            prediction="v",
            schedule=CosineSchedule(),
            sampling=sampling,
            w_min=0.0 if has_w else None,
            w_max=4.0 if has_w else None,
            images=0,
            parents=(),
        )
        save_model(files[name], Denoiser(network.eval()), card)
    return files


@pytest.fixture
def digits(tmp_path) -> Path:
    """Five images, one of each class 0..4, as `fewstep sample` writes them."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    path = tmp_path / "in" / "digits.npz"
    path.parent.mkdir()
    np.savez_compressed(path, images=pixels, labels=np.arange(5))
    return path


@pytest.fixture
def digit(digits) -> Path:
    """The first of them, as a picture."""
    path = digits.with_name("zero.png")
    Image.fromarray(images_in(digits)[0, :, :, 0]).save(path)
    return path


def images_in(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["images"]


def labels_in(path: Path) -> list[int]:
    with np.load(path) as file:
        return file["labels"].tolist()


def made(commands: Commands, *arguments: str | Path) -> np.ndarray:
    """What a command writes to --out, the last of its arguments, without a warning."""
    result = commands.fewstep(*arguments)
    assert (result.status, result.err) == (0, ""), result
    return images_in(Path(arguments[-1]))


def as_floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pixels(x: torch.Tensor) -> np.ndarray:
    return np.rint((x.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)


def test_edit_is_its_python_call(commands, chain, digits, tmp_path):
    out = tmp_path / "out.npz"
    options = ("--label", "3", "--strength", "0.5", "--steps", "2", "--w", "2", "--seed", "1")
    edited = made(commands, "edit", chain["2"], digits, *options, "--out", out)
    x = as_floats(images_in(digits))
    expected = fewstep.edit(fewstep.load(chain["2"]), x, [3] * 5, strength=0.5, w=2.0, seed=1)
    assert np.array_equal(edited, as_pixels(expected))
    assert labels_in(out) == [3] * 5
    by_two = fewstep.edit(fewstep.load(chain["2"]), x, [3] * 5, strength=0.5, w=2.0, seed=1, batch_size=2)
    torch.testing.assert_close(by_two, expected)


def test_edit_from_nothing_to_everything(commands, chain, digits, tmp_path):
    """Strength 0 is the source, strength 1 is `fewstep sample` from the same seed; labels come with the images."""
    out = tmp_path / "out.npz"
    kept = made(commands, "edit", chain["2"], digits, "--strength", "0", "--out", out)
    assert np.array_equal(kept, images_in(digits))
    assert labels_in(out) == list(range(5))
    replaced = made(commands, "edit", chain["2"], digits, "--strength", "1", "--seed", "3", "--out", out)
    sampled = made(commands, "sample", chain["2"], "--num", "5", "--seed", "3", "--out", tmp_path / "s.npz")
    assert np.array_equal(replaced, sampled)


def test_a_strength_that_rounds_to_no_step_is_said(commands, chain, digits, tmp_path):
    result = commands.fewstep("edit", chain["2"], digits, "--strength", "0.2", "--out", tmp_path / "a.npz")
    assert result.status == 0
    assert result.err.startswith("warning: strength 0.2 of 2 steps is no step")
    assert "0.25 or more" in result.err


def test_a_teacher_edits_with_two_evaluations_a_step(commands, chain, digits, tmp_path):
    result = commands.fewstep("edit", chain["teacher"], digits, "--steps", "8", "--out", tmp_path / "a.npz")
    assert (result.status, result.err) == (0, "")
    assert "5 images, 4 x 2 evaluations each, w = 1 (guidance_scale 2)" in result.out


@pytest.mark.parametrize("half", ["left", "right", "top", "bottom"])
def test_inpaint_returns_known_pixels_exactly(commands, chain, digits, tmp_path, half):
    given, out = images_in(digits), tmp_path / "out.npz"
    filled = made(commands, "inpaint", chain["2"], digits, "--mask", half, "--out", out)
    missing = np.zeros((8, 8), dtype=bool)
    missing[{"left": np.s_[:, :4], "right": np.s_[:, 4:], "top": np.s_[:4], "bottom": np.s_[4:]}[half]] = True
    assert np.array_equal(filled[:, ~missing], given[:, ~missing])
    assert not np.array_equal(filled[:, missing], given[:, missing])
    given[:, missing] = 0  # what was there is never looked at
    np.savez(tmp_path / "cut.npz", images=given, labels=np.arange(5))
    again = made(commands, "inpaint", chain["2"], tmp_path / "cut.npz", "--mask", half, "--out", out)
    assert np.array_equal(again, filled)


def test_masks_from_files(commands, chain, digits, digit, tmp_path):
    """White of a PNG is missing; so is what is not 0 in an .npz, the same for all images or one mask for each."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:6, 3:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.savez(tmp_path / "one.npz", mask=mask)
    np.savez(tmp_path / "each.npz", mask=np.stack([mask] * 5) > 0)
    filled = [
        made(commands, "inpaint", chain["2"], digits, "--mask", tmp_path / name, "--out", tmp_path / "out.npz")
        for name in ("mask.png", "one.npz", "each.npz")
    ]
    assert np.array_equal(filled[0], filled[1])
    assert np.array_equal(filled[0], filled[2])
    assert np.array_equal(filled[0][:, mask == 0], images_in(digits)[:, mask == 0])
    assert not np.array_equal(filled[0], images_in(digits))
    result = commands.fewstep(
        "inpaint", chain["2"], digit, "--mask", tmp_path / "mask.png", "--label", "0", "--out", tmp_path / "one.png"
    )
    assert result.status == 0, result
    with Image.open(tmp_path / "one.png") as image:  # one image: itself, not a grid
        assert np.array_equal(np.asarray(image), filled[0][0, :, :, 0])


def test_a_mask_follows_its_image_through_the_conversion(commands, chain, tmp_path):
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8))
    large.save(tmp_path / "large.png")
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:, 29] = 255  # column 29 is 19 in the centre 40 x 40, and so in column 3 of 8
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.npz"
    result = commands.fewstep(
        "inpaint", chain["2"], tmp_path / "large.png", "--mask", tmp_path / "mask.png", "--label", "1", "--out", out
    )
    assert result.status == 0, result
    warning = "warning: 1 image(s) centre-cropped and resized from 60 x 40 to 8 x 8"
    assert result.err.strip() == warning
    commands.fewstep(
        "edit", chain["2"], tmp_path / "large.png", "--label", "1", "--strength", "0", "--out", tmp_path / "s.npz"
    )
    changed = (images_in(out) != images_in(tmp_path / "s.npz"))[0].any((0, 2))
    assert changed.nonzero()[0].tolist() == [3]


def test_images_of_other_modes_are_converted_and_that_is_said(commands, chain, digit, tmp_path):
    grey = np.asarray(Image.open(digit))
    Image.fromarray(np.stack([grey, grey, np.zeros_like(grey)], 2)).save(tmp_path / "colour.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "large.jpg", quality=100)
    for name, ending in (
        ("colour.png", "of colour made grey"),
        ("deep.png", "16 bits to 8"),
        ("large.jpg", "centre-cropped and resized from 16 x 16 to 8 x 8"),
    ):
        out = tmp_path / "out.npz"
        result = commands.fewstep("edit", chain["2"], tmp_path / name, "--label", "1", "--strength", "0", "--out", out)
        assert result.status == 0, result
        assert result.err.startswith("warning: 1 image(s) "), result.err
        assert result.err.strip().endswith(ending)
        if name == "deep.png":
            assert np.array_equal(images_in(out)[0, :, :, 0], grey)


@pytest.mark.parametrize("encoder", ["encoder", "guided", "teacher"])
def test_transfer_is_its_python_call(commands, chain, digits, tmp_path, encoder):
    out = tmp_path / "out.npz"
    steps = () if encoder == "encoder" else ("--encode-steps", "3")
    options = ("--to", "7", "--encoder", chain[encoder], *steps, "--w", "2")
    moved = made(commands, "transfer", chain["2"], digits, *options, "--out", out)
    expected = fewstep.transfer(
        fewstep.load(chain["2"]),
        as_floats(images_in(digits)),
        range(5),
        [7] * 5,
        encoder=fewstep.load(chain[encoder]),
        encode_steps=2 if encoder == "encoder" else 3,
        w=2.0,
        encode_w=0.0,
    )
    assert np.array_equal(moved, as_pixels(expected))
    assert labels_in(out) == [7] * 5


def test_a_guided_student_encodes_for_itself_and_gives_the_images_back(commands, chain, digits, tmp_path):
    """Even random weights have a flow, and its cycle closes with many steps."""
    many = ("--steps", "256", "--encode-steps", "256", "--w", "0")
    back = made(
        commands, "transfer", chain["guided"], digits, "--from", "1", "--to", "1", *many, "--out", tmp_path / "a.npz"
    )
    assert np.abs(back.astype(int) - images_in(digits).astype(int)).max() <= 2
    result = commands.fewstep("transfer", chain["2"], digits, "--to", "1", "--out", tmp_path / "a.npz")
    assert result.status == 0
    assert "a few-step student was made to sample and encodes badly: give an encoder" in result.err


class Calls:
    """The log-SNRs at which a model's network is called, by the number of examples of the call."""

    def __init__(self, model: Model) -> None:
        self.times: list[float] = []
        self.examples = 0
        self.schedule = model.card.schedule
        model.denoiser.register_forward_pre_hook(self.record)

    def record(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self.examples += len(arguments[0])
        self.times.append(round(float(self.schedule.time(arguments[1])[0]), 6))


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_loaded_model_costs_what_its_card_says(chain, name):
    """One evaluation a step, two for models that combine both branches: whether there is a w does not decide."""
    model = fewstep.load(chain[name])
    calls, sampling = Calls(model), model.card.sampling
    z, label = torch.randn(3, 1, 8, 8), torch.arange(3)
    model.denoise(z, torch.zeros(3), label, torch.ones(3))
    assert calls.examples == 3 * model.evaluations_per_step
    assert model.evaluations_per_step == (2 if sampling.guidance == "two_evaluations" else 1)
    if sampling.direction == "decode" and sampling.times is not None:
        calls.times.clear()
        calls.examples = 0
        model.sample([0, 1, 2])
        assert calls.times == list(sampling.times)
        assert calls.examples == 3 * len(sampling.times) * model.evaluations_per_step


@pytest.mark.parametrize(
    ("strength", "times"), [(0.3, [0.4, 0.1]), (0.54, [0.4, 0.1]), (0.56, [0.7, 0.4, 0.1]), (0.2, [0.1])]
)
def test_an_edit_begins_at_the_models_level_nearest_to_the_strength(chain, digits, strength, times):
    model = fewstep.load(chain["renoise"])
    calls = Calls(model)
    fewstep.edit(model, as_floats(images_in(digits)), range(5), strength=strength)
    assert calls.times == times


def test_fewer_steps_of_a_model_that_goes_to_the_end_are_of_its_own_levels(commands, chain, digits, tmp_path):
    out = ("--out", tmp_path / "a.npz")
    result = commands.fewstep("edit", chain["renoise"], digits, "--steps", "2", "--strength", "0.4", *out)
    assert (result.status, result.err) == (0, "")
    assert "5 images, 1 x 1 evaluations each" in result.out
    result = commands.fewstep("edit", chain["renoise"], digits, "--steps", "3", *out)
    assert "warning: this student was made for 1 or 2 or 4 steps, not 3" in result.err


def test_an_edit_and_inpainting_noise_afresh_where_the_model_does(chain, digits):
    """By hand: the prediction at each level, noised with the fresh noise of each image and move."""
    model, x = fewstep.load(chain["renoise"]), as_floats(images_in(digits))
    label, w = torch.arange(5), torch.ones(5)
    noise, fresh = starting_noise(3, 0, 5, (1, 8, 8)), fresh_noise(3, 0, 5, (1, 8, 8))
    mask = torch.zeros(5, 1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = True

    def by_hand(levels, missing):
        log_snrs = [t.expand(5) for t in model.card.schedule.log_snr(torch.tensor(levels))]
        z = diffuse(x=x, eps=noise, log_snr=log_snrs[0]).z if levels[0] < 1 else noise
        z = z if missing is None else torch.where(missing, noise, diffuse(x=x, eps=noise, log_snr=log_snrs[0]).z)
        for move, log_snr in enumerate(log_snrs):
            if move:
                z = diffuse(x=predicted, eps=fresh(move), log_snr=log_snr).z
            predicted = model.denoise(z, log_snr, label, w).x
            predicted = predicted if missing is None else torch.where(missing, predicted, x)
        return predicted.clamp(-1, 1)

    edited = fewstep.edit(model, x, label, strength=0.7, seed=3)
    torch.testing.assert_close(edited, by_hand([0.7, 0.4, 0.1], None), rtol=0, atol=1e-5)
    filled = fewstep.inpaint(model, x, mask, label, seed=3)
    torch.testing.assert_close(filled, by_hand([1.0, 0.7, 0.4, 0.1], mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["stochastic", "renoise", "unguided"])
def test_a_model_whose_sampler_adds_noise_does_all_tasks_by_it(commands, chain, digits, tmp_path, name):
    w = () if name == "unguided" else ("--w", "2")
    full = ("--strength", "1", "--seed", "3", *w)
    replaced = made(commands, "edit", chain[name], digits, *full, "--out", tmp_path / "e.npz")
    sampled = made(commands, "sample", chain[name], "--num", "5", "--seed", "3", *w, "--out", tmp_path / "s.npz")
    assert np.array_equal(replaced, sampled)
    filled = made(commands, "inpaint", chain[name], digits, "--mask", "left", *w, "--out", tmp_path / "i.npz")
    assert np.array_equal(filled[:, :, 4:], images_in(digits)[:, :, 4:])
    encoder = ("--encoder", chain["encoder"])
    given = ("transfer", chain[name], digits, "--to", "7", *encoder, *w)
    moved = [made(commands, *given, "--seed", seed, "--out", tmp_path / "t.npz") for seed in "556"]
    assert np.array_equal(moved[0], moved[1])
    assert not np.array_equal(moved[0], moved[2])
    ways = made(
        commands, "interpolate", chain[name], digits, digits, *encoder, "--num", "2", *w, "--out", tmp_path / "w.npz"
    )
    assert np.array_equal(ways[::2], ways[1::2]), "a row has the same noise added"


def test_a_model_without_guidance_takes_no_w(commands, chain, digits, tmp_path):
    out = ("--out", tmp_path / "a.npz")
    for command in (("sample", chain["unguided"]), ("edit", chain["unguided"], digits)):
        commands.fewstep(*command, "--w", "1", *out).is_one_error("made without guidance and takes no w", "--w 1")
        result = commands.fewstep(*command, *out)
        assert (result.status, result.err) == (0, "")
        assert "no guidance" in result.out
        assert "guidance_scale" not in result.out


def test_the_ends_of_interpolate_are_the_cycle(commands, chain, digits, tmp_path):
    out = tmp_path / "out.npz"
    reverse = tmp_path / "reverse.npz"
    np.savez(reverse, images=images_in(digits)[::-1], labels=np.arange(5)[::-1])
    ways = made(
        commands, "interpolate", chain["2"], digits, reverse, "--encoder", chain["encoder"], "--num", "4", "--out", out
    ).reshape(5, 4, 8, 8, 1)
    assert labels_in(out)[:8] == [0, 0, 4, 4, 1, 1, 3, 3]
    options = ("--encoder", chain["encoder"], "--out", tmp_path / "cycle.npz")
    for label, (given, end) in enumerate(((digits, 0), (reverse, -1))):
        for digit in range(5):
            kept = tmp_path / "kept.npz"
            own = digit if end == 0 else 4 - digit
            np.savez(kept, images=images_in(given)[digit : digit + 1], labels=[own])
            cycle = made(commands, "transfer", chain["2"], kept, "--to", str(own), *options)
            assert np.array_equal(ways[digit, end], cycle[0]), (label, digit)
    middle = ways[2].astype(int)  # an image with itself, all the way
    assert np.abs(middle - middle[:1]).max() <= 1


def test_pictures_have_a_way_in_each_row(commands, chain, digits, tmp_path):
    out = tmp_path / "ways.png"
    given = (digits, digits, "--encoder", chain["encoder"])
    assert commands.fewstep("interpolate", chain["2"], *given, "--num", "7", "--out", out).status == 0
    with Image.open(out) as image:
        assert image.width > image.height > 0  # 7 columns, 5 rows


@pytest.mark.parametrize("command", TASKS)
def test_help_teaches(commands, command):
    result = commands.fewstep(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"Example: fewstep {command} outputs/digits/" in result.out


OUT = ["--out", "a.npz"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit", "TWO", "IN", "--out", "a.jpg"], ["--out must end in .png or .npz", "a.jpg"]),
        (["edit", "TWO", "IN", "--label", "10", *OUT], ["0..9", "digits", "[10]"]),
        (["edit", "TWO", "IN", "--strength", "1.5", *OUT], ["strength must be in [0, 1]", "1.5"]),
        (["edit", "TWO", "IN", "--w", "-1", *OUT], ["w must be", "at least 0", "-1"]),
        (["edit", "TWO", "IN", "--steps", "0", *OUT], ["steps must be at least 1", "0"]),
        (["edit", "TWO", "IN", "--prompt", "a three", *OUT], ["classes 0..9", "no prompts", "--label"]),
        (["edit", "TWO", "PNG", *OUT], ["give --label", "0..9"]),
        (["edit", "TWO", "none.png", *OUT], ["none.png", "must be a file"]),
        (["edit", "TWO", "none.npz", *OUT], ["none.npz", "must be a file"]),
        (["edit", "TWO", "TEXT", "--label", "1", *OUT], ["text.png", "no image"]),
        (["edit", "TWO", "CUT", "--label", "1", *OUT], ["cut.png", "truncated"]),
        (["edit", "TWO", "CUTNPZ", *OUT], ["cut.npz", "truncated"]),
        (["edit", "TWO", "MASK", *OUT], ["mask.npz", "'images'", "['mask']"]),
        (["edit", "ENCODER", "IN", *OUT], ["encoder", "data to noise"]),
        (["evaluate", "ENCODER"], ["an encoder makes no samples to judge", "cycle.json"]),
        (["edit", "TWO", *OUT], ["IMAGE", "fewstep edit --help"]),
        (["inpaint", "TWO", "IN", *OUT], ["--mask", "fewstep inpaint --help"]),
        (["inpaint", "TWO", "IN", "--mask", "PNG16", *OUT], ["8 x 8", "16 x 16"]),
        (["inpaint", "TWO", "IN", "--mask", "MASK", *OUT], ["(1, 8, 8)", "(7, 7)"]),
        (["inpaint", "TWO", "IN", "--mask", "BLACK", *OUT], ["black.png", "marks nothing"]),
        (["inpaint", "TWO", "IN", "--mask", "half", *OUT], ["left, right, top, bottom or a file", "'half'"]),
        (["transfer", "TWO", "IN", "--to", "10", *OUT], ["0..9", "[10]"]),
        (["transfer", "TWO", "IN", "--to", "seven", *OUT], ["--to", "0..9", "'seven'"]),
        (["transfer", "TWO", "PNG", "--to", "7", *OUT], ["give --from", "0..9"]),
        (
            ["transfer", "GUIDED", "IN", "--to", "7", "--encode-steps", "0", *OUT],
            ["steps of encoding must be at least 1", "0"],
        ),
        (["edit", "TWO", "IN", "--label", "1" + "0" * 20, *OUT], ["labels must be", "0..9", "1" + "0" * 20]),
        (["transfer", "TWO", "IN", "--to", "1" + "0" * 20, *OUT], ["labels must be", "0..9", "1" + "0" * 20]),
        (["edit", "TWO", "IN", "--w", "1e39", *OUT], ["w must be", "at most 10000", "1e+39"]),
        (["transfer", "GUIDED", "IN", "--to", "7", "--encode-w", "-1", *OUT], ["w must be", "at least 0", "-1"]),
        (["transfer", "TWO", "IN", "--to", "7", "--encoder", "none", *OUT], ["none", "fewstep info"]),
        (["interpolate", "GUIDED", "IN", "PNG", "--from", "1", *OUT], ["pairs", "(5, 1, 8, 8)", "(1, 1, 8, 8)"]),
        (["interpolate", "GUIDED", "IN", "IN", "--num", "1", *OUT], ["num must be at least 2", "1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_are_one_line(commands, chain, digits, digit, tmp_path, monkeypatch, arguments, words):
    folder = digits.parent
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes(digit.read_bytes()[:-40])
    (folder / "cut.npz").write_bytes(digits.read_bytes()[:200])
    np.savez(folder / "mask.npz", mask=np.ones((7, 7)))
    Image.new("L", (16, 16), 255).save(folder / "16.png")
    Image.new("L", (8, 8)).save(folder / "black.png")
    named = {"IN": digits, "PNG": digit, "TEXT": "text.png", "CUT": "cut.png", "CUTNPZ": "cut.npz"}
    named |= {"MASK": "mask.npz", "PNG16": "16.png", "BLACK": "black.png"}
    named |= {"TWO": chain["2"], "GUIDED": chain["guided"], "ENCODER": chain["encoder"]}
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    typed = [folder / named[argument] if argument in named else argument for argument in arguments]
    commands.fewstep(*typed).is_one_error(*words)
    assert files_below(tmp_path / "cwd") == []


def test_python_calls_refuse_what_does_not_fit(chain):
    model, x = fewstep.load(chain["2"]), torch.zeros(2, 1, 8, 8)
    missing = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\).*\(2, 1, 9, 9\)"):
        fewstep.edit(model, torch.zeros(2, 1, 9, 9), [1, 2])
    with pytest.raises(ValueError, match=r"2, 1, 8, 8.* and 3 conditions"):
        fewstep.edit(model, x, [1, 2, 3])
    with pytest.raises(ValueError, match="the mask must be True where"):
        fewstep.inpaint(model, x, missing[:1], [1, 2])
    with pytest.raises(ValueError, match="0 True"):
        fewstep.inpaint(model, x, ~missing, [1, 2])
    with pytest.raises(ValueError, match="2 images, 1 conditions"):
        fewstep.transfer(model, x, [1], [2, 2], encoder=fewstep.load(chain["encoder"]))
    other = fewstep.load(chain["guided"])
    other = replace(other, card=replace(other.card, data=replace(other.card.data, name="letters")))
    with pytest.raises(ValueError, match="own data and schedule, digits, and this one is of letters"):
        fewstep.transfer(model, x, [1, 1], [2, 2], encoder=other)


def test_what_a_model_was_not_made_for_is_a_warning(chain):
    model, x = fewstep.load(chain["2"]), torch.zeros(1, 1, 8, 8)
    encoder = fewstep.load(chain["encoder"])
    with pytest.warns(UserWarning, match="encoder was made for 2 steps, not 3"):
        fewstep.transfer(model, x, [1], [2], encoder=encoder, encode_steps=3)
    with pytest.warns(UserWarning, match=r"encoder was made for w in \[0, 4\], not 5"):
        fewstep.transfer(model, x, [1], [2], encoder=encoder, encode_w=5.0)
    with pytest.warns(UserWarning, match="student was made for 2 steps, not 4"):
        fewstep.edit(model, x, [1], steps=4)
