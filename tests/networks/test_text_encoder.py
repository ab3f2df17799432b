"""The text encoder gives what StableDiffusionPipeline conditions on; a folder says what is missing."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from fewstep.networks.frozen.text_encoder import TextEncoder, require_prompts, write_tiny_text_encoder

PROMPTS = ["a photograph of a temple", "", "Flower, 2 petals é", "a photograph of a temple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_tiny_text_encoder(folder)
    return folder


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "pipeline"))


def test_it_encodes_as_the_stable_diffusion_pipeline_does(folder: Path) -> None:
    class Parts:  # what encode_prompt asks of its pipeline
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")

    with torch.no_grad():
        wanted, empty = StableDiffusionPipeline.encode_prompt(Parts(), PROMPTS, torch.device("cpu"), 1, True)
    encoder = TextEncoder.open(folder)
    found = encoder.encode(PROMPTS)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(encoder.empty_prompt, empty[0])
    assert found.shape == (4, encoder.num_tokens, encoder.num_features) == (4, 32, 16)
    assert not torch.allclose(found[0], found[2])


def test_the_folder_may_be_the_pipelines_or_the_encoders(folder: Path, tmp_path: Path) -> None:
    inside = TextEncoder.open(folder)
    beside = TextEncoder.open(folder / "text_encoder")
    shutil.copytree(folder / "text_encoder", tmp_path / "both")
    together = TextEncoder.open(shutil.copytree(folder / "tokenizer", tmp_path / "both", dirs_exist_ok=True))
    for other in (beside, together):
        assert other.digest == inside.digest
        torch.testing.assert_close(other.encode(PROMPTS), inside.encode(PROMPTS))
    facts = inside.facts()
    assert (facts.tokens, facts.features, facts.encoder) == (32, 16, str(folder.resolve()))


def test_another_encoder_is_refused_and_a_lost_one_named(own: Path, tmp_path: Path) -> None:
    facts = TextEncoder.open(own).facts()
    write_tiny_text_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"must be the one that the model was made with.*--text-encoder FOLDER"):
        TextEncoder.of(facts, tmp_path / "other")
    shutil.move(own, tmp_path / "moved")
    with pytest.raises(ValueError, match=r"no longer in .*--text-encoder FOLDER"):
        TextEncoder.of(facts)
    assert TextEncoder.of(facts, tmp_path / "moved").digest == facts.sha256


def test_a_long_prompt_is_cut_and_that_is_said(folder: Path) -> None:
    encoder = TextEncoder.open(folder)
    with pytest.warns(UserWarning, match=r"cut to 32 tokens, and one has \d+"):
        long = encoder.encode(["a photograph of a temple on a hill by the sea"])
    assert long.shape == (1, 32, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a photograph of a temple"])


def test_an_empty_prompt_is_refused_where_one_is_asked_for() -> None:
    assert require_prompts(["a", "b"]) == ["a", "b"]
    with pytest.raises(ValueError, match="number 1 is empty"):
        require_prompts(["a", "  "])
    with pytest.raises(ValueError, match="there is none"):
        require_prompts([])


def test_what_is_missing_is_said(own: Path) -> None:
    (own / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"merges\.txt.*is missing"):
        TextEncoder.open(own)
    weights = own / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle"):
        TextEncoder.open(own)
    (own / "text_encoder" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        TextEncoder.open(own)
