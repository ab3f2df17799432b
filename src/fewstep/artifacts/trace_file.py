"""trace.json: how far a sampler's predictions are from the image that it ends with."""

from pathlib import Path
from typing import NamedTuple

from fewstep.system.stored import read_json

REMEDY = "evaluate again"
TRACE = "trace.json"
FILMS = Path("samples", "trace")  # NAME.png of each curve


class Curve(NamedTuple):
    """The predictions of one model at one number of steps.

    Attributes:
        times: at which it is evaluated.
        rmse: of each step, to the last: root mean squared difference per value, in the data's range.
        features: the same as mean distance of the protocol's features, over the mean distance of two final images of
            the first curve: at 1 a prediction says no more of its image than another image does.
    """

    model: str
    w: float
    times: list[float]
    rmse: list[float]
    features: list[float]

    @property
    def name(self) -> str:
        return f"{self.model}, {len(self.times)} steps"


def read_curves(path: Path) -> list[Curve]:
    """The curves in trace.json; none where it is missing.

    Raises:
        ValueError: it is not what an evaluation writes.
    """
    if not path.is_file():
        return []
    curves = read_json(path, list[Curve], REMEDY)
    if not all(len(each.times) == len(each.rmse) == len(each.features) > 0 for each in curves):
        raise ValueError(f"{path} must have a distance for each time of a curve, and has not; {REMEDY}")
    return curves
