"""Small generated latents, captioned shards and pretrained-model folders, in the formats of the real ones."""

import io
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from webdataset.writer import TarWriter

from fewstep.data.facts import DataFacts
from fewstep.data.make_latents import make_latents
from fewstep.data.patches import load_patches
from fewstep.data.split import Examples, SplitImages
from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder
from fewstep.networks.frozen.loading import quiet
from fewstep.networks.frozen.text_encoder import TINY_VOCABULARY, write_tiny_text_encoder, write_tokenizer

SIZE = 32
CAPTIONS = ("a photograph of a temple", "a photograph of a flower")  # china.jpg, flower.jpg


def some_patches(count: int) -> SplitImages:
    """`count` crops to train on and half as many held out, evenly spaced."""
    splits = []
    for split, number in zip(load_patches(SIZE), (count, count // 2), strict=True):
        index = torch.arange(number) * len(split.labels) // number
        splits.append(Examples(split.images[index], split.labels[index]))
    facts = DataFacts("patches", (3, SIZE, SIZE), len(CAPTIONS), low=-1.0, high=1.0)
    return SplitImages(facts=facts, train=splits[0], held_out=splits[1], batch_size=1, stream="generated")


def generate_latents(folder: Path, *, count: int = 256) -> None:
    """Latents of some patches, as `fewstep latents` makes them, by a random autoencoder in FOLDER/vae."""
    write_tiny_autoencoder(folder / "vae")
    for _ in make_latents(some_patches(count), Autoencoder.open(folder), folder, per_file=count // 2):
        pass


def generate_text(folder: Path, *, count: int = 192, num_shards: int = 4) -> None:
    """Shards of captioned patches, the last of held-out ones, and a random autoencoder, text encoder and CLIP."""
    write_tiny_autoencoder(folder / "vae")
    write_tiny_text_encoder(folder)
    write_tiny_clip(folder / "clip")
    source = some_patches(count)
    write_shards(folder, source.images[torch.arange(count)], source.labels, num_shards=num_shards)
    held_out = source.held_out
    images = held_out.images[torch.arange(len(held_out.labels))]
    write_shards(folder, images, held_out.labels, num_shards=1, first=num_shards)


def write_shards(folder: Path, images: torch.Tensor, labels: torch.Tensor, *, num_shards: int, first: int = 0) -> None:
    """Write uint8 images (N, 3, H, W) and their captions into shards, PNG with .txt and JPEG with .json in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with TarWriter(str(folder / f"{first + shard:05d}.tar"), mtime=0) as writer:
            for index in range(shard, len(labels), num_shards):
                caption = CAPTIONS[int(labels[index])]
                form = ("png", "txt", caption) if index % 2 else ("jpg", "json", json.dumps({"caption": caption}))
                picture = io.BytesIO()
                kind = {"png": "PNG", "jpg": "JPEG"}[form[0]]
                Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(picture, format=kind)
                writer.write({"__key__": f"{index:06d}", form[0]: picture.getvalue(), form[1]: form[2].encode()})


def write_tiny_clip(folder: Path, *, seed: int = 0) -> None:
    """A randomly initialised CLIPModel with its processor, in transformers' layout."""
    start, end = TINY_VOCABULARY, TINY_VOCABULARY + 1
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": end + 1, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config=sizes | words, vision_config=sizes | {"image_size": SIZE, "patch_size": 8}, projection_dim=16
    )
    write_tokenizer(folder, tokens=77)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    side = {"height": SIZE, "width": SIZE}
    pictures = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=side)
    with torch.random.fork_rng(devices=()), quiet():
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
        CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
