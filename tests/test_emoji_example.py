"""docs/examples/emoji.py on a small package of the same form."""

import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from running import ROOT
from webdataset.tariterators import group_by_keys, tar_file_expander

NAMES = [f"SMILING_FACE {number}" for number in range(10)]


def package(path: Path, *, evil: str | None = None) -> None:
    entries = [
        {"name": name, "image": f"{n}.png", "category": "Smileys & Emotion", "subcategory": "face"}
        for n, name in enumerate(NAMES)
    ]
    entries += [
        {"name": "Peru Flag", "image": "p.png", "category": "Flags", "subcategory": "country-flag"},
        {"name": "TONE", "image": "t.png", "category": "Component", "subcategory": "skin-tone"},
        {"name": "NO IMAGE", "image": "none.png", "category": "Flags", "subcategory": "flag"},
    ]
    picture = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(picture, "PNG")
    images = [f"img/google/64/{entry['image']}" for entry in entries[:-1]]
    files = {"emoji.json": json.dumps(entries).encode()} | dict.fromkeys(images, picture.getvalue())
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if evil:
            tar.addfile(tarfile.TarInfo(evil))


def make(monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["emoji.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "docs" / "examples" / "emoji.py"), run_name="__main__")


def test_images_keep_their_transparency_and_shards_their_names(tmp_path: Path, monkeypatch, capsys) -> None:
    package(tmp_path / "emoji.tgz")
    make(monkeypatch, tmp_path / "emoji.tgz", tmp_path / "emoji")
    assert "11 emoji of 2 categories" in capsys.readouterr().out
    images = sorted(path.relative_to(tmp_path / "emoji/images") for path in tmp_path.glob("emoji/images/*/*.png"))
    assert images == sorted([Path("flags/p.png"), *(Path(f"smileys_emotion/{n}.png") for n in range(10))])
    with Image.open(tmp_path / "emoji/images/flags/p.png") as image:
        assert image.mode == "RGBA"
    captions = set()
    for shard in sorted((tmp_path / "emoji/captioned").glob("*.tar")):
        with shard.open("rb") as stream:
            captions |= {raw["txt"] for raw in group_by_keys(tar_file_expander([{"url": "", "stream": stream}]))}
    assert captions == {b"flag of peru", *(f"smiling face {n}".encode() for n in range(10))}
    with pytest.raises(SystemExit, match="has emoji already"):
        make(monkeypatch, tmp_path / "emoji.tgz", tmp_path / "emoji")


@pytest.mark.parametrize("evil", ["../../evil", "/tmp/evil-emoji"])
def test_nothing_is_unpacked_elsewhere(tmp_path: Path, monkeypatch, evil: str) -> None:
    package(tmp_path / "emoji.tgz", evil=evil)
    if evil.startswith("/"):  # the filter takes the slash away
        make(monkeypatch, tmp_path / "emoji.tgz", tmp_path / "emoji")
    else:
        with pytest.raises(SystemExit, match="is not npm's emoji-datasource-google"):
            make(monkeypatch, tmp_path / "emoji.tgz", tmp_path / "emoji")
    assert not Path("/tmp/evil-emoji").exists()
    (tmp_path / "text.tgz").write_text("no tarball")
    with pytest.raises(SystemExit, match="is not npm's"):
        make(monkeypatch, tmp_path / "text.tgz", tmp_path / "other")
