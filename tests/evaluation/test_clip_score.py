"""The CLIP score is 100 times the mean cosine of image and prompt, at least 0, by a CLIP that lies here."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import CLIPModel, CLIPProcessor

from fewstep.data.generate_text import write_tiny_clip
from fewstep.evaluation.clip_score import ClipScore

WORDS = ["a temple", "a flower", "many words about a stone", "x", "y"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_tiny_clip(folder)
    return folder


def images(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def cosines(folder: Path, pictures: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """By hand: project what the two towers pool, one pair at a time."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for picture, prompt in zip(pictures, prompts, strict=True):
            inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
            image = model.visual_projection(model.vision_model(inputs.pixel_values).pooler_output)
            read = model.text_projection(model.text_model(inputs.input_ids).pooler_output)
            found.append(cosine_similarity(image, read)[0])
    return torch.stack(found)


def test_it_is_the_mean_cosine_in_percent(folder: Path) -> None:
    pictures = images()
    wanted = cosines(folder, pictures, WORDS)
    # A random CLIP finds every image as unlike every prompt: turn its images round so that the score is not cut at 0.
    score = ClipScore(folder)
    sign = 1.0 if wanted.mean() > 0 else -1.0
    score.metric.model.model.visual_projection.weight.mul_(sign)
    mean = 100 * sign * float(wanted.mean())
    assert score(pictures, WORDS)[0] == pytest.approx(mean, rel=1e-4)
    half = 2.776 * 100 * float(wanted.std()) / 5**0.5  # Student's t of four degrees of freedom
    assert score(pictures, WORDS)[1] == pytest.approx([max(mean - half, 0), mean + half], rel=1e-3)
    assert score(pictures[:2], WORDS[:2])[0] == pytest.approx(max(0.0, 100 * sign * float(wanted[:2].mean())), rel=1e-4)
    score.metric.model.model.visual_projection.weight.mul_(-1)
    assert score(pictures, WORDS)[0] == 0


def test_each_image_is_held_against_its_own_prompt(folder: Path) -> None:
    score = ClipScore(folder)
    with pytest.raises(ValueError, match="one prompt per image and two images, got 5 and 4"):
        score(images(), WORDS[:4])


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "clip"))
    for name in ("processor_config.json", "preprocessor_config.json"):
        (own / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is missing"):
        ClipScore(own)
    (own / "model.safetensors").rename(own / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        ClipScore(own)
    with pytest.raises(ValueError, match="CLIP scores need a local folder"):
        ClipScore(tmp_path / "nowhere")
