"""Captioned shards: the order is a function of the step, whoever reads; what is damaged is left out and counted."""

import io
import json
import shutil
import tarfile
import warnings
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save
from webdataset.writer import TarWriter

from fewstep.data.captioned import decode_sample, is_sample
from fewstep.data.encoded import ENCODER_BATCH, EncodedImages
from fewstep.data.generate_text import CAPTIONS, generate_text, some_patches
from fewstep.data.make_encoder import ShardImages
from fewstep.data.shards import INDEX, open_shards, samples_of, scan
from fewstep.data.text import TextData, TextLatentsData, TextPixelsData
from fewstep.evaluation.extractors import images_to_train_on
from fewstep.networks.frozen.autoencoder import Autoencoder
from fewstep.networks.frozen.text_encoder import TextEncoder
from fewstep.system.seeds import seed_for

pytest_plugins = ("running",)
COUNT, NUM_SHARDS = 50, 5  # ten in each, and 25 held out in a sixth


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    generate_text(folder, count=COUNT, num_shards=NUM_SHARDS)
    return folder


@pytest.fixture
def own(generated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(generated, tmp_path / "text"))


def opened(
    root: Path, *, latent: bool = False, encoder: Path | None = None, kind: type[TextData] = TextData, **changed: object
) -> TextData:
    settings = {
        "root": str(root), "size": 32, "encoder": str(encoder or root), "autoencoder": str(root) if latent else None,
        "held_out_shards": 1, "num_reference": 20, "walks": 3, "buffer": 4, "num_workers": 0, "strict": False,
        "clip": None, "batch_size": 7, "stream": "0/teacher",
    }  # fmt: skip
    return kind(**settings | changed)


def names(data: TextData, steps: range) -> list[list[str]]:
    """Which samples make up each batch, by their keys."""
    reader = data.reader()
    reader.decode = lambda raw: raw["__key__"]
    return [[key for _, key in reader.rows(step)] for step in steps]


def test_every_walk_reads_its_share_of_each_epoch_once_in_a_new_order(generated: Path) -> None:
    data = opened(generated)
    for walks in (1, 2, 5):
        data.num_walks = walks
        keys = [[] for _ in range(walks)]
        for number, walk in enumerate(data.reader().walks):
            keys[number] = [raw["__key__"] for _, raw in zip(range(2 * COUNT // walks), walk.raw_from(0), strict=False)]
        if walks in (1, 5):  # equal shares
            first = [key for own in keys for key in own[: COUNT // walks]]
            second = [key for own in keys for key in own[COUNT // walks :]]
            assert sorted(first) == sorted(second) == [f"{n:06d}" for n in range(COUNT)]
            assert first != second
    assert names(opened(generated, stream="1/teacher"), range(3)) != names(opened(generated), range(3))


def test_a_batch_depends_on_its_step_alone(generated: Path) -> None:
    data = opened(generated, latent=True)
    forward = [data.batch(step) for step in range(12)]  # past the first epoch
    fresh = opened(generated, latent=True)
    for step in (9, 10, 3, 0, 11):
        batch = fresh.batch(step)
        assert torch.equal(batch.x, forward[step].x)
        assert torch.equal(batch.label, forward[step].label)
        assert len(batch.x) == 7
    assert not torch.equal(forward[0].x, forward[1].x)


def test_resuming_opens_no_shard_before_its_place(generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        "fewstep.data.shards.samples_of", lambda shard, is_sample: read.append(shard) or samples_of(shard, is_sample)
    )
    data = opened(generated, walks=1)
    next(data.reader().walks[0].raw_from(1000 * COUNT + 3 * 10))
    assert len(read) == 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(generated: Path, num_workers: int) -> None:
    alone = [opened(generated, latent=True).batch(step) for step in range(4, 7)]
    many = list(opened(generated, latent=True, num_workers=num_workers).batches(4, 7))
    for one, other in zip(alone, many, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.label, other.label)


def test_ranks_share_the_rows_of_each_batch(generated: Path) -> None:
    whole = opened(generated, latent=True, walks=4, batch_size=8).batch(5)
    parts = [next(opened(generated, latent=True, walks=4, batch_size=8).batches(5, 6, rank, 2)) for rank in range(2)]
    assert [len(part.x) for part in parts] == [4, 4]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)  # in order, as draws have them
    assert torch.equal(torch.cat([part.label for part in parts]), whole.label)


def test_small_captioned_images_train_an_extractor_of_their_own(generated: Path) -> None:
    for kind, latent in ((TextPixelsData, False), (TextLatentsData, True)):
        images = images_to_train_on(opened(generated, kind=kind, latent=latent), "own")
        assert isinstance(images, ShardImages)
        assert (len(images.labels), images.facts.shape) == (COUNT, (3, 32, 32))
    assert images_to_train_on(opened(generated), "own") is None  # of text, which may be large


def encoded_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images of the calls of an autoencoder's `encode` from now on."""
    calls, encode = [], Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: calls.append(len(x)) or encode(self, x))
    return calls


def test_images_are_encoded_in_their_first_epoch_alone(generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, data, images = encoded_by(monkeypatch), opened(generated, latent=True), opened(generated)
    steps = range(3 * COUNT // 7)
    batches, known, expected = [data.batch(step) for step in steps], set[bytes](), 0
    for step in steps:
        new = {row.x.tobytes() for _, row in images.reader().rows(step)} - known
        known |= new
        expected += bool(new)
    assert calls == [ENCODER_BATCH] * expected
    assert expected < len(steps)
    autoencoder = Autoencoder.open(generated)
    mean, variance = autoencoder.encode(images.batch(2).x)
    generator = torch.Generator().manual_seed(seed_for(data.stream, "latents", 2))
    eps = torch.randn(mean.shape, generator=generator)
    torch.testing.assert_close(batches[2].x, autoencoder.latents(mean + variance.sqrt() * eps), rtol=1e-4, atol=1e-5)


def test_moments_depend_on_no_other_image_and_are_kept_by_device_alone(generated: Path) -> None:
    autoencoder, data = Autoencoder.open(generated), opened(generated)
    images = torch.from_numpy(np.stack([sample.x for step in (0, 1, 2) for _, sample in data.reader().rows(step)]))
    known, order = EncodedImages(), torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    whole = known.of(images, autoencoder, "cpu")
    assert torch.equal(EncodedImages().of(images[order], autoencoder, "cpu"), whole[order])
    assert torch.equal(EncodedImages().of(images[3:4], autoencoder, "cpu")[0], whole[3])
    kept = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in known._known.values()}
    assert sum(kept.values()) == sum(each.nbytes for each in known._known.values())

    class OnMeta(Autoencoder):
        def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return whole[: len(images), 0].to(images.device), whole[: len(images), 1].to(images.device)

    elsewhere = OnMeta(autoencoder.network, autoencoder.folder, autoencoder.digest)
    assert known.of(images, elsewhere, "meta").device.type == "meta"  # though the CPU has all of them
    assert torch.equal(known.of(images, autoencoder, "cpu"), whole)


def test_what_does_not_fit_in_memory_is_encoded_again_to_the_same(
    generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [opened(generated, latent=True).batch(step).x for step in range(4)]
    calls = encoded_by(monkeypatch)
    monkeypatch.setattr("fewstep.data.encoded.MAX_CACHED", 1)
    data = opened(generated, latent=True)
    for _ in range(2):
        assert all(torch.equal(data.batch(step).x, whole[step]) for step in range(4))
    assert calls == [ENCODER_BATCH] * 8


def test_samples_are_the_pictures_with_their_captions(generated: Path) -> None:
    data, source = opened(generated), some_patches(COUNT)
    encoder = TextEncoder.open(generated)
    raw = {r["__key__"]: r for shard in data.train_shards for r in samples_of(shard, is_sample)}
    assert len(raw) == COUNT
    for index in range(COUNT):
        sample = decode_sample(raw[f"{index:06d}"], size=32, background="white")
        assert sample.caption == CAPTIONS[int(source.labels[index])]
        exact = index % 2  # PNG; JPEG is near
        difference = np.abs(sample.x.astype(int) - source.images[torch.tensor([index])][0].numpy())
        assert difference.max() == 0 if exact else difference.mean() < 20
    batch = data.batch(0)
    assert float(batch.x.min()) >= -1
    assert {tuple(e.flatten().tolist()) for e in batch.label} <= {
        tuple(e.flatten().tolist()) for e in encoder.encode(CAPTIONS)
    }
    torch.testing.assert_close(data.empty_prompt, encoder.empty_prompt)


def test_the_last_shard_is_the_reference_and_the_source_of_prompts(generated: Path) -> None:
    data, held_out = opened(generated), some_patches(COUNT).held_out
    assert {shard.path.name for shard in data.test_shards} == {"00005.tar"}
    reference = data.reference()
    assert reference.x.shape == (20, 3, 32, 32)
    assert torch.equal(reference.label, torch.zeros(20, dtype=torch.long))
    prompts = data.prompts(22)
    assert prompts == [CAPTIONS[int(held_out.labels[n % 20])] for n in range(22)]
    assert prompts is not None
    torch.testing.assert_close(data.conditions(22), TextEncoder.open(generated).encode(prompts), rtol=1e-4, atol=1e-5)


def test_shards_of_latents_and_embeddings_need_no_encoding(generated: Path, tmp_path: Path) -> None:
    autoencoder, generator = Autoencoder.open(generated), np.random.default_rng(0)
    moments = generator.normal(size=(24, 2, 4, 8, 8)).astype(np.float16) ** 2
    text = generator.normal(size=(24, 32, 16)).astype(np.float16)
    for shard in range(3):
        with TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for n in range(shard * 8, shard * 8 + 8):
                both = {"safetensors": save({"latent": moments[n], "text": text[n]})}
                apart = {"latent.npy": array(moments[n]), "text.npy": array(text[n])}
                writer.write({"__key__": f"{n:03d}", **(both if n % 2 else apart)})
    data = opened(tmp_path, size=None, encoder=generated, autoencoder=str(generated), batch_size=16, walks=1)
    assert data.facts.shape == (4, 8, 8)
    assert data.facts.latent is not None
    assert data.facts.latent.image_shape == (3, 32, 32)
    batch = data.batch(0)
    order = [int(key) for key in names(data, range(1))[0]]
    torch.testing.assert_close(batch.label, torch.from_numpy(text[order].astype(np.float32)))
    assert data.prompts(3) is None  # there are embeddings, and no words
    wanted = autoencoder.decode(autoencoder.latents(torch.from_numpy(moments[16:, 0].astype(np.float32)))).clamp(-1, 1)
    torch.testing.assert_close(data.reference().x, wanted)
    with pytest.raises(ValueError, match=r"dataset\.autoencoder is needed"):
        opened(tmp_path, encoder=generated)


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def test_a_truncated_shard_gives_its_complete_samples(own: Path) -> None:
    shard = own / "00002.tar"
    with tarfile.open(shard) as tar:
        cut = tar.getmembers()[7]  # the second file of the fourth sample
    with shard.open("r+b") as file:
        file.truncate(cut.offset_data + 3)
    assert scan(shard, is_sample)[:3] == (3, False, 0)
    with pytest.warns(UserWarning, match=r"00002\.tar is truncated or damaged: only its first 3 samples"):
        data = opened(own)
    assert sum(s.num_samples for s in data.train_shards) == COUNT - 7
    assert len(names(data, range(20))) == 20
    with pytest.raises(ValueError, match=r"00002\.tar is truncated or damaged after 3"):
        opened(own, strict=True)


@pytest.mark.parametrize("spoil", ["cut", "cut in a header", "damaged header"])
def test_a_shard_truncated_between_two_files_is_found(own: Path, spoil: str) -> None:
    """tarfile takes the end, half a header and a broken one for the end of the archive."""
    shard = own / "00002.tar"
    with tarfile.open(shard) as tar:
        offset = tar.getmembers()[6].offset
    with shard.open("r+b") as file:
        if spoil == "damaged header":
            file.seek(offset)
            file.write(b"#" * 512)
        else:
            file.truncate(offset + 100 * (spoil == "cut in a header"))
    assert scan(shard, is_sample)[:3] == (3, False, 0)
    with pytest.warns(UserWarning, match=r"00002\.tar is truncated or damaged: only its first 3 samples"):
        assert len(opened(own).batch(0).x) == 7
    with pytest.raises(ValueError, match=r"00002\.tar is truncated or damaged after 3"):
        opened(own, strict=True)


@pytest.mark.parametrize("content", ["[]", "{", '{"00002.tar": 3}', '{"00002.tar": {"stamp": 1}}'])
def test_a_damaged_index_is_replaced(own: Path, content: str) -> None:
    (own / INDEX).write_text(content)
    assert sum(shard.num_samples for shard in opened(own).train_shards) == COUNT


def test_changed_images_are_counted_in_one_warning(own: Path) -> None:
    for shard, key in (("00001.tar", "000001"), ("00003.tar", "000003")):
        clear = io.BytesIO()
        Image.new("RGBA", (32, 32)).save(clear, "PNG")
        with_damage(own, shard, key, "png", clear.getvalue())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = list(opened(own, background="#102030").check())
    assert [str(w.message).split(": ", 1)[1] for w in caught] == [
        "000001 was changed: transparent on #102030; 1 so far"
    ]
    assert "images changed: 2 transparent on #102030" in lines


@pytest.mark.parametrize("spoil", ["shape", "cut", "embedding"])
def test_a_damaged_latent_is_left_out(generated: Path, tmp_path: Path, spoil: str) -> None:
    for shard in range(2):
        with TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for n in range(8):
                bad = shard == 0 and n == 3
                shape = (4, 9, 9) if bad and spoil == "shape" else (4, 8, 8)
                tokens = 31 if bad and spoil == "embedding" else 32
                both = save({"latent": np.ones(shape, np.float32), "text": np.ones((tokens, 16), np.float32)})
                content = both[:-50] if bad and spoil == "cut" else both
                writer.write({"__key__": f"{n:03d}", "safetensors": content})
    settings = {"size": None, "encoder": generated, "autoencoder": str(generated), "batch_size": 8}
    data = opened(tmp_path, **settings)
    with pytest.warns(UserWarning, match=r"0\.tar: 003 is damaged and left out"):
        assert len(data.batch(0).x) == 8
    with pytest.raises(ValueError, match=r"0\.tar: 003 is damaged"):
        opened(tmp_path, strict=True, **settings).batch(0)


def with_damage(folder: Path, shard: str, key: str, extension: str, content: bytes) -> None:
    with tarfile.open(folder / shard) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert any(name == f"{key}.{extension}" for name, _ in files)
    with tarfile.open(folder / shard, "w") as tar:
        for name, data in files:
            data = content if name == f"{key}.{extension}" else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_damaged_sample_is_replaced_by_the_next(own: Path, generated: Path) -> None:
    before = [list(row) for row in names(opened(generated), range(10))]
    with_damage(own, "00001.tar", "000001", "png", b"\x89PNG no more")
    with_damage(own, "00003.tar", "000008", "json", json.dumps({"words": 3}).encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = opened(own)
        batches = [data.batch(step) for step in range(10)]
    assert len(caught) == 1
    assert "is damaged and left out" in str(caught[0].message)
    assert str(caught[0].message).endswith("1 so far")  # the second is counted, and warned of with the tenth
    assert names(opened(own), range(10)) == before  # places stay what they are
    sound = opened(generated)
    for step, keys in enumerate(before):
        for row, key in enumerate(keys):
            if key not in ("000001", "000008"):
                assert torch.equal(batches[step].x[row], sound.batch(step).x[row])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = opened(own)
        assert torch.equal(again.batch(9).x, batches[9].x)
    with pytest.raises(ValueError, match=r"000001 is damaged|000008 is damaged"):
        list(opened(own, strict=True).check())


def test_counts_are_cached_until_a_shard_changes(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(own)
    assert (own / INDEX).is_file()
    scanned = []
    monkeypatch.setattr("fewstep.data.shards.scan", lambda path, ok: scanned.append(path.name) or scan(path, ok))
    opened(own)
    assert scanned == []
    shutil.copy(own / "00005.tar", own / "00001.tar")
    assert sum(shard.num_samples for shard in open_shards(own, is_sample, strict=False)) == COUNT - 10 + 2 * 25
    assert scanned == ["00001.tar"]


def test_bad_settings_are_refused(generated: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset=text is not at .*trainer=debug"):
        opened(tmp_path / "none", encoder=generated)
    with pytest.raises(ValueError, match="holds out 6 of its shards"):
        opened(generated, held_out_shards=6)
    with pytest.raises(ValueError, match=r"dataset\.size is needed"):
        opened(generated, size=None)
    for wrong in ({"walks": 0}, {"size": -1}):
        with pytest.raises(ValueError, match="of at least 1"):
            opened(generated, **wrong)


@pytest.fixture(scope="module")
def trained(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of a few steps of text, latents and all."""
    from running import config_of

    from fewstep.runs.config import Settings
    from fewstep.runs.pipeline import run

    outputs = tmp_path_factory.mktemp("outputs")
    own = ("stage=teacher", "dataset=text", "trainer=debug", "logger=csv", "stage.training.batch_size=8")
    folders = [f"dataset.{key}={generated}" for key in ("root", "encoder", "autoencoder")]
    toy = ("dataset.size=32", "trainer.max_images=16", "trainer.snapshot_images=8", "dataset.num_workers=0")
    run(Settings.read(config_of(*own, *folders, *toy, f"outputs={outputs}")))
    return next(outputs.glob("text/teacher/*/model.safetensors"))


@pytest.mark.slow
def test_a_text_model_is_sampled_with_prompts(commands, trained: Path, generated: Path, tmp_path: Path) -> None:
    ask = partial(commands.fewstep, "sample", trained, "--steps", 1, "--num", 2)
    made = ask("--prompt", "a temple", "--prompt", "a flower", "--out", tmp_path / "two.npz")
    assert made.status == 0, made
    with np.load(tmp_path / "two.npz", allow_pickle=False) as file:
        assert file["images"].shape == (2, 32, 32, 3)
        assert file["labels"].tolist() == ["a temple", "a flower"]
    ask("--out", tmp_path / "a.png").is_one_error("--prompt")
    ask("--prompt", " ", "--out", tmp_path / "a.png").is_one_error("a prompt must say", "empty")
    ask("--label", 1, "--out", tmp_path / "a.png").is_one_error("prompts")
    elsewhere = ask("--prompt", "x", "--text-encoder", tmp_path, "--out", tmp_path / "a.png")
    elsewhere.is_one_error("config.json is missing")
    moved = ask("--prompt", "x", "--autoencoder", generated / "vae", "--out", tmp_path / "a.png")
    assert moved.status == 0, moved


def test_the_null_of_a_text_model_is_the_empty_prompt(trained: Path, generated: Path) -> None:
    import fewstep

    null = fewstep.load(trained).denoiser.null
    assert isinstance(null, torch.Tensor)
    torch.testing.assert_close(null, TextEncoder.open(generated).empty_prompt)


def picture(form: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, form)
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_shards_are_counted_before_any_encoder_is_needed(tmp_path: Path) -> None:
    red = b"red thing"
    write_tar(
        tmp_path / "0.tar",
        {"a.JPG": picture("JPEG"), "a.txt": red, "b.jpeg": picture("JPEG", (20, 80)), "b.TXT": red}
        | {"c.webp": picture("WEBP"), "c.json": b'{"caption": "another red thing"}'}
        | {"d.png": picture("PNG"), "d.txt": b" ", "e.png": picture("PNG"), "e.json": b'{"caption": null}'}
        | {"f.png": picture("PNG"), "f.json": b"{}", "g.png": b"none", "g.txt": red, "h.png": picture("PNG")}
        | {"i.txt": red, "j.png": picture("PNG"), "k.png": picture("PNG"), "j.txt": red, "k.txt": red},
    )
    write_tar(tmp_path / "1.tar", {})
    write_tar(tmp_path / "2.tar", {"z.png": picture("PNG", (640, 480)), "z.txt": red})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = opened(tmp_path, encoder=tmp_path / "none")
        lines = data.check()
        counted = list(islice(lines, 6))
        with pytest.raises(ValueError, match=r"=.*none has no text encoder.*vocab\.json.*data encoder"):
            next(lines)
    said = [str(warning.message).split(": ", 1)[-1] for warning in caught]
    assert said[0] == "1 with only .png, 1 with only .txt"
    assert "2 samples whose image and caption do not follow one another" in said[1]
    assert said[2].endswith("1.tar is empty")
    assert counted == [
        "1 shards to train on, 1 held out",
        "8 samples, 4 of them good",
        "captions: 4, 2 of them different, of 2 to 3 words",
        "images: 20 x 80 to 640 x 480 pixels",
        "left out: 2 since its caption is null, 1 since its caption is empty, "
        "1 since no JPEG, PNG, WebP, BMP, GIF or TIFF",
        "images changed: 3 enlarged",
    ]
    with pytest.raises(ValueError, match=r"dataset\.autoencoder=.*has no autoencoder.*null for a model of pixels"):
        _ = opened(tmp_path, autoencoder=str(tmp_path)).autoencoder
