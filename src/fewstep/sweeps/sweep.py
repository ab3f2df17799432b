"""The folder of a sweep: outputs/sweeps/<name>/, and what its sweep.yaml holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import with_config

from fewstep.artifacts.run_folder import locked
from fewstep.sweeps.objective import Objective
from fewstep.system.files import atomic_write
from fewstep.system.stored import dump_yaml, read_yaml
from fewstep.system.validation import STRICT

SWEEPS = "sweeps"
SWEEP = "sweep.yaml"
SAMPLES = "samples"  # of the models that several jobs judge


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class SweepDescription:
    """What sweep.yaml holds.

    Attributes:
        preset: its name, None for a line of the user's own. fixed: overrides of all jobs. swept: values by key.
        jobs: name -> the values it has. parents: names of the trainings that jobs share.
        teachers: of the jobs of one stage, the parents that they began with.
    """

    preset: str | None = None
    fixed: tuple[str, ...] = ()
    swept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objective: Objective = Objective()  # noqa: RUF009 (frozen)
    jobs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    teachers: Mapping[str, str] = field(default_factory=dict)


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


def describe(folder: Path, about: SweepDescription) -> None:
    """Write what the sweep is."""
    with atomic_write(folder / SWEEP) as temporary:
        temporary.write_text(dump_yaml(asdict(about)))


def described(folder: Path) -> SweepDescription:
    """What a sweep's folder says of itself.

    Raises:
        ValueError: it is none, or sweep.yaml is damaged.
    """
    file = folder / SWEEP
    if not file.is_file():
        raise ValueError(f"{folder} is no sweep's folder: it has no {SWEEP}; one lies below outputs/{SWEEPS}/")
    return read_yaml(file, SweepDescription, "the sweep's own line writes it again")
