"""DiT: the tables that are in no state dict, its labels, its size."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from wrapped import DIT, lively, question, with_config

from fewstep.networks import DiT

CONF = Path(__file__).parents[2] / "conf" / "model"


def test_positions_have_their_values_in_a_network_built_for_its_shapes() -> None:
    with torch.device("meta"):
        network = DiT(**DIT)
    assert network.transformer.proj_out_1.weight.is_meta
    stock = DiTTransformer2DModel(**DIT["config"], sample_size=8, in_channels=3, num_embeds_ada_norm=5)
    assert torch.equal(network.transformer.pos_embed.pos_embed, stock.pos_embed.pos_embed)
    assert "transformer.pos_embed.pos_embed" not in network.state_dict()


def test_no_block_drops_labels_on_its_own() -> None:
    """diffusers' module drops a tenth of the labels in training, each block others, which a student must not."""
    network = lively(DiT(**with_config(DIT, dropout=0.0))).train()
    inputs = question(DIT)
    outputs = [network(*inputs) for _ in range(20)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    tables = [module for module in network.modules() if isinstance(module, LabelEmbedding)]
    assert [table.embedding_table.num_embeddings for table in tables] == [6, 6]  # the null label among them


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        (DIT | {"shape": [3, 9, 9]}, r"patches of 2 needs images .* divisible by 2, got \(3, 9, 9\)"),
        (DIT | {"shape": [3, 8, 4]}, r"a DiT needs square images .* got \(3, 8, 4\)"),
        (DIT | {"shape": [3, 1024, 1024]}, r"at most 256 patches a side, .* got \(3, 1024, 1024\)"),
        (DIT | {"shape": [2]}, r"needs images \(C, H, W\) .* got \(2,\)"),
        (DIT | {"num_classes": 0}, "and classes, got .* num_classes=0"),
    ],
)
def test_what_it_cannot_be_is_refused(sizes: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        DiT(**sizes)


def test_dit_xl_2_has_the_published_size() -> None:
    """675,129,632 published, where time's MLP and the table of classes are there once and positions are a parameter."""
    arguments = yaml.safe_load((CONF / "dit.yaml").read_text())["network"]
    arguments.pop("_target_")
    with torch.device("meta"):
        learned_variance = arguments | {"config": arguments["config"] | {"out_channels": 8}}
        counts = [
            sum(p.numel() for p in DiT(shape=(4, 32, 32), num_classes=1000, **given).parameters())
            for given in (arguments, learned_variance, learned_variance | {"guidance_input": True})
        ]
    width = 16 * 72
    embedding = (256 + 1) * width + (width + 1) * width + 1001 * width
    variance = 2 * 2 * 4 * (width + 1)
    positions = 16 * 16 * width
    assert 675_129_632 - positions + 27 * embedding == 749_826_464
    assert counts == [749_826_464 - variance, 749_826_464, 749_826_464 + 256 * 256]
