"""How the processes of a run train one network: each a whole one (DDP), or each a part (FSDP2)."""

import os

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from fewstep.processes import PATIENCE, joined, num_processes
from fewstep.trainer import AUTO, TrainerSettings, require_gpus


def environment() -> ClusterEnvironment:
    """Who starts processes, as Lightning asks: nobody, or somebody before it; it shall not look around for SLURM."""
    return TorchElasticEnvironment() if joined() else LightningEnvironment()


def per_machine() -> int:
    """Processes of this run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if joined() else 1


def strategy_of(settings: TrainerSettings) -> Strategy | str:
    """Lightning's strategy for the processes that there are.

    Raises:
        ValueError: a machine has fewer GPUs than processes.
    """
    if settings.accelerator == "gpu":
        require_gpus(per_machine(), torch.cuda.device_count())
    if num_processes() == 1:
        return AUTO
    # Buffers are constants; gradients live in what is sent.
    return DDPStrategy(timeout=PATIENCE, broadcast_buffers=False, gradient_as_bucket_view=True)
