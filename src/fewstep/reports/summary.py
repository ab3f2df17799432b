"""What the rows of quality.json say together: ratios to the teacher, the headline, the speed table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from fewstep.artifacts.quality_file import TEACHER, QualityRow, Weight, names_in_order

WITHIN = 1.10  # the headline's student: the fewest steps with at most this FID ratio at every w


def by_name(rows: Sequence[QualityRow]) -> dict[str, list[QualityRow]]:
    """The rows of each model and baseline by rising steps, the models in order."""
    return {
        name: sorted((row for row in rows if row.name == name), key=lambda row: row.steps)
        for name in names_in_order(rows)
    }


def references(rows: Sequence[QualityRow]) -> dict[Weight, QualityRow]:
    """For each w the teacher's row with the most steps."""
    teacher = sorted((row for row in rows if row.name == TEACHER), key=lambda row: row.steps)
    return {row.weight: row for row in teacher}


def fid_ratio(row: QualityRow, reference: dict[Weight, QualityRow]) -> float | None:
    """FID over that of the teacher's most steps at the same w; None without such a row."""
    other = reference.get(row.weight)
    return row.fid / other.fid if other and other.fid > 0 else None


def fid_ratio_half_width(row: QualityRow, reference: dict[Weight, QualityRow]) -> float | None:
    """Half the width of the interval of `fid_ratio`, by the relative errors of both FIDs; None where one has none.

    Both come from the same noise, which moves them together rather than apart: the interval is rather too wide.
    """
    ratio, other = fid_ratio(row, reference), reference.get(row.weight)
    half, others = row.half_width("fid"), other and other.half_width("fid")
    if ratio is None or half is None or other is None or others is None or row.fid <= 0:
        return None
    return ratio * math.hypot(half / row.fid, others / other.fid)


@dataclass(frozen=True)
class Headline:
    """One student against the teacher's most steps: a pair (student, teacher) per w, and the speed of both."""

    pairs: list[tuple[QualityRow, QualityRow]]
    speed: "Speed"
    reference_speed: "Speed"

    @property
    def ratios(self) -> list[float]:
        """FID over the teacher's, per w."""
        return [student.fid / teacher.fid for student, teacher in self.pairs]

    @property
    def worst(self) -> tuple[QualityRow, QualityRow]:
        """The pair of the largest ratio."""
        return self.pairs[self.ratios.index(max(self.ratios))]

    @property
    def within(self) -> bool:
        return max(self.ratios) <= WITHIN

    @property
    def accuracy_change(self) -> float | None:
        """The largest loss of class accuracy over w, as a share; negative is a loss."""
        changes = [
            student.accuracy - teacher.accuracy
            for student, teacher in self.pairs
            if student.accuracy is not None and teacher.accuracy is not None
        ]
        return min(changes, default=None)


def headline(rows: Sequence[QualityRow]) -> Headline | None:
    """The student of the fewest steps within 10 % of the teacher's FID at every w, else the nearest one.

    None without a teacher or without a student.
    """
    reference = references(rows)
    speeds = {(speed.model, speed.steps, speed.nfe): speed for speed in speed_table(rows)}
    candidates = []
    students = (row for row in rows if row.name == row.model != TEACHER)
    for _, group in groupby(students, key=lambda row: (row.model, row.steps)):
        pairs = [(row, reference[row.weight]) for row in group if fid_ratio(row, reference) is not None]
        if pairs:
            slowest = (max(own, key=lambda row: row.nfe) for own in zip(*pairs, strict=True))
            candidates.append(Headline(pairs, *(speeds[row.name, row.steps, row.nfe] for row in slowest)))
    within = [candidate for candidate in candidates if candidate.within]
    if within:
        return min(within, key=lambda candidate: (candidate.speed.steps, max(candidate.ratios)))
    return min(candidates, key=lambda candidate: max(candidate.ratios), default=None)


@dataclass(frozen=True)
class Speed:
    """Speed of one model at one number of evaluations, the median over w; ratios to the slowest teacher."""

    model: str
    steps: int
    nfe: int
    images_per_second: float
    fewer_evaluations: float | None
    faster: float | None


def speed_table(rows: Sequence[QualityRow]) -> list[Speed]:
    """One entry for each model, steps and evaluations; the teacher of most evaluations is the reference."""
    groups: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        groups.setdefault((row.name, row.steps, row.nfe), []).append(row.images_per_second)
    order, rates = names_in_order(rows), {key: median(group) for key, group in groups.items()}
    slowest = max((key for key in rates if key[0] == TEACHER), key=lambda key: key[2], default=None)
    return [
        Speed(
            *key, rates[key], slowest[2] / key[2] if slowest else None, rates[key] / rates[slowest] if slowest else None
        )
        for key in sorted(rates, key=lambda key: (order.index(key[0]), -key[1], -key[2]))
    ]
