"""Atomic file writes, checksums, and the errors of full disks and exhausted memory."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_write(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path near `path`; on success flush it to disk and rename it to `path`, on failure remove it.

    A file or a folder may be written there. It lies in a folder of its own, since safetensors writes a temporary file
    beside the one asked for: a killed process leaves one folder to remove. Whoever may enter a new folder may read the
    content, where safetensors' own would be its writer's alone.

    Args:
        keep: where to move the previous content of `path`; None drops it. A process killed between the two renames
            leaves nothing at `path` and the previous content at `keep`.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary = folder / "content"  # no suffix, so that nobody who lists models finds it
    try:
        remove(folder)  # of a killed process with this number
        folder.mkdir()
        yield temporary
        for each in [temporary, *(temporary.rglob("*") if temporary.is_dir() else ())]:
            let_read(each, folder)  # first, as a folder without a right to write cannot be moved
            flush(each)
        if keep is not None and path.exists():
            move(path, keep)
        move(temporary, path)
        flush(path.parent)  # so that the rename survives a power cut
    except Exception as error:
        if is_full_disk(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        remove(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def let_read(path: Path, folder: Path) -> None:
    """Give a file or folder the permissions of a new one in `folder`, where the file system knows any."""
    mode = folder.stat().st_mode & (0o777 if path.is_dir() else 0o666)
    if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
        with suppress(OSError):
            path.chmod(mode)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename `source` to `target`, replacing it: a file atomically, a folder after removing the old one.

    Raises:
        OSError: a file in the place of a folder; the folder stays.
    """
    if target.exists() and source.is_dir():
        remove(target)
    os.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_free(out: Path, what: str) -> None:
    """Check that nothing is at `out`, where a trained `what` shall go that others may be made with.

    Raises:
        ValueError: something is.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists, and what was made with an {what} there needs it; name another folder")


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error or its causes come of a full disk: torch wraps the OSError, safetensors quotes it as text."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out on the host or a GPU; torch reports it as a RuntimeError with one of several texts."""
    texts = ("out of memory", "t allocate memory", "annot allocate memory", "could not create a primitive")
    texts += ("failed to map segment", "cannot allocate")  # the loader's of shared libraries
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or (isinstance(error, RuntimeError | ImportError) and any(text in str(error) for text in texts))
    )


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def tensor_digest(tensors: Mapping[str, "Tensor"]) -> str:
    """Hex SHA-256 of named tensors: names, dtypes, shapes and bytes, sorted by name."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
