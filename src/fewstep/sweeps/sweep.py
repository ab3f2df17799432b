"""The folder of a sweep: outputs/sweeps/<name>/, and what its sweep.yaml holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fewstep.artifacts.run_folder import locked
from fewstep.system.files import atomic_write

SWEEPS = "sweeps"
SWEEP = "sweep.yaml"
SAMPLES = "samples"  # of the models that several jobs judge


@contextmanager
def locked_sweep(folder: Path) -> Iterator[None]:
    """Lock the sweep's folder as long as its jobs run.

    Raises:
        ValueError: another process has locked it.
    """
    with locked(folder) as acquired:
        if not acquired:
            raise ValueError(f"{folder} is being swept by another process; wait for it or choose another name=")
        yield


def describe(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what the sweep is."""
    with atomic_write(folder / SWEEP) as temporary:
        temporary.write_text(yaml.safe_dump(dict(about), sort_keys=False, width=120))


def described(folder: Path) -> dict[str, Any]:
    """What a sweep's folder says of itself.

    Raises:
        ValueError: it is none.
    """
    file = folder / SWEEP
    if not file.is_file():
        raise ValueError(f"{folder} is no sweep's folder: it has no {SWEEP}; one lies below outputs/{SWEEPS}/")
    return yaml.safe_load(file.read_text())
