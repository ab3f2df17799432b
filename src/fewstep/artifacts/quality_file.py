"""quality.json: one row for every model, sampler, number of steps and guidance weight that was judged."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import with_config

from fewstep.diffusion.guidance import Weight
from fewstep.system.stored import read_json
from fewstep.system.validation import STRICT, Count

TEACHER, GUIDED = "teacher", "guided"  # labels of the models for any number of steps


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """Quality and cost of one model at one sampler, number of steps and w; shares are in [0, 1].

    Attributes:
        model: the card's label: teacher, guided, or the method of a few-step student.
        sampler: ddim for the deterministic one.
        nfe: network evaluations per image, guidance counted twice.
        same_noise_rmse: root mean squared difference per value to the teacher's most steps, from the same noise at the
            same w, in the data's range; it compares within one evaluation only.
        exact_rmse: the same to the exact solution, where the data have one.
        images_per_second: sampled; decoding latents is not counted.
        vendi: Vendi score within a class; None in files of earlier versions. See `evaluation.vendi`.
        base_steps, base_w: steps of a base model before those of a student, and its guidance; 0 and None without one.
            `steps` are then those of the student's sampler, of which the base took the first; see `diffusion.hybrid`.
        kid, clip_score: where there are prompts, and for CLIP a model of it.
        psnr, ssim, feature_distance: to the originals of degraded images; see `evaluation.restoration`.
        energy_distance: of the samples to as many exact ones from other noise at the same w, where the data have an
            exact solution; see `evaluation.energy`.
        energy_floor: the mean energy distance of two independent exact sets of as many.
        w2: of the style, for models that have a weight for the class and one for the style; w is then of the class.
        style_accuracy: share of samples whose measured style is that of their condition, for data with styles.
        intervals: [low, high] of each figure that the row has, by its name, at 95 %; see `evaluation.intervals`. Empty
            in files of earlier versions.

    Raises:
        ValueError: a figure that must be a number is none, or one that must be positive is not, or an interval is no
            interval.
    """

    model: str
    sampler: str
    steps: Count
    nfe: Count
    w: float
    fid: float
    inception_score: float | None
    precision: float | None
    recall: float | None
    accuracy: float | None
    diversity: float | None
    same_noise_rmse: float | None
    exact_rmse: float | None = None
    images_per_second: float
    num_images: Count
    seed: int
    protocol: str
    vendi: float | None = None
    base_steps: Count = 0
    base_w: float | None = None
    kid: float | None = None
    clip_score: float | None = None
    energy_distance: float | None = None
    energy_floor: float | None = None
    w2: float | None = None
    style_accuracy: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    feature_distance: float | None = None
    intervals: Mapping[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.steps > 0 and self.nfe > 0 and self.images_per_second > 0):
            numbers = self.steps, self.nfe, self.images_per_second
            raise ValueError(f"steps, nfe and images_per_second must be above 0, got {numbers}")
        if wrong := {
            name: pair for name, pair in self.intervals.items() if not (len(pair) == 2 and pair[0] <= pair[1])
        }:
            raise ValueError(f"intervals must be [low, high], got {wrong}")

    @property
    def is_few_step(self) -> bool:
        """Whether its model was made for a few steps, and not for any number of them."""
        return self.model not in (TEACHER, GUIDED)

    @property
    def name(self) -> str:
        """The model, with its base, and the sampler where it is a baseline: not the one that the model was made for."""
        if self.base_steps:
            return f"{self.model} + base"
        return self.model if self.sampler == "ddim" or self.is_few_step else f"{self.model}, {self.sampler}"

    @property
    def weight(self) -> Weight:
        """The guidance weight, or both of them."""
        return self.w if self.w2 is None else (self.w, self.w2)

    def half_width(self, figure: str) -> float | None:
        """Half the width of a figure's interval; None where the row has none."""
        low, high = self.intervals.get(figure, (None, None))
        return None if low is None or high is None else (high - low) / 2

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_rows(path: Path) -> list[QualityRow]:
    """The rows of quality.json, by model, most steps first, then w.

    Raises:
        ValueError: no such file, not a list of rows, a figure is missing, or there is not exactly one protocol.
    """
    if not path.is_file():
        raise ValueError(f"a report needs {path}, and it is not there; make it with: fewstep evaluate MODEL")
    rows: list[QualityRow] = read_json(path, list[QualityRow], "evaluate again")
    protocols = sorted({row.protocol for row in rows})
    if len(protocols) != 1:
        raise ValueError(
            f"rows of one quality table need one protocol id, got {', '.join(protocols) or 'no row'} "
            f"in {path}; evaluate all models again in one way"
        )
    order = names_in_order(rows)
    return sorted(rows, key=lambda row: (order.index(row.name), -row.steps, row.w, row.w2 or 0.0))


def names_in_order(rows: Iterable[QualityRow]) -> list[str]:
    """The models and baselines: teacher, guided, few-step students as they appear, then baselines as they appear."""

    def rank(row: QualityRow) -> int:
        return 3 if row.name != row.model else {TEACHER: 0, GUIDED: 1}.get(row.model, 2)

    return list(dict.fromkeys(row.name for row in sorted(rows, key=rank)))
