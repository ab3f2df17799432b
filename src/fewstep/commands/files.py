"""Files that commands write: refused before anything is made for them."""

from pathlib import Path


def check_file(out: Path, *suffixes: str) -> Path:
    """The file to write, whose name ends in one of `suffixes`, in capitals or not.

    Raises:
        ValueError: it is of another kind, or a folder.
    """
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}, got {out}")
    if out.is_dir():
        raise ValueError(
            f"--out must be a file, and {out} is a folder; name a file in it, as {out / f'a{suffixes[0]}'}"
        )
    return out


def check_folder(out: Path | None) -> Path | None:
    """The folder to write to, which may be there or not; None for the default.

    Raises:
        ValueError: it is a file, or lies below one.
    """
    if out is None:
        return None
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"--out must be a folder, and {nearest} is a file; give another path")
    return out
