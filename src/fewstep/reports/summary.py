"""What the rows of quality.json say together: ratios to the teacher, the headline, the speed table."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

TEACHER = "teacher"
WITHIN = 1.10  # the headline's student: the fewest steps with at most this FID ratio at every w
ORDER = ("teacher", "guided", "progressive")  # others follow by name


@dataclass(frozen=True)
class Row:
    """One row of quality.json: one model, sampler, number of steps and w; shares are in [0, 1]."""

    model: str
    sampler: str
    steps: int
    nfe: int
    w: float
    fid: float
    inception_score: float | None
    precision: float | None
    recall: float | None
    accuracy: float | None
    diversity: float | None
    same_noise_rmse: float | None
    images_per_second: float
    num_images: int
    seed: int
    protocol: str
    exact_rmse: float | None = None
    kid: float | None = None
    clip_score: float | None = None

    @property
    def who(self) -> str:
        """The model, and the sampler where it is not the one it was made for: a baseline."""
        own = self.sampler == "ddim" or self.model == "progressive"
        return self.model if own else f"{self.model}, {self.sampler}"

    def __post_init__(self) -> None:
        numbers = (self.steps, self.nfe, self.w, self.fid, self.images_per_second)
        if not all(isinstance(number, int | float) for number in numbers) or self.nfe * self.images_per_second <= 0:
            raise ValueError(f"steps, nfe, w, fid and images_per_second must be numbers above 0, got {numbers}")


def read_rows(path: Path) -> list[Row]:
    """The rows of quality.json, by model, most steps first, then w.

    Raises:
        ValueError: no such file, not a list of rows, a figure is missing, or the protocol is not one.
    """
    if not path.is_file():
        raise ValueError(f"a report needs {path}, and it is not there; make it with: fewstep evaluate MODEL")
    names = [field.name for field in fields(Row) if field.default is MISSING]
    some = [field.name for field in fields(Row) if field.default is None]  # figures that not all data have
    try:
        rows = [
            Row(**{name: raw[name] for name in names}, **{name: raw.get(name) for name in some})
            for raw in json.loads(path.read_text())
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be a list of rows with {', '.join(names)}, got {error!r}; evaluate again"
        ) from None
    protocols = sorted({row.protocol for row in rows})
    if len(protocols) != 1:
        raise ValueError(
            f"rows of one quality table need one protocol id, got {', '.join(protocols) or 'no row'} "
            f"in {path}; evaluate all models again in one way"
        )
    return sorted(rows, key=lambda row: (*model_order(row.who), -row.steps, row.w))


def model_order(model: str) -> tuple[int, str]:
    """Sorting key: teacher, guided, progressive, then the others by name."""
    return (ORDER.index(model) if model in ORDER else len(ORDER), model)


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each model and baseline by rising steps, the models in order."""
    ordered = sorted(rows, key=lambda row: (*model_order(row.who), row.steps))
    return {model: list(own) for model, own in groupby(ordered, key=lambda row: row.who)}


def references(rows: Sequence[Row]) -> dict[float, Row]:
    """For each w the teacher's row with the most steps."""
    teacher = sorted((row for row in rows if row.who == TEACHER), key=lambda row: row.steps)
    return {row.w: row for row in teacher}


def fid_ratio(row: Row, reference: dict[float, Row]) -> float | None:
    """FID over that of the teacher's most steps at the same w; None without such a row."""
    other = reference.get(row.w)
    return row.fid / other.fid if other and other.fid > 0 else None


@dataclass(frozen=True)
class Headline:
    """One student against the teacher's most steps: a pair (student, teacher) per w, and the worst."""

    pairs: list[tuple[Row, Row]]
    worst: tuple[Row, Row]
    worst_ratio: float
    nfe: int
    reference_nfe: int
    speed: "Speed"
    reference_speed: "Speed"

    @property
    def best_ratio(self) -> float:
        return min(student.fid / teacher.fid for student, teacher in self.pairs)

    @property
    def within(self) -> bool:
        return self.worst_ratio <= WITHIN

    @property
    def accuracy_change(self) -> float | None:
        """The largest loss of class accuracy over w, as a share; negative is a loss."""
        changes = [
            student.accuracy - teacher.accuracy
            for student, teacher in self.pairs
            if student.accuracy is not None and teacher.accuracy is not None
        ]
        return min(changes, default=None)


def headline(rows: Sequence[Row]) -> Headline | None:
    """The student of the fewest steps within 10 % of the teacher's FID at every w, else the nearest one.

    None without a teacher or without a student.
    """
    reference = references(rows)
    speeds = {(speed.model, speed.steps, speed.nfe): speed for speed in speed_table(rows)}
    candidates = []
    students = (row for row in rows if row.who == row.model != TEACHER)
    for key, group in groupby(students, key=lambda row: (row.model, row.steps)):
        pairs = [(row, reference[row.w]) for row in group if fid_ratio(row, reference) is not None]
        if not pairs:
            continue
        ratios = [student.fid / teacher.fid for student, teacher in pairs]
        most = max(range(len(pairs)), key=ratios.__getitem__)
        slow = max((teacher for _, teacher in pairs), key=lambda row: row.nfe)
        nfe = max(student.nfe for student, _ in pairs)
        candidates.append(
            Headline(
                pairs=pairs,
                worst=pairs[most],
                worst_ratio=ratios[most],
                nfe=nfe,
                reference_nfe=slow.nfe,
                speed=speeds[(*key, nfe)],
                reference_speed=speeds[(slow.model, slow.steps, slow.nfe)],
            )
        )
    within = [candidate for candidate in candidates if candidate.within]
    if within:
        return min(within, key=lambda candidate: (candidate.speed.steps, candidate.worst_ratio))
    return min(candidates, key=lambda candidate: candidate.worst_ratio, default=None)


@dataclass(frozen=True)
class Speed:
    """Speed of one model at one number of evaluations, the median over w; ratios to the slowest teacher."""

    model: str
    steps: int
    nfe: int
    images_per_second: float
    fewer_evaluations: float | None
    faster: float | None

    @property
    def milliseconds(self) -> float:
        """Wall-clock per image."""
        return 1000 / self.images_per_second


def speed_table(rows: Sequence[Row]) -> list[Speed]:
    """One entry for each model, steps and evaluations; the teacher of most evaluations is the reference."""

    def key(row: Row) -> tuple[Any, ...]:
        return (*model_order(row.who), -row.steps, -row.nfe)

    groups = [list(group) for _, group in groupby(sorted(rows, key=key), key=key)]
    medians = [(group[0], median(row.images_per_second for row in group)) for group in groups]
    slowest = max((pair for pair in medians if pair[0].model == TEACHER), key=lambda pair: pair[0].nfe, default=None)
    return [
        Speed(
            model=row.who,
            steps=row.steps,
            nfe=row.nfe,
            images_per_second=rate,
            fewer_evaluations=slowest[0].nfe / row.nfe if slowest else None,
            faster=rate / slowest[1] if slowest else None,
        )
        for row, rate in medians
    ]
