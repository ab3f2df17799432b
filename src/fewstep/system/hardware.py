"""Memory, disk, processor and speed of this machine, and what this process uses of them."""

import os
import platform
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch.utils.benchmark import Timer

GIB = 2**30
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
MATRIX, SECONDS = 1024, 0.3  # size and duration of the matrix products


def peak_memory() -> int:
    """The most bytes of main memory that this process has held, or the one that started it had held by then."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_gpu_memory() -> int:
    """The most bytes that torch has allocated on this process's GPU; 0 where it uses none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def peak_device_memory() -> int:
    """The most bytes that this process has held on its GPU, or of main memory where it uses none."""
    return peak_gpu_memory() or peak_memory()


def current_memory() -> int:
    """Bytes of main memory that this process holds."""
    return psutil.Process().memory_info().rss


def free_memory(device: str = "cpu") -> int:
    """Bytes that this process could still allocate: of main memory, within its container's limit, or of cuda's."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    limits = [psutil.virtual_memory().available]
    for path in CGROUPS:
        with suppress(OSError, ValueError):  # there is none, or it says max
            limits.append(int(path.read_text()) - current_memory())
    return max(0, min(limits))


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is or would be."""
    place = folder.absolute()
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of this machine in matrix products, measured for SECONDS."""
    size = MATRIX if device == "cpu" else 8 * MATRIX
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    timer = Timer("torch.mm(a, a)", globals={"torch": torch, "a": matrix}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=SECONDS).mean


def synchronise(device: str) -> None:
    """Wait until the device has done all that was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()
