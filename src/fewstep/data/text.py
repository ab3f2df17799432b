"""Images and captions from WebDataset shards; or the latents of the images and the embeddings of the captions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Batch, Pairs, split
from fewstep.data.batches import Data, check_examples, from_uint8
from fewstep.data.captioned import BOTH, LATENT, Sample, counts, decode_sample, is_sample, warn_sometimes
from fewstep.data.decode import WHITE, check_background
from fewstep.data.encoded import ENCODER_BATCH, MAX_CACHED, EncodedImages
from fewstep.data.facts import DataFacts
from fewstep.data.generate import generated_folder
from fewstep.data.generate_text import SIZE, generate_text
from fewstep.data.shards import Raw, Row, RowReader, RowStream, Shard, Walk, decoded, open_shards, samples_of
from fewstep.data.split import missing_data_error
from fewstep.data.workers import rows_of_steps
from fewstep.diffusion.prediction import Condition
from fewstep.networks.frozen.autoencoder import Autoencoder
from fewstep.networks.frozen.text_encoder import TextEncoder
from fewstep.system.limits import MOST_SIDE, require_count
from fewstep.system.seeds import seed_for

open_encoder = lru_cache(maxsize=2)(TextEncoder.open)  # once for all stages of a run
open_autoencoder = lru_cache(maxsize=2)(Autoencoder.open)


class TextData(Data):
    """A streamed and shuffled text-to-image data set, whose order is a function of (stream, step).

    The last `held_out_shards` shards, by name, are the reference; their captions are the conditions of samples. The
    text encoder and the autoencoder are opened when they are first needed, so that shards are checked without them.

    Args:
        root: folder of the shards. size: of the images, which are cropped to squares and resized; null for latents.
        encoder: folder of the text encoder. autoencoder: folder of the AutoencoderKL, null for a model of pixels.
        held_out_shards: shards never trained on. num_reference: the most of their images in the reference.
        walks: shards read at the same time and mixed in a batch. buffer: size of the shuffle buffer of each.
        num_workers: processes that read and decode; they change nothing but the speed.
        strict: refuse damaged shards and samples instead of skipping them with a warning.
        clip: folder of a CLIPModel with its processor, for the CLIP score; null leaves it out.
        background: that transparent images are put on: white, black or "#rrggbb".
        generated: use generated shards, encoders and all, if `root` does not exist.

    Raises:
        ValueError: a folder or file is missing, or the shards contradict the settings.
    """

    dataset = "text"
    _layout: tuple[object, ...] | None = None  # see `layout_of`, of the first sample
    _reader: RowReader | None = None
    _held_out: list[Sample] | None = None

    def __init__(
        self,
        *,
        root: str,
        size: int | None,
        encoder: str,
        autoencoder: str | None,
        held_out_shards: int,
        num_reference: int,
        walks: int,
        buffer: int,
        num_workers: int,
        strict: bool,
        clip: str | None,
        batch_size: int,
        stream: str,
        background: str = WHITE,
        generated: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        if min(held_out_shards, num_reference, walks, buffer, size or 1) < 1 or num_workers < 0:
            raise ValueError(
                "dataset needs held_out_shards, num_reference, walks, buffer and size of at least 1, num_workers >= 0, "
                f"got {held_out_shards}, {num_reference}, {walks}, {buffer}, {size} and {num_workers}"
            )
        require_count(size or 1, "dataset.size", most=MOST_SIDE)
        place = Path(root)
        if generated and not place.exists():
            place = generated_folder(place, self.dataset, generate_text)
            encoder, autoencoder, clip = str(place), autoencoder and str(place), str(place / "clip")
            size, num_workers = SIZE, 0
        if not any(place.glob("*.tar")):
            raise missing_data_error(
                self.dataset, place, "put WebDataset shards there, each sample an image and its caption (.txt, .json)"
            )
        self.train_shards, self.test_shards = self.split(place, strict, held_out_shards)
        check_background(background)
        self.root, self.strict, self.background = place, strict, background
        self.clip, self.num_workers = clip, num_workers
        self.num_reference = num_reference
        self.buffer, self.num_walks = buffer, min(walks, len(self.train_shards))
        self.encoder_folder, self.autoencoder_folder, self.size = encoder, autoencoder, size
        self._changed: dict[str, tuple[str, ...]] = {}
        self._faults: Counter[str] = Counter()
        self.decode_raw = partial(self._decode, damaged=set(), size=size or 0)
        if not size and not {LATENT, BOTH} & set(next(samples_of(self.train_shards[0], is_sample))):
            raise ValueError("dataset.size is needed for shards of images: the side of the squares they are made")
        self._first_sample = self._first()
        is_image = self._first_sample.x.dtype == np.uint8
        if not is_image and autoencoder is None:
            raise ValueError("dataset.autoencoder is needed for shards of latents: the folder of what made them")
        self._layout = layout_of(self._first_sample)
        kind = "held-out shards" if is_image else "held-out latents, decoded"
        self.reference_split = f"{kind}: {', '.join(shard.path.name for shard in self.test_shards)}"
        self._embeddings: dict[str, Tensor] = {}
        self._moments = EncodedImages()

    def split(self, place: Path, strict: bool, held_out: int) -> tuple[list[Shard], list[Shard]]:
        """The shards to train on, and those held out, the last ones.

        Raises:
            ValueError: there are too few.
        """
        shards = open_shards(place, is_sample, strict=strict)
        if len(shards) <= held_out:
            raise ValueError(
                f"dataset={self.dataset} holds out {held_out} of its shards and {place} has {len(shards)}: split them "
                "into more or set dataset.held_out_shards"
            )
        return shards[:-held_out], shards[-held_out:]

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder.

        Raises:
            ValueError: it is not there, or damaged.
        """
        folder = Path(self.encoder_folder)
        if not any((place / "config.json").is_file() for place in (folder, folder / "text_encoder")):
            raise ValueError(
                f"dataset.encoder={folder} has no text encoder: name a folder with text_encoder/ (config.json, "
                "model.safetensors) and tokenizer/ (vocab.json and merges.txt, or tokenizer.json), as Stable "
                f"Diffusion's has, or train a small one on these shards with `fewstep data encoder {self.root}`"
            )
        return open_encoder(self.encoder_folder)

    @cached_property
    def autoencoder(self) -> Autoencoder | None:
        """The autoencoder, None for a model of pixels.

        Raises:
            ValueError: it is not there, or damaged.
        """
        folder = None if self.autoencoder_folder is None else Path(self.autoencoder_folder)
        if folder and not any((place / "config.json").is_file() for place in (folder, folder / "vae")):
            raise ValueError(
                f"dataset.autoencoder={folder} has no autoencoder: name a folder with vae/ (config.json, diffusion_"
                "pytorch_model.safetensors), as Stable Diffusion's has, use null for a model of pixels, as in dataset="
                f"text_pixels, or train one with `fewstep data autoencoder text_pixels root={self.root} --out {folder}`"
            )
        return None if folder is None else open_autoencoder(str(folder))

    @cached_property
    def facts(self) -> DataFacts:  # type: ignore[override]
        """The facts of the data set, from its first sample and its encoders."""
        first, size, text = self._first_sample, self.size, self.encoder.facts()
        if first.embedding is not None and first.embedding.shape != (text.tokens, text.features):
            raise ValueError(
                f"the shards hold embeddings {first.embedding.shape} and dataset.encoder makes "
                f"{(text.tokens, text.features)}: name the encoder that made them"
            )
        if first.x.dtype == np.uint8:
            assert size is not None
            image_shape, shape, latent = (3, size, size), (3, size, size), None
            if self.autoencoder is not None:
                shape, latent = self.autoencoder.latent_shape(image_shape), self.autoencoder.facts(image_shape)
        else:
            assert self.autoencoder is not None, "checked at the start"
            shape = tuple(first.x.shape[-3:])
            side = self.autoencoder.downsampling
            latent = self.autoencoder.facts((3, shape[1] * side, shape[2] * side))
        high = 1.0 if latent is None else 1000.0
        return DataFacts(self.dataset, shape, 0, -high, high, latent=latent, text=text, background=self.background)

    def _first(self) -> Sample:
        raw = chain.from_iterable(samples_of(shard, is_sample) for shard in self.train_shards)
        first = next(decoded(raw, self.decode_raw, self.train_shards[0].num_samples))
        assert first is not None, "all are decoded"
        return first

    def _decode(self, raw: Raw, *, damaged: set[str], size: int) -> Sample | None:
        """Decode a sample; None, with a warning, if it is damaged or has another layout than the first."""
        name = f"{raw['__url__']}: {raw['__key__']}"
        try:
            sample = decode_sample(raw, size=size, background=self.background)
            if self._layout not in (None, found := layout_of(sample)):
                raise ValueError(f"it is of {found}, and the first of {self._layout}")
        except Exception as error:  # a damaged file raises errors of any type
            if self.strict:
                raise ValueError(
                    f"{name} is damaged ({error}); repair the shard, or use dataset.strict=false"
                ) from error
            if name not in damaged:
                damaged.add(name)
                self._faults[str(error).partition(" (")[0][:80]] += 1
                warn_sometimes(f"{name} is damaged and left out ({error})", len(damaged))
            return None
        if sample.notes and name not in self._changed:
            self._changed[name] = sample.notes
            warn_sometimes(f"{name} was changed: {', '.join(sample.notes)}", len(self._changed))
        return sample

    def reader(self, worker: int = 0, num_workers: int = 1, rank: int = 0, world_size: int = 1) -> RowReader:
        """The reader of the training rows of a worker and a rank; see `RowReader`."""
        walks = [
            Walk(self.train_shards, is_sample, self.stream, number, self.num_walks, self.buffer)
            for number in range(self.num_walks)
        ]
        total = sum(shard.num_samples for shard in self.train_shards)
        return RowReader(walks, self.decode_raw, total, self.batch_size, worker, num_workers, rank, world_size)

    def batch(self, step: int) -> Batch:
        if self._reader is None:
            self._reader = self.reader()
        return self.collated(self._reader.rows(step), step)

    def collated(self, rows: Sequence[Row], step: int, device: torch.device | str = "cpu") -> Batch:
        """Rows of a step as a batch: images in [-1, 1] or latents sampled anew, and embeddings of their captions."""
        samples = [sample for _, sample in rows]
        x = torch.from_numpy(np.stack([sample.x for sample in samples]))
        if self.autoencoder is None:
            return Batch(from_uint8(x.to(device)), self.embedded(samples).to(device))
        mean, variance = self.moments(x, device)
        # Drawn for the global batch, so that the noise of a row does not depend on its rank.
        generator = torch.Generator().manual_seed(seed_for(self.stream, "latents", step))
        eps = torch.randn(self.batch_size, *mean.shape[1:], generator=generator)
        eps = eps[torch.tensor([number - step * self.batch_size for number, _ in rows])].to(device)
        return Batch(self.autoencoder.latents(mean + variance.sqrt() * eps), self.embedded(samples).to(device))

    def moments(self, x: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Mean and variance of the latents: encoded from images, or as stored; 0 is the variance of stored samples."""
        if x.dtype == torch.uint8:
            assert self.autoencoder is not None
            x = self._moments.of(x, self.autoencoder, device)
        x = x.to(device)
        return (x[:, 0], x[:, 1]) if x.ndim == 5 else (x, torch.zeros_like(x))

    def embedded(self, samples: Sequence[Sample]) -> Float[Tensor, "batch tokens features"]:
        """Embeddings of the samples' captions: those of the shard, or cached, or encoded now."""
        captions = dict.fromkeys(sample.caption for sample in samples if sample.embedding is None)
        new = [caption for caption in captions if caption not in self._embeddings]
        for start in range(0, len(new), ENCODER_BATCH):
            chunk = new[start : start + ENCODER_BATCH]
            encoded = self.encoder.encode(chunk + [""] * (ENCODER_BATCH - len(chunk))).cpu()
            self._embeddings |= dict(zip(chunk, encoded.unbind(), strict=False))
        rows = [self._embeddings[s.caption] if s.embedding is None else torch.from_numpy(s.embedding) for s in samples]
        stacked = torch.stack(rows)
        if len(self._embeddings) * stacked[0].nbytes > MAX_CACHED:
            self._embeddings.clear()
        return stacked

    def train_dataloader(self) -> Iterator[Batch | Pairs]:
        trainer = self.trainer
        assert trainer is not None
        start, stop, device = trainer.global_step, int(trainer.max_steps), trainer.strategy.root_device
        batches = self.batches(start, stop, trainer.global_rank, trainer.world_size, device)
        parts = trainer.accumulate_grad_batches
        return batches if parts == 1 else (part for batch in batches for part in split(batch, parts))

    def batches(
        self, start: int, stop: int, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """The rows of a rank of the batches start, ..., stop - 1, read by `num_workers` processes."""

        def stream(step: int) -> RowStream:
            return RowStream(lambda worker, count: self.reader(worker, count, rank, world_size), step, stop)

        read = rows_of_steps(stream, self.num_workers, start, stop) if self.num_workers else stream(start)
        for step, rows in zip(range(start, stop), read, strict=True):
            yield self.collated(sorted(rows, key=lambda row: row[0]), step, device)

    def held_out(self) -> list[Sample]:
        """The samples of the reference, in order."""
        if self._held_out is None:
            raw = chain.from_iterable(samples_of(shard, is_sample) for shard in self.test_shards)
            good = (sample for sample in map(self.decode_raw, raw) if sample is not None)
            self._held_out = list(islice(good, self.num_reference))
            if not self._held_out:
                raise ValueError(
                    f"no held-out sample in {self.root} can be read; copy {self.test_shards[0].path} again"
                )
        return self._held_out

    def reference(self) -> Batch:
        x = torch.from_numpy(np.stack([sample.x for sample in self.held_out()]))
        labels = torch.zeros(len(x), dtype=torch.long)  # captions are no classes: all are in one
        if x.dtype == torch.uint8:
            return Batch(from_uint8(x), labels)
        assert self.autoencoder is not None
        return Batch(self.decode(self.autoencoder.latents(self.moments(x)[0])), labels)

    def conditions(self, count: int) -> Condition:
        samples = self.held_out()
        return self.embedded(samples)[torch.arange(count) % len(samples)]

    def prompts(self, count: int) -> list[str] | None:
        captions = [sample.caption for sample in self.held_out()]
        return [captions[number % len(captions)] for number in range(count)] if all(captions) else None

    @property
    def empty_prompt(self) -> Float[Tensor, "tokens features"]:
        return self.embedded([Sample(np.empty(0), "", None)])[0]

    def decode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *image"]:
        return x if self.autoencoder is None else self.autoencoder.decode(x).clamp(-1.0, 1.0)

    def preview(self) -> Batch:
        x, label = self.batch(0)
        return Batch(self.decode(x), label)

    def check(self) -> Iterator[str]:
        """The counts of the shards, then what needs the encoders; see `Data.check`."""
        shards = [*self.train_shards, *self.test_shards]
        yield f"{len(self.train_shards)} shards to train on, {len(self.test_shards)} held out"
        yield from counts((raw for shard in shards for raw in samples_of(shard, is_sample)), self.decode_raw)
        if self._faults:
            yield f"left out: {', '.join(f'{n:,} since {fault}' for fault, n in self._faults.most_common())}"
        changes = Counter(chain.from_iterable(self._changed.values()))
        yield f"images changed: {', '.join(f'{n:,} {note}' for note, n in changes.most_common()) or 'none'}"
        yield f"prompts are {self.encoder.num_tokens} x {self.encoder.num_features}, for example {self.prompts(1)}"
        yield from check_examples(self.facts, "a training batch", self.batch(0))
        yield from check_examples(self.facts.pixels, self.reference_split, self.reference())


class TextPixelsData(TextData):
    """The same for models of small images without an autoencoder."""

    dataset = "text_pixels"


class TextLatentsData(TextData):
    """The same for models of the latents of small images, by an autoencoder that was trained on them."""

    dataset = "text_latents"


def layout_of(sample: Sample) -> tuple[object, ...]:
    """What all samples of a data set have in common: dtype and shape, and the shape of embeddings."""
    return (str(sample.x.dtype), sample.x.shape, *(() if sample.embedding is None else (sample.embedding.shape,)))
