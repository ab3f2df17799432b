"""UNet2D: the paper's pixel models and other people's UNet2DModel."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from wrapped import UNET2D, lively, question, with_config

from fewstep.networks import UNet2D, network_class
from fewstep.networks.backbones.wrapping import TimeFeatures
from fewstep.networks.inputs import scalar_inputs, sinusoid

CONF = Path(__file__).parents[2] / "conf" / "model"


def test_w_enters_as_in_diffusers_own_time_cond_proj_dim() -> None:
    ours = TimeFeatures(Timesteps(16, True, 0), scalar_inputs(True, (), dim=8, num_features=16))
    theirs = TimestepEmbedding(16, 64, cond_proj_dim=8)
    assert ours.projection is not None
    ours.projection.weight.data.normal_()
    theirs.cond_proj.load_state_dict(ours.projection.state_dict())
    time, w = torch.linspace(0, 1, 5), torch.linspace(0, 4, 5)
    plain = TimestepEmbedding(16, 64)
    plain.load_state_dict({k: v for k, v in theirs.state_dict().items() if "cond_proj" not in k})
    expected = theirs(Timesteps(16, True, 0)(1000 * time), sinusoid(w, 8))
    assert torch.equal(plain(ours(time, w).T), expected)


def test_an_unconditional_model_has_no_table_and_does_not_look_at_labels() -> None:
    network = lively(UNet2D(**UNET2D | {"num_classes": 0}))
    z, time, label, _ = question(UNET2D)
    assert network.unet.class_embedding is None
    assert torch.equal(network(z, time, label, None), network(z, time, label.flip(0), None))
    assert UNet2D(**UNET2D).unet.class_embedding.num_embeddings == 6


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        (UNET2D | {"shape": [3, 9, 8]}, r"2 levels needs images \(C, H, W\) .* divisible by 2, got \(3, 9, 8\)"),
        (UNET2D | {"shape": [2]}, r"needs images \(C, H, W\) .* got \(2,\); choose another model="),
        (with_config(UNET2D, time_embedding_type="fourier"), "positional time_embedding_type .* got 'fourier'"),
        (with_config(UNET2D, class_embed_type="identity"), "class_embed_type null .* 'identity'"),
        (with_config(UNET2D, num_class_embeds=5), "must not hold 'num_class_embeds'"),
    ],
)
def test_what_it_cannot_be_is_refused(sizes: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        UNet2D(**sizes)


# 295,900,035 is ADM's published ImageNet 64x64 model (296M) with one class row of 768 more. In brackets what w adds:
# guidance_dim x channels[0].
@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "teacher", "w_input"),
    [
        ("cifar10", (3, 32, 32), 10, 60_015_363, 256 * 256),
        ("imagenet64", (3, 64, 64), 1000, 295_900_035, 256 * 192),
        ("imagenet256", (4, 32, 32), 1000, 295_498_372, 256 * 192),
    ],
)
def test_the_published_networks_have_the_stated_sizes(
    name: str, shape: tuple[int, ...], num_classes: int, teacher: int, w_input: int
) -> None:
    arguments = yaml.safe_load((CONF / f"{name}.yaml").read_text())["network"]
    kind = network_class(arguments.pop("_target_").removeprefix("fewstep.networks."))
    with torch.device("meta"):
        one, other = (kind(shape=shape, num_classes=num_classes, **arguments, guidance_input=w) for w in (False, True))
    counts = [sum(p.numel() for p in network.parameters()) for network in (one, other)]
    assert counts == [teacher, teacher + w_input]


def test_the_papers_networks_attend_where_the_facts_say() -> None:
    """CIFAR-10 at 16 and 8 pixels with 1 head; ImageNet 64 at 32, 16 and 8 with 64 channels a head."""
    for name, sizes, expected in (
        ("cifar10", (3, 32, 32), {16: 256, 8: 256}),
        ("imagenet64", (3, 64, 64), {32: 64, 16: 64, 8: 64}),
    ):
        config = yaml.safe_load((CONF / f"{name}.yaml").read_text())["network"]["config"]
        with torch.device("meta"):
            unet = UNet2D(shape=sizes, num_classes=10, config=config).unet
        found = {}
        for level, block in enumerate(unet.down_blocks):
            for attention in getattr(block, "attentions", []):
                found[sizes[1] // 2**level] = attention.inner_dim // attention.heads
        assert found == expected
