"""Lightning strategies: replicated networks (DDP) or sharded ones (FSDP2)."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from fewstep.distributed.collectives import TIMEOUT, is_distributed, on_main_process, world_size
from fewstep.distributed.sharded_checkpoint import SHARDS, load_shards_into, remove_unused_shards, save_shards
from fewstep.training.checkpointing import AtomicCheckpoints, read_checkpoint
from fewstep.training.settings import AUTO, TrainerSettings, require_gpus


def cluster_environment() -> ClusterEnvironment:
    """Lightning's view of who started the processes; given explicitly, so that it does not detect SLURM itself."""
    return TorchElasticEnvironment() if is_distributed() else LightningEnvironment()


def processes_per_node() -> int:
    """Number of processes of this run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_distributed() else 1


def build_strategy(settings: TrainerSettings, *, several_roles: bool = False) -> Strategy | str:
    """Lightning's strategy for the current process group.

    Args:
        several_roles: whether networks are trained in turns, so that DDP must find those without a gradient in a step.

    Raises:
        ValueError: a machine has fewer GPUs than processes.
    """
    if settings.accelerator == "gpu":
        require_gpus(processes_per_node(), torch.cuda.device_count())
    if settings.strategy == "fsdp" and is_distributed():
        return FSDP2Strategy()
    if world_size() == 1:
        return AUTO
    # Buffers are constants, so they are not broadcast; gradients are views of the buckets that are all-reduced.
    return DDPStrategy(
        timeout=TIMEOUT,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=several_roles,
    )


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 of networks that `DistillationModule.configure_model` shards, with sharded checkpoints."""

    def __init__(self) -> None:
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # none is written in place
        super().__init__(data_parallel_size=world_size(), tensor_parallel_size=1, timeout=TIMEOUT)
        self._files = AtomicCheckpoints()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(filepath)
        save_shards(checkpoint, path)

        def write() -> None:
            previous = read_checkpoint(path).get(SHARDS, {}) if path.is_file() else {}
            self._files.save_checkpoint(checkpoint, path)
            remove_unused_shards(path.parent, {each["folder"] for each in (previous, checkpoint[SHARDS]) if each})

        on_main_process(write)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(checkpoint_path)
        checkpoint = read_checkpoint(path)
        assert self.model is not None
        optimizers = [get_optimizer_state_dict(self.model, optimizer) for optimizer in self.optimizers]
        target = {"state_dict": get_model_state_dict(self.model), "optimizer_states": optimizers}
        load_shards_into(target, checkpoint, path.parent)
        for optimizer, state in zip(self.optimizers, optimizers, strict=True):
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state)
        return checkpoint
