"""Make a small text encoder for captioned images: byte pairs of their captions, and CLIP's loss with the images.

Contrastive training as CLIP's (Radford et al. 2021, section 2.3), with equal captions counted as one. Only the text's
side is kept, in the layout of Stable Diffusion's.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from fewstep.data.batch import Batch
from fewstep.data.batches import ImagesInMemory, from_uint8
from fewstep.data.captioned import Sample, is_sample
from fewstep.data.facts import DataFacts
from fewstep.data.shards import samples_of
from fewstep.data.text import TextData
from fewstep.networks.frozen.loading import quiet
from fewstep.networks.frozen.text_encoder import TINY_VOCABULARY, TextEncoder, small_network, write_tokenizer
from fewstep.system.files import atomic_write, check_free
from fewstep.system.seeds import seed_for

SPECIAL = 2
MOST_BYTES = 2**28  # of images in memory
SHIFT, NOISE, LEARNING_RATE = 2, 0.1, 2e-3  # pixels, in [-1, 1]; all ours
AMONG = 5  # captions that are nearest to an image

Vectors = Float[Tensor, "batch features"]


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes and training of a text encoder.

    Args:
        vocabulary: the most tokens, 514 of which are bytes and the ends of texts. tokens: of a prompt, with both ends.
        features: of each token, a multiple of 16. images: that the training sees. batch_size: images in contrast.

    Raises:
        ValueError: a value outside its range.
    """

    vocabulary: int = 2048
    features: int = 64
    tokens: int = 24
    images: int = 60_000
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocabulary < TINY_VOCABULARY + SPECIAL or self.tokens < 4 or min(self.images, self.batch_size) < 2:
            raise ValueError(
                f"a text encoder needs a vocabulary of at least {TINY_VOCABULARY + SPECIAL}, 4 tokens, 2 images and a "
                f"batch of 2, got {self.vocabulary}, {self.tokens}, {self.images} and {self.batch_size}"
            )
        if self.features < 16 or self.features % 16:
            raise ValueError(f"a text encoder needs features that are a multiple of 16, got {self.features}")


@dataclass
class Captioned:
    """Images in memory with their captions; `left_out` are those for which there was no room."""

    images: UInt8[Tensor, "count 3 height width"]
    captions: list[str]
    left_out: int = 0
    numbers: Tensor = field(init=False)

    def __post_init__(self) -> None:
        known = {caption: number for number, caption in enumerate(dict.fromkeys(self.captions))}
        self.numbers = torch.tensor([known[caption] for caption in self.captions])

    @classmethod
    def of(cls, samples: Iterator[Sample]) -> "Captioned":
        """Those of the samples, as many as fit into memory.

        Raises:
            ValueError: there are fewer than two captions, or samples of latents or embeddings.
        """
        images, captions, left_out = [], [], 0
        for sample in samples:
            if sample.x.dtype.name != "uint8" or not sample.caption:
                raise ValueError("a text encoder is trained on images with captions, and the shards hold latents")
            if (len(images) + 1) * sample.x.nbytes > MOST_BYTES:
                left_out += 1
                continue
            images.append(torch.tensor(sample.x))
            captions.append(sample.caption)
        if len(set(captions)) < 2:
            raise ValueError(f"a text encoder needs images of different captions, and there are {len(set(captions))}")
        return cls(torch.stack(images), captions, left_out)

    @classmethod
    def to_train_on(cls, source: TextData) -> "Captioned":
        """`of` the shards that are not held out."""
        return cls.of(samples_to_train_on(source))


def samples_to_train_on(source: TextData) -> Iterator[Sample]:
    """The good samples of the shards that are not held out."""
    raw = (raw for shard in source.train_shards for raw in samples_of(shard, is_sample))
    return (sample for sample in map(source.decode_raw, raw) if sample is not None)


class ShardImages(ImagesInMemory):
    """The images of captioned shards without their captions, as many as fit into memory: for what is trained on images.

    Attributes:
        left_out: of the images, those for which there was no room.

    Raises:
        ValueError: the shards hold latents.
    """

    def __init__(self, source: TextData) -> None:
        kept: list[np.ndarray] = []
        self.left_out = 0
        for sample in samples_to_train_on(source):
            if sample.x.dtype != np.uint8:
                raise ValueError(f"{source.root} holds latents in the place of images; use shards of images")
            if (len(kept) + 1) * sample.x.nbytes > MOST_BYTES:
                self.left_out += 1
            else:
                kept.append(sample.x)
        images = torch.from_numpy(np.stack(kept))
        labels = torch.zeros(len(images), dtype=torch.long)
        super().__init__(images=images, labels=labels, batch_size=source.batch_size, stream=source.stream)
        self.facts = DataFacts(source.dataset, tuple(images.shape[1:]), 0, -1.0, 1.0)
        self.source = source

    def reference(self) -> Batch:
        return self.source.reference()


class ImageTower(nn.Sequential):
    """A small network of convolutions from images in [-1, 1], of any size from 8 pixels on, to features."""

    def __init__(self, features: int) -> None:
        super().__init__(
            *self.halved(3, 32), *self.halved(32, 64), *self.halved(64, 128),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, features),
        )  # fmt: skip

    @staticmethod
    def halved(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.SiLU()


class EncoderTraining:
    """Trains a text encoder on captioned images, a step at a time.

    Attributes:
        num_steps: of the training.
    """

    def __init__(self, data: Captioned, settings: EncoderSettings) -> None:
        self.data, self.settings = data, settings
        self._place = TemporaryDirectory(prefix="fewstep-")
        self.folder = Path(self._place.name)
        torch.manual_seed(seed_for(settings.seed, "encoder"))
        merges = merges_of(data.captions, settings.vocabulary)
        self.vocabulary = write_tokenizer(self.folder / "tokenizer", tokens=settings.tokens, merges=merges)
        self.tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        sizes = {"features": settings.features, "tokens": settings.tokens, "heads": settings.features // 16}
        self.text = small_network(self.vocabulary, **sizes)
        self.image = ImageTower(settings.features)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.num_steps = max(1, settings.images // settings.batch_size)

    def tokens_of(self, captions: Sequence[str]) -> Tensor:
        size = self.settings.tokens
        return self.tokenizer(
            list(captions), padding="max_length", max_length=size, truncation=True, return_tensors="pt"
        ).input_ids

    def texts(self, tokens: Tensor) -> Vectors:
        return functional.normalize(self.text(tokens).pooler_output, dim=1)

    def pictures(self, x: Tensor) -> Vectors:
        return functional.normalize(self.image(x), dim=1)

    def steps(self) -> Iterator[float]:
        """Take all steps; give the loss of each."""
        parameters = [*self.text.parameters(), *self.image.parameters(), self.log_scale]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.1)
        decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, self.num_steps + 1)
        tokens, size = self.tokens_of(self.data.captions), self.settings.batch_size
        order = torch.empty(0, dtype=torch.long)
        self.text.train()
        for _ in range(self.num_steps):
            if len(order) < size:
                order = torch.cat([order, torch.randperm(len(self.data.captions))])
            rows, order = order[:size], order[size:]
            same = self.data.numbers[rows, None] == self.data.numbers[rows]
            targets = same / same.sum(1, keepdim=True)
            images = self.pictures(augmented(from_uint8(self.data.images[rows])))
            logits = self.log_scale.exp().clamp(max=100) * images @ self.texts(tokens[rows]).T
            loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            yield loss.item()
        self.text.eval()

    @torch.no_grad()
    def retrieval(self, held_out: Captioned) -> tuple[float, float]:
        """Share of held-out images whose caption is one of the AMONG nearest of all held-out ones, and by chance."""
        different = list(dict.fromkeys(held_out.captions))
        images, texts = self.pictures(from_uint8(held_out.images)), self.texts(self.tokens_of(different))
        nearest = (images @ texts.T).topk(min(AMONG, len(different)), dim=1).indices
        found = (nearest == held_out.numbers[:, None]).any(1)
        return found.float().mean().item(), nearest.shape[1] / len(different)

    def save(self, out: Path) -> TextEncoder:
        """Move the text's side to `out`, in the layout of a pipeline, and open it from there.

        Raises:
            ValueError: there is something already.
        """
        check_free(out, "encoder")
        with quiet():
            self.text.save_pretrained(self.folder / "text_encoder")
        with atomic_write(out) as unfinished:
            shutil.copytree(self.folder, unfinished)
        return TextEncoder.open(out)


def merges_of(captions: Sequence[str], vocabulary: int) -> list[tuple[str, str]]:
    """The pairs that byte-pair encoding joins in these captions, the most frequent first, none that occurs once."""
    trained = CLIPTokenizer().train_new_from_iterator(captions, vocabulary, min_frequency=2, show_progress=False)
    merges = json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges[: vocabulary - TINY_VOCABULARY - SPECIAL]]


def augmented(x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Images shifted by up to SHIFT pixels, all by the same, with noise."""
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    padded = functional.pad(x, (SHIFT,) * 4, mode="replicate")
    shifted = padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]
    return shifted + NOISE * torch.randn_like(x)
