"""The small text encoder: it tells captions apart by what is in the images, and is read as Stable Diffusion's is."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from webdataset.writer import TarWriter

from fewstep.data.make_encoder import Captioned, EncoderSettings, EncoderTraining, ShardImages, merges_of
from fewstep.data.text import TextData
from fewstep.networks.frozen.text_encoder import TextEncoder, write_tokenizer
from fewstep.runs.build import data_of

pytest_plugins = ("running",)
COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "black", "white")


def write_colours(folder: Path, num_shards: int = 3, count: int = 16, caption: str = "a {} square") -> None:
    """Shards of squares in eight colours, each with its name as caption."""
    folder.mkdir(exist_ok=True)
    for number in range(num_shards):
        with TarWriter(str(folder / f"{number}.tar"), mtime=0) as writer:
            for index in range(count):
                colour, file = COLOURS[index % 8], io.BytesIO()
                Image.new("RGB", (16, 16), colour).save(file, "PNG")
                writer.write({"__key__": f"{index:03d}", "png": file.getvalue(), "txt": caption.format(colour)})


def colours() -> Captioned:
    names = [COLOURS[index % 8] for index in range(32)]
    images = [torch.tensor(list(Image.new("RGB", (1, 1), name).tobytes()), dtype=torch.uint8) for name in names]
    return Captioned(
        torch.stack(images)[:, :, None, None].expand(-1, 3, 16, 16), [f"a {name} square" for name in names]
    )


def test_captions_are_told_apart_by_the_images(tmp_path: Path) -> None:
    settings = EncoderSettings(vocabulary=600, features=16, tokens=8, images=32 * 60, batch_size=32)
    data = colours()
    training = EncoderTraining(data, settings)
    losses = list(training.steps())
    assert len(losses) == training.num_steps == 60
    with torch.no_grad():
        images = training.pictures(data.images.float() / 127.5 - 1)
        texts = training.texts(training.tokens_of([f"a {name} square" for name in COLOURS]))
    assert (images @ texts.T).argmax(1).tolist() == [index % 8 for index in range(32)]
    assert losses[-1] < losses[0] - 1
    assert training.retrieval(data) == (1.0, 5 / 8)

    encoder = training.save(tmp_path / "encoder")
    assert (encoder.facts().tokens, encoder.facts().features) == (8, 16)
    with torch.no_grad():
        wanted = training.text(training.tokens_of(["a red square", ""])).last_hidden_state
    torch.testing.assert_close(TextEncoder.open(tmp_path / "encoder").encode(["a red square", ""]), wanted)
    assert {path.suffix for path in (tmp_path / "encoder").rglob("*.*")} == {".json", ".txt", ".safetensors"}
    with pytest.raises(ValueError, match=r"--out .*encoder exists"):
        training.save(tmp_path / "encoder")


def test_frequent_pairs_become_tokens_and_every_text_has_some(tmp_path: Path) -> None:
    merges = merges_of(["smiling face", "winking face", "Face of a cat", "flag"], 600)
    assert len(write_and_read(tmp_path, merges, "face")) == 3  # with both ends
    assert len(write_and_read(tmp_path, merges, "flag")) == 2 + 4  # occurs once
    ids = write_and_read(tmp_path, merges, "é ☃ zebra")
    end = max(ids)
    assert ids.count(end) == 1  # no token is unknown
    assert len(merges_of(["smiling face"] * 9, 516)) == 2


def write_and_read(folder: Path, merges: list[tuple[str, str]], text: str) -> list[int]:
    from transformers import CLIPTokenizer

    write_tokenizer(folder, tokens=32, merges=merges)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)(text).input_ids


def test_what_cannot_be_trained_is_refused() -> None:
    for wrong in ({"vocabulary": 500}, {"tokens": 2}, {"images": 1}, {"batch_size": 1}):
        with pytest.raises(ValueError, match="a vocabulary of at least 514, 4 tokens"):
            EncoderSettings(**wrong)
    with pytest.raises(ValueError, match="multiple of 16, got 24"):
        EncoderSettings(features=24)
    with pytest.raises(ValueError, match="different captions, and there are 0"):
        Captioned.of(iter(()))


def test_shards_get_an_encoder_by_one_command(commands, tmp_path: Path) -> None:
    write_colours(tmp_path / "shards")
    ask = ("data", "encoder", tmp_path / "shards", "size=16")
    small = ("--images", 64, "--batch-size", 16, "--features", 16)
    made = commands.fewstep(*ask, *small)
    assert made.status == 0, made
    assert "tokens from 32 captions, prompts of 24 x 16; use it as dataset.encoder=" in made.out
    assert "by chance for 62%" in made.out
    checked = commands.fewstep(
        "data", "check", "text_pixels", "size=16", "--root", tmp_path / "shards", "--out", tmp_path / "grid.png"
    )
    assert checked.status == 0, checked
    assert "prompts are 24 x 16, for example ['a red square']" in checked.out
    commands.fewstep(*ask).is_one_error("exists", "name another folder")


def test_an_autoencoder_is_trained_on_the_images_of_shards(commands, tmp_path: Path) -> None:
    write_colours(tmp_path / "shards")
    ask = ("data", "autoencoder", "text_pixels", f"root={tmp_path / 'shards'}", "size=16", "--images", 64)
    made = commands.fewstep(*ask, "--width", 8, "--batch-size", 16, "--out", tmp_path / "shards" / "autoencoder")
    assert made.status == 0, made
    assert "latents 4 x 4 x 4; of 16 held-out images PSNR" in made.out
    assert "left out" not in made.out


def test_images_without_room_are_left_out_and_captions_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_colours(tmp_path, caption="the same")
    source = data_of("text_pixels", [f"root={tmp_path}", "size=16"], batch_size=4)
    assert isinstance(source, TextData)
    whole = ShardImages(source)
    assert (len(whole.labels), whole.left_out) == (32, 0)
    monkeypatch.setattr("fewstep.data.make_encoder.MOST_BYTES", 5 * 3 * 16 * 16)
    part = ShardImages(source)
    assert (len(part.labels), part.left_out) == (5, 32 - 5)
    assert torch.equal(part.images[torch.arange(5)], whole.images[torch.arange(5)])
    assert torch.equal(part.reference().x, source.reference().x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_pixels", "text_latents"])
def test_prompts_work_without_stable_diffusion(commands, tmp_path: Path, name: str) -> None:
    shards = tmp_path / "shards"
    write_colours(shards)
    data = (f"dataset={name}", f"dataset.root={shards}", f"outputs={tmp_path / 'outputs'}")
    assert commands.fewstep("data", "encoder", shards, "--images", 64, "--batch-size", 16).status == 0
    if name == "text_latents":
        refused = commands.train(*data, "trainer=debug")
        assert refused.status == 2
        command = f"fewstep data autoencoder text_pixels root={shards} --out {shards / 'autoencoder'}"
        assert "has no autoencoder: name a folder with vae/" in refused.err
        assert f"train one with `{command}`" in refused.err
        ask = ("data", "autoencoder", "text_pixels", f"root={shards}", "--out", shards / "autoencoder")
        assert commands.fewstep(*ask, "--images", 64, "--batch-size", 16, "--width", 8).status == 0
    small = ("trainer=debug", "trainer.diagnostics=0", "logger=csv", "stage.progressive.ladder=[2,1]")
    made = commands.train(*data, *small, "stage.stages=[teacher,guidance,progressive]")
    assert made.status == 0, made
    student = next(tmp_path.glob(f"outputs/{name}/progressive/*/model-1.safetensors"))
    sampled = commands.fewstep("sample", student, "--prompt", "a red square", "--num", 2, "--out", tmp_path / "a.png")
    assert sampled.status == 0, sampled
