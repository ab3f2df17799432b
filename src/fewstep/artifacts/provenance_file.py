"""provenance.json: what the figures of an evaluation are of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue, with_config

from fewstep.artifacts.run_folder import PROVENANCE
from fewstep.system.stored import read_json
from fewstep.system.validation import STRICT, Count


@with_config(STRICT)
@dataclass(frozen=True)
class JudgedModel:
    """A model file that was judged.

    Attributes:
        model: its label. steps: those it was made for, None for any number.
        path, run: of the file and of the folder that it was trained in, relative to the evaluation's; empty where they
            are not known.
        evaluations: that its training cost, None where nobody counted.
    """

    sha256: str
    model: str = ""
    steps: Count | None = None
    path: str = ""
    run: str = ""
    evaluations: Count | None = None


@with_config(STRICT)
@dataclass(frozen=True)
class Provenance:
    """Where the figures of a folder come from: protocol, models, versions and machine; empty where it is not known.

    Attributes:
        protocol: the fields of `evaluation.protocol.Protocol`, and its id. peak_memory: in bytes.
    """

    protocol: Mapping[str, JsonValue] = field(default_factory=dict)
    models: tuple[JudgedModel, ...] = ()
    created: str = ""
    fewstep: str = ""
    torch: str = ""
    device: str = ""
    peak_memory: Mapping[str, Count] = field(default_factory=dict)

    @property
    def protocol_id(self) -> str:
        return str(self.protocol.get("id", ""))

    @property
    def facts(self) -> dict[str, Any]:
        """All that is known but the protocol and the models."""
        return {name: value for name, value in asdict(self).items() if value and name not in ("protocol", "models")}


def read_provenance(folder: Path) -> Provenance | None:
    """provenance.json of a run; None where it is missing.

    Raises:
        ValueError: it is not what an evaluation writes.
    """
    path = folder / PROVENANCE
    return read_json(path, Provenance, "evaluate again") if path.is_file() else None
