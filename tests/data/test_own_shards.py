"""Shards as people have them: captions that are missing, extensions of all kinds, members in no order, none."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data.captioned import Sample, decode_sample, is_sample
from fewstep.data.shards import open_shards, samples_of

FORMS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}


def picture(form: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(buffer, form)
    return buffer.getvalue()


def packed(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return path


def decoded(root: Path) -> list[Sample]:
    return [
        decode_sample(raw, size=8, background="white")
        for shard in open_shards(root, is_sample, strict=True)
        for raw in samples_of(shard, is_sample)
    ]


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "JPG", "JPEG", "png", "PNG", "webp", "WebP", "gif", "bmp"])
def test_extensions(tmp_path: Path, extension: str) -> None:
    content = picture(FORMS[extension.lower()])
    packed(tmp_path / "0.tar", (f"a.{extension}", content), ("a.TXT", "an orange ö".encode()))
    (sample,) = decoded(tmp_path)
    assert sample.caption == "an orange ö"
    assert np.abs(sample.x.astype(int) - np.array([200, 100, 50])[:, None, None]).max() < 20


@pytest.mark.parametrize(
    ("name", "caption", "rule"),
    [
        ("txt", b"", "caption is empty"),
        ("txt", b" \n", "caption is empty"),
        ("txt", b"\xff\xfe", "utf-8"),
        ("json", b'{"caption": ""}', "caption is empty"),
        ("json", b'{"caption": null}', "caption is null"),
        ("json", b'{"caption": 3}', "caption is no text"),
        ("json", b'{"words": "a"}', "caption is null"),
        ("json", b"[]", "caption is null"),
        ("json", b"null", "caption is null"),
        ("json", b"{", "Expecting property name"),
    ],
)
def test_captions_that_are_none(tmp_path: Path, name: str, caption: bytes, rule: str) -> None:
    """`str(None)` is no caption."""
    packed(tmp_path / "0.tar", ("a.png", picture()), (f"a.{name}", caption))
    with pytest.raises(ValueError, match=rule):
        decoded(tmp_path)


def test_a_caption_is_in_the_text_or_else_in_the_json(tmp_path: Path) -> None:
    described = json.dumps({"caption": " from JSON "}).encode()
    packed(
        tmp_path / "0.tar",
        *(("a.png", picture()), ("a.txt", b"from text"), ("a.json", described)),
        *(("b.png", picture()), ("b.txt", b""), ("b.json", described)),
    )
    assert [sample.caption for sample in decoded(tmp_path)] == ["from text", "from JSON"]


def test_an_image_without_a_caption_is_no_sample(tmp_path: Path) -> None:
    packed(tmp_path / "0.tar", ("a.png", picture()), ("b.png", picture()), ("b.txt", b"b"), ("c.txt", b"c"))
    assert [sample.caption for sample in decoded(tmp_path)] == ["b"]


SAMPLES = [(f"{key}.{name}", content) for key in "abc" for name, content in (("png", picture()), ("txt", key.encode()))]


@pytest.mark.parametrize(("order", "good", "scattered"), [((0, 2, 4, 1, 3, 5), "", 3), ((0, 1, 2, 4, 5, 3), "ac", 1)])
def test_members_in_no_order_are_said_and_not_streamed(tmp_path: Path, order, good: str, scattered: int) -> None:
    packed(tmp_path / "0.tar", *(SAMPLES[number] for number in order))
    packed(tmp_path / "1.tar", ("z.txt", b"z"), ("z.jpg", picture("JPEG")))  # the caption may come first
    for _ in range(2):  # counted, and from the index
        with pytest.warns(UserWarning, match=rf"0\.tar has {scattered} samples whose image and caption .*--sort=name"):
            shards = open_shards(tmp_path, is_sample, strict=False)
    assert [raw["__key__"] for shard in shards for raw in samples_of(shard, is_sample)] == [*good, "z"]
    with pytest.raises(ValueError, match="do not follow one another"):
        open_shards(tmp_path, is_sample, strict=True)
    (tmp_path / "1.tar").unlink()
    if not good:
        with (
            pytest.warns(UserWarning, match="--sort=name"),
            pytest.raises(ValueError, match=r"no shard in .* holds a sample: .* one after the other"),
        ):
            open_shards(tmp_path, is_sample, strict=False)


def test_empty_shards_are_passed_over(tmp_path: Path) -> None:
    packed(tmp_path / "0.tar")
    packed(tmp_path / "1.tar", *SAMPLES)
    assert [shard.num_samples for shard in open_shards(tmp_path, is_sample, strict=True)] == [3]
    (tmp_path / "2.tar").touch()
    with pytest.warns(UserWarning, match=r"2\.tar is truncated or damaged: only its first 0 samples"):
        assert [shard.path.name for shard in open_shards(tmp_path, is_sample, strict=False)] == ["1.tar"]
