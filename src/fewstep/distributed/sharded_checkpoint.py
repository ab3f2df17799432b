"""Sharded checkpoints: each rank writes its shards as safetensors; last.ckpt holds the rest and names the shard files.

The shards lie in a folder beside last.ckpt, under a new name for each checkpoint. The folder is complete before
last.ckpt is replaced and is removed once no checkpoint names it, so last.ckpt is readable at any moment. Nothing is
unpickled: torch's distributed checkpoint reads and writes through its safetensors storage, which needs no metadata.
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

SHARDS = "shards"  # key of a checkpoint: the folder, and the SHA-256 of each file in it
SUFFIX = ".shards"


class TensorSlot(NamedTuple):
    """The place of a tensor in a checkpoint, `holder[key]`, and a name that does not depend on the world size."""

    name: str
    holder: dict[Any, Any]
    key: Any

    @property
    def value(self) -> Any:
        return self.holder[self.key]


def tensor_slots(checkpoint: dict[str, Any]) -> Iterator[TensorSlot]:
    """The weights, and the optimiser states of each weight, named by the weights' names."""
    for name in checkpoint["state_dict"]:
        yield TensorSlot(f"weights/{name}", checkpoint["state_dict"], name)
    for number, optimizer in enumerate(checkpoint["optimizer_states"]):
        for name, state in optimizer["state"].items():
            for key in state:
                yield TensorSlot(f"optimizer-{number}/{name}/{key}", state, key)


def save_shards(checkpoint: dict[str, Any], path: Path) -> None:
    """Write the sharded tensors into a folder beside `path`, and replace them in `checkpoint` by that folder's name.

    Called by all ranks. The folder is complete and on disk when it returns.
    """
    folder = path.with_name(on_main_process(lambda: f"{uuid.uuid4().hex[:12]}{SUFFIX}"))
    sharded = [slot for slot in tensor_slots(checkpoint) if isinstance(slot.value, DTensor)]
    tensors = {slot.name: slot.value for slot in sharded}
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    files = sorted(file.name for file in folder.iterdir())
    digests: list[Any] = [None] * world_size()
    dist.all_gather_object(digests, {name: sha256_of(folder / name) for name in files[rank() :: world_size()]})
    for slot in sharded:
        slot.holder[slot.key] = None
    checkpoint[SHARDS] = {"folder": folder.name, "files": {k: v for each in digests for k, v in each.items()}}


def verify_shards(checkpoint: dict[str, Any], folder: Path) -> None:
    """Compare the shard files with the checksums in the checkpoint.

    Raises:
        ValueError, OSError: a file has changed, or is missing.
    """
    if SHARDS in checkpoint:
        shards = folder / checkpoint[SHARDS]["folder"]
        for name, sha256 in checkpoint[SHARDS]["files"].items():
            if sha256_of(shards / name) != sha256:
                raise ValueError(f"the checksum of its shard {shards.name}/{name} is not that of what it holds")


def remove_unused_shards(folder: Path, needed: set[str]) -> None:
    """Remove the shard folders that no checkpoint names."""
    for shards in folder.glob(f"*{SUFFIX}"):
        if shards.name not in needed:
            shutil.rmtree(shards, ignore_errors=True)


def consolidated(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The checkpoint as a single process writes it: full tensors, and the optimisers' weights numbered, not named."""
    if SHARDS not in checkpoint:
        return checkpoint
    reader = HuggingFaceStorageReader(str(folder / checkpoint.pop(SHARDS)["folder"]))
    metadata: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in metadata.items()}
    with warnings.catch_warnings():  # that there is no process group, which is intended here
        warnings.simplefilter("ignore", UserWarning)
        load(tensors, storage_reader=reader, no_dist=True)
    for slot in tensor_slots(checkpoint):
        if slot.name in tensors:
            slot.holder[slot.key] = tensors[slot.name]
    for optimizer in checkpoint["optimizer_states"]:
        number = {name: index for index, name in enumerate(parameter_names(optimizer))}
        optimizer["state"] = {number[name]: state for name, state in optimizer["state"].items()}
        for group in optimizer["param_groups"]:
            group["params"] = [number[name] for name in group["params"]]
    return checkpoint


def load_shards_into(target: dict[str, Any], checkpoint: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of `target` in place, and take over the checkpoint's optimiser settings.

    Args:
        target: weights and optimisers of the sharded network, laid out as a checkpoint.
        checkpoint: of any world size, sharded or not.
    """
    slots = {slot.name: slot for slot in tensor_slots(target)}
    if SHARDS in checkpoint:
        tensors = {name: slot.value for name, slot in slots.items() if isinstance(slot.value, DTensor)}
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder / checkpoint[SHARDS]["folder"])))
    else:
        name_optimizer_states(checkpoint, target)
    for saved in tensor_slots(checkpoint):
        tensor = slots[saved.name].value
        if isinstance(tensor, DTensor) and isinstance(saved.value, Tensor):
            full = saved.value.to(tensor.device)
            sharded = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.to_local().copy_(sharded.to_local())
        elif isinstance(tensor, Tensor) and isinstance(saved.value, Tensor):
            tensor.copy_(saved.value)
    for optimizer, saved in zip(target["optimizer_states"], checkpoint["optimizer_states"], strict=True):
        for group, settings in zip(optimizer["param_groups"], saved["param_groups"], strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})


def name_optimizer_states(checkpoint: dict[str, Any], target: dict[str, Any]) -> None:
    """Name the weights of an unsharded checkpoint's optimisers, which are numbered, as those of `target` are named."""
    for saved, optimizer in zip(checkpoint["optimizer_states"], target["optimizer_states"], strict=True):
        names = parameter_names(optimizer)
        saved["state"] = {names[number]: state for number, state in saved["state"].items()}


def parameter_names(optimizer: dict[str, Any]) -> list[str]:
    """The parameters of all groups of an optimiser's state, in order."""
    return [name for group in optimizer["param_groups"] for name in group["params"]]
