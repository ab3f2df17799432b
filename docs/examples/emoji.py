"""Make data sets of emoji out of the npm package emoji-datasource-google: python docs/examples/emoji.py TARBALL OUT

Get the tarball with `npm pack emoji-datasource-google`. OUT/images has a folder for each category, of PNGs with their
transparency, for dataset=imagefolder; OUT/captioned has WebDataset shards of the same images with their names as
captions, for dataset=text_pixels. Skin tones are left out. The same tarball gives the same files.
"""

import argparse
import json
import random
import re
import shutil
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from webdataset.writer import TarWriter

NUM_SHARDS = 10  # the last is held out
COMPONENTS = "Component"  # the category of skin tones by themselves


class Emoji(NamedTuple):
    key: str
    category: str
    caption: str
    file: Path


def read_emoji(package: Path) -> list[Emoji]:
    """The emoji of an unpacked package, without those that differ in skin tone alone."""
    found = []
    for entry in json.loads((package / "emoji.json").read_text()):
        file = package / "img" / "google" / "64" / Path(entry["image"]).name
        if entry["category"] != COMPONENTS and file.is_file():
            category = re.sub(r"\W+", "_", entry["category"].lower())
            found.append(Emoji(file.stem, category, caption_of(entry), file))
    return found


def caption_of(entry: dict[str, str]) -> str:
    """The name in small letters; "flag of germany" for "Germany Flag"."""
    name = " ".join(entry["name"].lower().replace("_", " ").split())
    return f"flag of {name.removesuffix(' flag')}" if entry["subcategory"] == "country-flag" else name


def write_images(emoji: list[Emoji], folder: Path) -> None:
    for each in emoji:
        (folder / each.category).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(each.file, folder / each.category / each.file.name)


def write_shards(emoji: list[Emoji], folder: Path) -> None:
    folder.mkdir(parents=True)
    shuffled = random.Random(0).sample(emoji, len(emoji))
    for number in range(NUM_SHARDS):
        with TarWriter(str(folder / f"{number:05d}.tar"), mtime=0) as writer:
            for each in shuffled[number::NUM_SHARDS]:
                writer.write({"__key__": each.key, "png": each.file.read_bytes(), "txt": each.caption})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tarball", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if (arguments.out / "images").exists() or (arguments.out / "captioned").exists():
        sys.exit(f"error: {arguments.out} has emoji already; remove it or name another folder")
    with TemporaryDirectory() as place:
        try:
            with tarfile.open(arguments.tarball) as tar:
                tar.extractall(place, filter="data")  # nothing outside `place`, no links out of it, no devices
            emoji = read_emoji(Path(place) / "package")
        except (tarfile.TarError, OSError, EOFError, ValueError, KeyError) as error:
            sys.exit(f"error: {arguments.tarball} is not npm's emoji-datasource-google ({error})")
        if not emoji:
            sys.exit(f"error: {arguments.tarball} has no images img/google/64/*.png")
        write_images(emoji, arguments.out / "images")
        write_shards(emoji, arguments.out / "captioned")
    categories = len({each.category for each in emoji})
    print(f"{arguments.out}: {len(emoji):,} emoji of {categories} categories, in images/ and captioned/")


if __name__ == "__main__":
    main()
