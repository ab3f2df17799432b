"""CLIP's text encoder and its tokenizer: prompts to the embeddings that a text model is conditioned on."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fewstep.data.facts import TextFacts
from fewstep.networks.frozen.loading import load_frozen, open_same, quiet, readable
from fewstep.system.files import atomic_write

WHAT = "a CLIP text encoder"
PROMPTS_AT_ONCE = 64
TINY_VOCABULARY = 512  # bytes, each within a word and at its end; two special tokens follow

Embeddings = Float[Tensor, "batch tokens features"]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A frozen CLIPTextModel with its tokenizer, used as StableDiffusionPipeline uses them.

    Attributes:
        network: in eval mode, float32. folder: the pipeline's, or the text encoder's own.
        digest: sha256 of the network's weights.
    """

    network: CLIPTextModel
    tokenizer: CLIPTokenizer
    folder: Path
    digest: str

    @classmethod
    def open(cls, folder: str | Path) -> "TextEncoder":
        """The text encoder of `folder`: of the pipeline there (text_encoder/ and tokenizer/), or the encoder itself.

        Raises:
            ValueError: a file is missing or damaged, or the weights are a pickle or do not fit.
        """
        folder = Path(folder)
        inner = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
        network, digest = load_frozen(CLIPTextModel, inner, WHAT)
        vocabulary = tokenizer_folder(inner)
        with readable(folder, WHAT):
            return cls(network, CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True), folder, digest)

    @classmethod
    def of(cls, facts: TextFacts, folder: str | Path | None = None) -> "TextEncoder":
        """The text encoder that made these embeddings, from `folder`, or else from the folder that the facts name.

        Raises:
            ValueError: it is not there, or has other weights; see `open`.
        """
        return open_same(cls.open, facts.encoder, facts.sha256, folder, "--text-encoder", WHAT)

    @property
    def num_tokens(self) -> int:
        """Tokens that every prompt is padded or cut to."""
        return min(int(self.tokenizer.model_max_length), int(self.network.config.max_position_embeddings))

    @property
    def num_features(self) -> int:
        return int(self.network.config.hidden_size)

    def facts(self) -> TextFacts:
        """The facts of prompts that it encodes."""
        return TextFacts(self.num_tokens, self.num_features, self.digest, str(self.folder.resolve()))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Embeddings:
        """The last hidden states, after the final norm, of prompts padded to `num_tokens`, on the network's device.

        "" is the condition of a model without a prompt. Longer prompts are cut, with a warning.
        """
        parts = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            chunk = list(prompts[start : start + PROMPTS_AT_ONCE])
            longest = max(len(ids) for ids in self.tokenizer(chunk, verbose=False).input_ids)
            if longest > self.num_tokens:
                warnings.warn(
                    f"prompts are cut to {self.num_tokens} tokens, and one has {longest}: its end is not seen",
                    stacklevel=2,
                )
            tokens = self.tokenizer(
                chunk, padding="max_length", max_length=self.num_tokens, truncation=True, return_tensors="pt"
            ).to(self.network.device)
            mask = tokens.attention_mask if getattr(self.network.config, "use_attention_mask", False) else None
            parts.append(self.network(tokens.input_ids, attention_mask=mask).last_hidden_state)
        return torch.cat(parts) if parts else torch.empty(0, self.num_tokens, self.num_features)

    @property
    def empty_prompt(self) -> Float[Tensor, "tokens features"]:
        """The embedding of "": the condition of guidance's unconditional branch."""
        return self.encode([""])[0]


def require_prompts(prompts: Sequence[str]) -> list[str]:
    """Check that there are prompts and none is blank; give them as a list.

    Raises:
        ValueError: none, or one that is empty or blank.
    """
    blank = [number for number, prompt in enumerate(prompts) if not prompt.strip()]
    if not prompts or blank:
        which = f"number {blank[0]} is empty" if blank else "there is none"
        raise ValueError(f"a prompt must say what is wanted, and {which}; give words, for example --prompt 'a temple'")
    return list(prompts)


def tokenizer_folder(encoder: Path) -> Path:
    """The folder of a text encoder's vocabulary: its own, or tokenizer/ in the same pipeline.

    Raises:
        ValueError: no vocab.json with merges.txt, nor tokenizer.json, is there.
    """
    beside = encoder.parent / "tokenizer"
    for place in (encoder, beside):
        if (place / "tokenizer.json").is_file() or all((place / n).is_file() for n in ("vocab.json", "merges.txt")):
            return place
    raise ValueError(
        f"{WHAT} needs a tokenizer: vocab.json and merges.txt (or tokenizer.json) in {beside}, one is missing; "
        "put the whole folder there"
    )


def small_network(vocabulary: int, *, features: int, tokens: int, layers: int = 2, heads: int = 2) -> CLIPTextModel:
    """A new CLIPTextModel for the tokens of `write_tokenizer`, the last two of which start and end a text."""
    start, end = vocabulary - 2, vocabulary - 1
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=features,
        intermediate_size=2 * features,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokens,
        projection_dim=features,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    return CLIPTextModel(config)


def write_tiny_text_encoder(folder: Path, *, features: int = 16, tokens: int = 32, seed: int = 0) -> None:
    """Write a random text_encoder/, and a tokenizer/ of bytes, below `folder`: for tests and dry runs."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = small_network(TINY_VOCABULARY + 2, features=features, tokens=tokens)
    with quiet():
        network.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer", tokens=tokens)


def write_tokenizer(folder: Path, *, tokens: int, merges: Sequence[tuple[str, str]] = ()) -> int:
    """Write a tokenizer in CLIP's form and return the number of its tokens.

    They are each byte within a word and each at a word's end, so that every text has tokens, then those that `merges`
    make of two others, then start and end.
    """
    symbols = [bytes_to_unicode()[byte] for byte in range(256)]
    vocabulary = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokens} | special
    files = {
        "vocab.json": json.dumps({name: number for number, name in enumerate(vocabulary)}),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]),
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps(settings),
    }
    for name, text in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return len(vocabulary)
