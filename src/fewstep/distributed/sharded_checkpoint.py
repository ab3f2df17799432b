"""Checkpoints in parts: each process writes its part of the tensors as safetensors, last.ckpt names them and the rest.

The parts lie in a folder beside last.ckpt. It gets its name and is there before last.ckpt is replaced, and goes when no
checkpoint names it any more, so that what last.ckpt says is whole at any moment. Nothing is unpickled: torch's
distributed checkpoint reads and writes them through its storage for safetensors, which needs no metadata besides.
"""

import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.distributed.collectives import on_main_process, rank, world_size
from fewstep.system.files import sha256_of

SHARDS = "parts"  # key of a checkpoint: the folder, and the SHA-256 of each file in it
SUFFIX = ".parts"


class TensorSlot(NamedTuple):
    """Where in a checkpoint a tensor is: `holder[key]`, by a name that is the same for any number of processes."""

    name: str
    holder: dict[Any, Any]
    key: Any


def tensor_slots(checkpoint: dict[str, Any]) -> Iterator[TensorSlot]:
    """The weights, and the optimisers' state of each weight; all by the weights' names."""
    for name in checkpoint["state_dict"]:
        yield TensorSlot(f"weights/{name}", checkpoint["state_dict"], name)
    for number, optimizer in enumerate(checkpoint["optimizer_states"]):
        for name, state in optimizer["state"].items():
            for key in state:
                yield TensorSlot(f"optimizer-{number}/{name}/{key}", state, key)


def save_shards(checkpoint: dict[str, Any], beside: Path) -> None:
    """Write the tensors that are divided over the processes, and put into their place where they are.

    Called by all processes. The folder is finished, and on the disk, when it returns.
    """
    folder = beside.with_name(on_main_process(lambda: f"{uuid.uuid4().hex[:12]}{SUFFIX}"))
    divided = {p.name: p for p in tensor_slots(checkpoint) if isinstance(p.holder[p.key], DTensor)}
    tensors = {name: place.holder[place.key] for name, place in divided.items()}
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    files = sorted(file.name for file in folder.iterdir())
    own = {name: sha256_of(folder / name) for name in files[rank() :: world_size()]}
    everyones: list[dict[str, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(everyones, own)
    for place in divided.values():
        place.holder[place.key] = None
    checkpoint[SHARDS] = {"folder": folder.name, "files": {k: v for each in everyones for k, v in each.items()}}


def verify_shards(checkpoint: dict[str, Any], folder: Path) -> None:
    """Compare the parts with what the checkpoint says of them.

    Raises:
        ValueError, OSError: a file is not as it was written, or not there.
    """
    if SHARDS in checkpoint:
        at = folder / checkpoint[SHARDS]["folder"]
        for name, sha256 in checkpoint[SHARDS]["files"].items():
            if sha256_of(at / name) != sha256:
                raise ValueError(f"the checksum of its part {at.name}/{name} is not that of what it holds")


def remove_unused_shards(folder: Path, needed: set[str]) -> None:
    """Remove the folders of parts that no checkpoint names."""
    for parts in folder.glob(f"*{SUFFIX}"):
        if parts.name not in needed:
            shutil.rmtree(parts, ignore_errors=True)


def consolidated(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The checkpoint as one process alone would have written it: tensors whole, its optimisers' weights numbered."""
    if SHARDS not in checkpoint:
        return checkpoint
    parts = checkpoint.pop(SHARDS)
    reader = HuggingFaceStorageReader(str(folder / parts["folder"]))
    known: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in known.items()}
    with warnings.catch_warnings():  # it says that no process group is used, which is what is asked
        warnings.simplefilter("ignore", UserWarning)
        load(tensors, storage_reader=reader, no_dist=True)
    for place in tensor_slots(checkpoint):
        if place.name in tensors:
            place.holder[place.key] = tensors[place.name]
    for optimizer in checkpoint["optimizer_states"]:
        names = [name for group in optimizer["param_groups"] for name in group["params"]]
        number = {name: index for index, name in enumerate(names)}
        optimizer["state"] = {number[name]: state for name, state in optimizer["state"].items()}
        for group in optimizer["param_groups"]:
            group["params"] = [number[name] for name in group["params"]]
    return checkpoint


def load_shards_into(target: dict[str, Any], checkpoint: dict[str, Any], folder: Path) -> None:
    """Fill the divided tensors of `target`, in place, and take over what else there is of its optimisers.

    Args:
        target: weights and optimisers of the network in parts, laid out as a checkpoint.
        checkpoint: of any number of processes, in parts or whole.
    """
    ours = {place.name: place for place in tensor_slots(target)}
    if SHARDS in checkpoint:
        tensors = {name: p.holder[p.key] for name, p in ours.items() if isinstance(p.holder[p.key], DTensor)}
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder / checkpoint[SHARDS]["folder"])))
    else:
        with_parameter_names(checkpoint, target)
    for place in tensor_slots(checkpoint):
        value, own = place.holder[place.key], ours[place.name].holder[ours[place.name].key]
        if isinstance(own, DTensor) and isinstance(value, Tensor):
            part = distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
            own.to_local().copy_(part.to_local())
        elif isinstance(own, Tensor) and isinstance(value, Tensor):
            own.copy_(value)
    for ours_of, theirs in zip(target["optimizer_states"], checkpoint["optimizer_states"], strict=True):
        for group, saved in zip(ours_of["param_groups"], theirs["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})


def with_parameter_names(checkpoint: dict[str, Any], target: dict[str, Any]) -> None:
    """Name the weights of a whole checkpoint's optimisers, which are numbered, as those of `target` are named."""
    for optimizer, ours in zip(checkpoint["optimizer_states"], target["optimizer_states"], strict=True):
        names = [name for group in ours["param_groups"] for name in group["params"]]
        optimizer["state"] = {names[number]: state for number, state in optimizer["state"].items()}
