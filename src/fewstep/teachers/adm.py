"""State dicts of guided-diffusion (ADM, Dhariwal & Nichol 2021), renamed to diffusers' UNet2DModel.

Read from the tensors' shapes: channels, levels, blocks, attention, classes, the kind of resampling and of time
conditioning, a learned variance (not used). Not in them, and so taken from `MODEL.json` beside the file, in
guided-diffusion's own flags, or from the two published settings (reconstruction: from memory of the public commands)
by the channel multipliers: image size, noise schedule, attention heads.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.diffusion.betas import BetaSchedule
from fewstep.system.files import sha256_of
from fewstep.teachers.foreign import Foreign, read_json, read_tensors

Flags = dict[str, Any]
DEFAULTS: Flags = {"num_head_channels": 64, "use_new_attention_order": False, "diffusion_steps": 1000}
PUBLISHED: dict[tuple[float, ...], Flags] = {  # channel multipliers -> what is in no tensor
    (1, 2, 3, 4): {"image_size": 64, "use_new_attention_order": True, "noise_schedule": "cosine"},
    (1, 1, 2, 2, 4, 4): {"image_size": 256, "use_new_attention_order": False, "noise_schedule": "linear"},
}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def is_adm(names: Mapping[str, Tensor]) -> bool:
    """Whether tensors are named as guided-diffusion names its U-Net's."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"} <= names.keys()


def read_adm(path: Path) -> Foreign:
    """The teacher in a state dict of guided-diffusion, .pt or .safetensors.

    Raises:
        ValueError: another file, settings that are neither given nor published, or tensors that contradict each other.
    """
    tensors = read_tensors(path)
    if not is_adm(tensors):
        some = ", ".join(sorted(tensors)[:2]) or "none"
        raise ValueError(
            f"teacher={path} must be a model of ours, a diffusers folder or a state dict of guided-diffusion, and its "
            f"tensors are called {some}, ..."
        )
    try:
        config = architecture(tensors, path)
        channels, base = config["block_out_channels"], tensors["time_embed.0.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"{path} lacks the tensor {error.args[0]}; is the file whole?") from error
    except (TypeError, IndexError) as error:
        raise ValueError(f"{path} has tensors of too few dimensions for an ADM; is the file whole?") from error
    flags = flags_of(path, tuple(size / base for size in channels), channels)
    head = flags["num_head_channels"]
    config |= {"sample_size": flags["image_size"], "attention_head_dim": head}
    new_order = bool(flags["use_new_attention_order"])
    return Foreign(
        kind="UNet2DModel",
        config=config,
        tensors=renamed(tensors, len(channels), config["layers_per_block"], head, new_order),
        prediction="eps",
        native_schedule=schedule_of(flags, path),
        pipeline=None,
        digest=sha256_of(path) + str(sorted(flags.items())),
    )


def flags_of(path: Path, mults: tuple[float, ...], channels: list[int]) -> Flags:
    """The flags that follow from no tensor: those in MODEL.json, or those published for these channel multipliers.

    Raises:
        ValueError: there are none, or one has no such value.
    """
    file = path.with_suffix(".json")
    flags = DEFAULTS | (read_json(file) if file.is_file() else PUBLISHED.get(mults, {}))
    if not {"image_size", "noise_schedule"} <= flags.keys():
        raise ValueError(
            f"{path} has channels {channels}, neither of the published 64 and 256 models; write what is in no tensor "
            f'into {file}: {{"image_size": 64, "noise_schedule": "cosine", "num_head_channels": 64, '
            '"use_new_attention_order": true}'
        )
    try:
        numbers = {name: int(flags[name]) for name in ("num_head_channels", "diffusion_steps", "image_size")}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file} must give sizes and steps as whole numbers ({error}); correct it") from error
    head = numbers["num_head_channels"]
    if head < 1 or any(channel % head for channel in channels):
        raise ValueError(f"{path} has channels {channels}, which num_head_channels={head} must divide; correct {file}")
    return flags | numbers


def schedule_of(flags: Flags, path: Path) -> BetaSchedule:
    """The noise schedule of that name.

    Raises:
        ValueError: an unknown one.
    """
    steps = flags["diffusion_steps"]
    match flags["noise_schedule"]:
        case "cosine":
            return BetaSchedule("squaredcos_cap_v2", num_timesteps=steps)
        case "linear":
            return BetaSchedule("linear", beta_start=0.1 / steps, beta_end=20 / steps, num_timesteps=steps)
        case other:
            file = path.with_suffix(".json")
            raise ValueError(f"noise_schedule must be cosine or linear, got {other!r}; correct {file}")


def architecture(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """diffusers' settings of the network, as far as they follow from the tensors' names and shapes.

    Raises:
        ValueError: they are those of no guided-diffusion U-Net.
    """
    ups = [
        (int(found[1]), "conv" if found[2] == "conv" else "resnet")
        for name in tensors
        if (found := re.match(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.0)\.weight", name))
    ]
    count = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("output_blocks.")), default=-1)
    per_level = min(ups)[0] + 1 if ups else count  # residual blocks of a level on the way up: one more than down
    kinds = {kind for _, kind in ups} or {"conv"}
    if per_level < 2 or count % per_level or len(kinds) > 1 or len(ups) != count // per_level - 1:
        raise ValueError(f"{path} has {count} output blocks that do not form equal levels; is the file whole?")
    levels, layers, kind = count // per_level, per_level - 1, kinds.pop()
    firsts = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    missing = [name for first in firsts if (name := f"{first}.0.out_layers.3.weight") not in tensors]
    if missing:
        raise ValueError(f"{path} lacks the tensor {missing[0]}; is the file whole?")
    channels = [len(tensors[f"{first}.0.out_layers.3.weight"]) for first in firsts]
    attention = [f"{first}.1.qkv.weight" in tensors for first in firsts]
    shifts = len(tensors["middle_block.0.emb_layers.1.weight"]) == 2 * channels[-1]
    plain = {"conv": ("DownBlock2D", "UpBlock2D"), "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")}[kind]
    classes = tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else None
    return {
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": len(tensors["out.2.weight"]),  # twice as many with a learned variance
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if a else plain[0] for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else plain[1] for a in reversed(attention)],
        "downsample_type": kind,
        "upsample_type": kind,
        "time_embedding_dim": len(tensors["time_embed.0.weight"]),
        "resnet_time_scale_shift": "scale_shift" if shifts else "default",
        "attn_norm_num_groups": 32,
        "num_class_embeds": classes,
    }


def renamed(tensors: Mapping[str, Tensor], levels: int, layers: int, head: int, new_order: bool) -> dict[str, Tensor]:
    """The tensors by diffusers' names, the joint projection of q, k and v split into three."""
    places = OUTSIDE | {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    places |= {"middle_block.1": "mid_block.attentions.0"}
    for level in range(levels):
        first, down, up = level * (layers + 1), f"down_blocks.{level}", f"up_blocks.{level}"
        for layer in range(layers):
            places[f"input_blocks.{1 + first + layer}.0"] = f"{down}.resnets.{layer}"
            places[f"input_blocks.{1 + first + layer}.1"] = f"{down}.attentions.{layer}"
        places[f"input_blocks.{1 + first + layers}.0"] = f"{down}.downsamplers.0"
        for layer in range(layers + 1):
            places[f"output_blocks.{first + layer}.0"] = f"{up}.resnets.{layer}"
            places[f"output_blocks.{first + layer}.1"] = f"{up}.attentions.{layer}"
        last = f"output_blocks.{first + layers}"
        place = 2 if f"{last}.1.qkv.weight" in tensors else 1
        places[f"{last}.{place}"] = f"{up}.upsamplers.0"
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        outer = re.match(
            r"(input_blocks|output_blocks)\.\d+\.\d|middle_block\.\d|time_embed\.\d|out\.\d|label_emb", name
        )
        start = outer[0] if outer else name
        place, inner = places.get(start, start), stem[len(start) + 1 :]
        match inner:
            case "qkv":
                for part, piece in zip("qkv", apart(tensor, head, new_order), strict=True):
                    found[f"{place}.to_{part}.{kind}"] = piece
            case "proj_out":
                found[f"{place}.to_out.0.{kind}"] = tensor.flatten(1) if kind == "weight" else tensor
            case "norm":
                found[f"{place}.group_norm.{kind}"] = tensor
            case "op":
                found[f"{place}.conv.{kind}"] = tensor
            case "":
                found[f"{place}.{kind}"] = tensor
            case _:
                found[f"{place}.{RESIDUAL.get(inner, inner)}.{kind}"] = tensor
    return found


def apart(qkv: Tensor, head: int, new_order: bool) -> list[Tensor]:
    """Queries, keys and values of one projection: blocks of q, k, v (new), or of q, k, v for each head in turn."""
    rows = qkv.flatten(1) if qkv.ndim > 1 else qkv
    if new_order:
        return [part.clone() for part in rows.chunk(3)]
    by_head = rows.reshape(-1, 3, head, *rows.shape[1:])
    return [by_head[:, part].flatten(0, 1).clone() for part in range(3)]
