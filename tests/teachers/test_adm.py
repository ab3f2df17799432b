"""ADM state dicts: an independent forward in their own names agrees with the network they are renamed to.

The forward below was written from the architecture's description (Dhariwal & Nichol 2021, section 3 and appendix A) for
this test; the layout of its tensors is that of guided-diffusion, from memory, and no file of theirs was at hand.
"""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fewstep.artifacts.model_file import load_model
from fewstep.data.facts import DataFacts
from fewstep.teachers.adm import read_adm
from fewstep.teachers.imported import imported, is_foreign, read

FACTS = DataFacts(name="tiny", shape=(3, 8, 8), num_classes=4, low=-1.0, high=1.0)
FLAGS = {"image_size": 8, "noise_schedule": "linear", "num_head_channels": 16, "use_new_attention_order": True}
Shapes = dict[str, tuple[int, ...]]


class Plan:
    """The sizes of one ADM, and the order of its blocks: (index, input channels, output channels, level, what)."""

    def __init__(
        self,
        width: int = 32,
        mults: tuple[float, ...] = (1, 2, 3),
        layers: int = 1,
        attend: tuple[int, ...] = (1, 2),
        classes: int | None = 5,
        learn_sigma: bool = True,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        color: int = 3,
    ) -> None:
        self.width, self.layers, self.attend, self.classes, self.color = width, layers, attend, classes, color
        self.scale_shift, self.resblock_updown = scale_shift, resblock_updown
        self.outputs = (2 if learn_sigma else 1) * color
        self.channels = [int(mult * width) for mult in mults]

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """A random state dict of guided-diffusion's names."""
        width, emb, last = self.width, 4 * self.width, len(self.channels) - 1
        shapes: Shapes = {}

        def layer(name: str, *shape: int) -> None:
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

        def residual(name: str, before: int, after: int) -> None:
            layer(f"{name}.in_layers.0", before)
            layer(f"{name}.in_layers.2", after, before, 3, 3)
            layer(f"{name}.emb_layers.1", (2 if self.scale_shift else 1) * after, emb)
            layer(f"{name}.out_layers.0", after)
            layer(f"{name}.out_layers.3", after, after, 3, 3)
            if before != after:
                layer(f"{name}.skip_connection", after, before, 1, 1)

        def attention(name: str, size: int) -> None:
            layer(f"{name}.norm", size)
            layer(f"{name}.qkv", 3 * size, size, 1)
            layer(f"{name}.proj_out", size, size, 1)

        def resample(name: str, size: int, kind: str) -> None:
            if self.resblock_updown:
                residual(name, size, size)
            else:
                layer(f"{name}.{kind}", size, size, 3, 3)

        layer("time_embed.0", emb, width)
        layer("time_embed.2", emb, emb)
        if self.classes:
            shapes["label_emb.weight"] = (self.classes, emb)
        layer("input_blocks.0.0", width, self.color, 3, 3)
        skips, now, index = [width], width, 1
        for level, size in enumerate(self.channels):
            for _ in range(self.layers):
                residual(f"input_blocks.{index}.0", now, size)
                now = size
                if level in self.attend:
                    attention(f"input_blocks.{index}.1", now)
                skips.append(now)
                index += 1
            if level < last:
                resample(f"input_blocks.{index}.0", now, "op")
                skips.append(now)
                index += 1
        residual("middle_block.0", now, now)
        attention("middle_block.1", now)
        residual("middle_block.2", now, now)
        index = 0
        for level, size in reversed(list(enumerate(self.channels))):
            for layer_number in range(self.layers + 1):
                residual(f"output_blocks.{index}.0", now + skips.pop(), size)
                now, place = size, 1
                if level in self.attend:
                    attention(f"output_blocks.{index}.1", now)
                    place = 2
                if level and layer_number == self.layers:
                    resample(f"output_blocks.{index}.{place}", now, "conv")
                index += 1
        layer("out.0", now)
        layer("out.2", self.outputs, now, 3, 3)
        generator = torch.Generator().manual_seed(seed)
        scales = {name: 1 / math.sqrt(max(1, math.prod(shape[1:]))) for name, shape in shapes.items()}
        return {
            name: torch.randn(shape, generator=generator) * (0.5 if len(shape) == 1 else scales[name])
            for name, shape in shapes.items()
        }


def adm(
    tensors: Mapping[str, Tensor], z: Tensor, timestep: Tensor, label: Tensor | None, head: int, new: bool
) -> Tensor:
    """The U-Net's output for z at integer timesteps, all its channels."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    def norm(h: Tensor, name: str) -> Tensor:
        return F.group_norm(h, 32, *weights(name))

    def conv(h: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = weights(name)
        return F.conv2d(h, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def residual(h: Tensor, name: str, resample: Any = None) -> Tensor:
        inner = F.silu(norm(h, f"{name}.in_layers.0"))
        if resample is not None:
            inner, h = resample(inner), resample(h)
        inner = conv(inner, f"{name}.in_layers.2")
        embedded = F.linear(F.silu(embedding), *weights(f"{name}.emb_layers.1"))[..., None, None]
        if embedded.shape[1] == 2 * inner.shape[1]:
            scale, shift = embedded.chunk(2, dim=1)
            inner = norm(inner, f"{name}.out_layers.0") * (1 + scale) + shift
        else:
            inner = norm(inner + embedded, f"{name}.out_layers.0")
        inner = conv(F.silu(inner), f"{name}.out_layers.3")
        return inner + (conv(h, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in tensors else h)

    def attention(h: Tensor, name: str) -> Tensor:
        batch, size, *sides = h.shape
        places = math.prod(sides)
        heads = size // head
        weight, bias = weights(f"{name}.qkv")
        qkv = F.conv1d(norm(h, f"{name}.norm").reshape(batch, size, places), weight, bias)
        if new:  # all queries, all keys, all values
            q, k, v = (part.reshape(batch * heads, head, places) for part in qkv.chunk(3, dim=1))
        else:  # queries, keys and values of the first head, then of the second, ...
            q, k, v = qkv.reshape(batch * heads, 3 * head, places).split(head, dim=1)
        attended = torch.softmax(torch.bmm(q.transpose(1, 2), k) / math.sqrt(head), dim=-1)
        mixed = torch.bmm(v, attended.transpose(1, 2)).reshape(batch, size, places)
        weight, bias = weights(f"{name}.proj_out")
        return h + F.conv1d(mixed, weight, bias).reshape(h.shape)

    def block(h: Tensor, name: str, resample: Any) -> Tensor:
        """All the modules of one block in turn; a residual block that changes the size is the last of them."""
        numbers = sorted({int(key[len(name) + 1 :].split(".")[0]) for key in tensors if key.startswith(f"{name}.")})
        for number in numbers:
            part = f"{name}.{number}"
            if f"{part}.qkv.weight" in tensors:
                h = attention(h, part)
            elif f"{part}.op.weight" in tensors:
                h = conv(h, f"{part}.op", stride=2)
            elif f"{part}.conv.weight" in tensors:
                h = conv(F.interpolate(h, scale_factor=2, mode="nearest"), f"{part}.conv")
            elif f"{part}.in_layers.0.weight" in tensors:
                changes = resample is not None and number == numbers[-1]
                h = residual(h, part, resample if changes else None)
            else:
                h = conv(h, part)
        return h

    half = tensors["time_embed.0.weight"].shape[1] // 2
    angles = timestep[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    embedding = F.linear(F.silu(F.linear(features, *weights("time_embed.0"))), *weights("time_embed.2"))
    if label is not None:
        embedding = embedding + tensors["label_emb.weight"][label]
    ins = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("input_blocks."))
    outs = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("output_blocks."))
    ups = [i for i in range(outs) if any(f"output_blocks.{i}.{n}.in_layers.0.weight" in tensors for n in (1, 2))]
    conv_ups = [i for i in range(outs) if any(f"output_blocks.{i}.{n}.conv.weight" in tensors for n in (1, 2))]
    per_level = min([*ups, *conv_ups]) + 1
    assert all(b - a == per_level for a, b in pairwise(ups))
    downs = set(range(per_level, ins, per_level)) if ups else set()
    skips, h = [], z
    for i in range(ins):
        h = block(h, f"input_blocks.{i}", (lambda x: F.avg_pool2d(x, 2)) if i in downs else None)
        skips.append(h)
    h = residual(attention(residual(h, "middle_block.0"), "middle_block.1"), "middle_block.2")
    for i in range(outs):
        grow = (lambda x: F.interpolate(x, scale_factor=2, mode="nearest")) if i in ups else None
        h = block(torch.cat([h, skips.pop()], dim=1), f"output_blocks.{i}", grow)
    return conv(F.silu(norm(h, "out.0")), "out.2")


def write(tensors: dict[str, Tensor], path: Path, **flags: Any) -> Path:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    if flags is not None:
        path.with_suffix(".json").write_text(json.dumps(FLAGS | flags))
    return path


PLANS: dict[str, tuple[Plan, dict[str, Any], str]] = {
    "as the 64 model": (Plan(), {"noise_schedule": "cosine"}, ".pt"),
    "as the 256 model": (Plan(layers=2, attend=(2,)), {"use_new_attention_order": False}, ".safetensors"),
    "attention at the finest": (Plan(mults=(1, 2), attend=(0,)), {"num_head_channels": 32}, ".pt"),
    "convolutions resample": (Plan(resblock_updown=False, learn_sigma=False), {}, ".pt"),
    "time is added": (Plan(scale_shift=False, mults=(1, 1, 2)), {"use_new_attention_order": False}, ".pt"),
}


@pytest.mark.parametrize("case", PLANS)
@torch.no_grad()
def test_an_imported_adm_says_what_adm_says(tmp_path: Path, case: str) -> None:
    plan, flags, suffix = PLANS[case]
    tensors = plan.tensors()
    path = write(tensors, tmp_path / f"adm{suffix}", **flags)
    assert is_foreign(path)
    denoiser, card = load_model(imported(path, tmp_path, FACTS))
    assert (card.prediction, denoiser.null) == ("eps", 4)
    assert card.native_schedule is not None
    assert card.native_schedule.kind == ("squaredcos_cap_v2" if flags.get("noise_schedule") == "cosine" else "linear")
    own = FLAGS | flags
    z = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    steps, label = torch.tensor([0, 1, 250, 998, 999]), torch.tensor([0, 1, 2, 3, 4])
    head, new = own["num_head_channels"], own["use_new_attention_order"]
    expected = adm(tensors, z, steps, label, head, new)[:, :3]
    assert expected.std() > 0.1
    ours = denoiser.network(z, steps.double() / 1000, label, None)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    other = adm(tensors, z, steps, label, head, not new)[:, :3]
    if head < max(plan.channels[level] for level in plan.attend):
        assert (other - expected).abs().max() > 1e-3  # the test would see heads in the other order


def test_the_two_published_shapes_need_no_settings(tmp_path: Path) -> None:
    for mults, size, kind in (((1, 2, 3, 4), 64, "squaredcos_cap_v2"), ((1, 1, 2, 2, 4, 4), 256, "linear")):
        path = tmp_path / f"{size}.pt"
        torch.save(Plan(64, mults, attend=(2, 3)).tensors(), path)
        found = read_adm(path)
        assert (found.config["sample_size"], found.config["attention_head_dim"], found.native_schedule.kind) == (
            size,
            64,
            kind,
        )
    linear = found.native_schedule  # 1e-4 to 0.02 over a thousand timesteps
    assert (linear.beta_start, linear.beta_end) == pytest.approx((1e-4, 0.02))


def test_an_adm_without_a_row_for_no_class_cannot_be_guided(tmp_path: Path) -> None:
    for classes, words in ((4, "only with a class"), (None, "only without a condition")):
        path = write(Plan(classes=classes).tensors(), tmp_path / "adm.pt")
        assert not read(path, FACTS).has_null
        with pytest.raises(ValueError, match=f"cannot be guided, because it can be called {words}"):
            imported(path, tmp_path, FACTS)


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.trace,)


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "flags", "words"),
    [
        ({"weight": torch.ones(2)}, {}, "a state dict of guided-diffusion, and its tensors are called weight"),
        ([1, 2], {}, "must hold tensors by name"),
        (without(Plan().tensors(), "out.2.bias"), {}, "lack unet.conv_out.bias"),
        (without(Plan().tensors(), "input_blocks.3.0.out_layers.3.weight"), {}, "lacks the tensor input_blocks.3.0"),
        (without(Plan().tensors(), "out.2.weight"), {}, "lacks the tensor out.2.weight; is the file whole"),
        (Plan().tensors() | {"out.2.weight": torch.tensor(1.0)}, {}, "of too few dimensions"),
        (Plan().tensors(), {"num_head_channels": None}, "as whole numbers"),
        (Plan().tensors() | {"extra.weight": torch.ones(1)}, {}, "hold unet.extra.weight"),
        (Plan().tensors() | {"out.0.bias": torch.ones(9)}, {}, r"conv_norm_out.bias is \(9,\) and should be \(32,\)"),
        (Plan().tensors(), {"num_head_channels": 7}, "num_head_channels=7 must divide"),
        (Plan().tensors(), {"noise_schedule": "sigmoid"}, "cosine or linear, got 'sigmoid'"),
        (Plan().tensors(), {"image_size": 64}, r"makes 3 channels of size 64, and tiny has \(3, 8, 8\)"),
        (Plan(color=1).tensors(), {}, "makes 1 channels"),
        (Plan(classes=1000).tensors(), {}, "knows 1000 classes, and tiny has 4 classes"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, tensors: Any, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        imported(write(tensors, tmp_path / "adm.pt", **flags), tmp_path, FACTS)
    assert "\n" not in str(refused.value)


def test_unpublished_settings_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "adm.pt"
    torch.save(Plan().tensors(), path)
    with pytest.raises(ValueError, match=r"write what is in no tensor into .*adm.json"):
        read_adm(path)


def test_a_pickle_of_more_than_tensors_is_not_executed(tmp_path: Path) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "adm.pt"
    torch.save(Plan().tensors() | {"bomb": Bomb(trace)}, path)
    with pytest.raises(ValueError, match="holds more than tensors, which is never executed"):
        read_adm(path)
    assert not trace.exists()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated, damaged"):
        read_adm(path)
