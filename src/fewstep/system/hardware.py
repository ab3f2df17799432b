"""What this machine has, and what this process has taken of it: memory, disk, speed of matrix products."""

import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import torch

GIB = 2**30
STATUS, STATISTICS, RESET = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/proc/self/clear_refs")
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
MATRIX, SECONDS = 1024, 0.3  # size and duration of the matrix products


def peak_memory() -> int:
    """The most bytes of main memory that this process has held."""
    return in_bytes(STATUS, "VmHWM")


def peak_gpu_memory() -> int:
    """The most bytes that torch has allocated on this process's GPU; 0 where it uses none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def current_memory() -> int:
    """Bytes of main memory that this process holds."""
    return in_bytes(STATUS, "VmRSS")


def memory_of_process(pid: int) -> int:
    """Bytes of main memory that another process holds; 0 for one that is gone."""
    with suppress(OSError):
        return in_bytes(Path("/proc", str(pid), "status"), "VmRSS")
    return 0


def reset_peak_memory() -> None:
    """Count both peaks from now on. Where the system forbids it, that of main memory stays the process's."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        RESET.write_text("5")


def free_memory(device: str = "cpu") -> int:
    """Bytes that a process could still have: of main memory, as the system and this container's limit allow, or cuda's.

    A training process on a GPU has all of it but what others hold.
    """
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    limits = [in_bytes(STATISTICS, "MemAvailable")]
    for path in CGROUPS:
        with suppress(OSError, ValueError):  # there is none, or it says max
            limits.append(int(path.read_text()) - current_memory())
    return max(0, min(limits))


def in_bytes(path: Path, key: str) -> int:
    """The value of a line like "VmRSS:  123 kB"; 0 where the system says nothing of it."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else 0


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is or would be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of this machine in matrix products, as measured now for a moment."""
    size = MATRIX if device == "cpu" else 8 * MATRIX
    a = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, a)
    synchronise(device)
    start, count = perf_counter(), 0
    while (seconds := perf_counter() - start) < SECONDS:
        torch.mm(a, a)
        synchronise(device)
        count += 1
    return 2 * size**3 * count / seconds


def synchronise(device: str) -> None:
    """Wait for what the device has been given."""
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
