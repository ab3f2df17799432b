"""Alarms: divergence, collapse or saturation of a student, victory of a critic; each says in a line what to change.

The limits are ours. A student is compared with its teacher's samples from the same noise and with itself at the phase's
start: a student of one step begins as a copy that predicts the mean of its class, which is no alarm unless it stays.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

DIVERGED = 2.0  # times the smallest gap so far
NEGLIGIBLE_GAP = 0.25  # however small it was before
COLLAPSED = 0.5  # of the reference's diversity
OVERSTRETCHED = 1.5  # times the reference's contrast
WORSE = 1.1  # times the value at the start: less is noise
SATURATED = 0.25  # share of values at the data's limits above the reference's
UNERRING = 0.98  # share of examples of which a critic is right, in two records running
EXCESSIVE = 0.05  # mean distance beyond the data's limits above the reference's, in half ranges


class Alarm(NamedTuple):
    """The kind of alarm (divergence, collapse, saturation or victory) and the line that describes it."""

    kind: str
    message: str


def alarms(record: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], *, last: bool) -> list[Alarm]:
    """The alarms of a record of diagnostics.jsonl; none at the start of a phase.

    Args:
        earlier: the records of the same phase before it.
        last: whether it is the phase's last: what was as bad at the start counts as well.
    """
    if not earlier:
        return []
    found = [divergence(record, earlier), victory(record, earlier[-1])]
    if record["samples"] is not None:
        start = earlier[0]["samples"] or record["samples"]
        found += [collapse(record, start, last=last), saturation(record, start, last=last)]
    return [alarm for alarm in found if alarm is not None]


def divergence(record: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Alarm | None:
    """The gap to the target grows, or is no number; none where the gap is not measured."""
    if not record["gap_by_t"]:
        return None
    gap, best = record["gap"], min((each["gap"] for each in earlier if each["gap"] is not None), default=0.0)
    if gap is not None and gap <= max(DIVERGED * best, NEGLIGIBLE_GAP):
        return None
    grown = "no number" if gap is None else f"{gap:.3g}"
    return Alarm(
        "divergence",
        f"divergence in {place(record)}: the gap to its target is {grown} and was {best:.3g}; lower "
        "stage.training.learning_rate",
    )


def victory(record: Mapping[str, Any], before: Mapping[str, Any]) -> Alarm | None:
    """A critic is always right: what it says of a sample no longer tells the student where to go."""
    for role, own in record.get("critics", {}).items():
        earlier = before.get("critics", {}).get(role)
        if earlier is None or min(own["accuracy"], earlier["accuracy"]) < UNERRING:
            continue
        return Alarm(
            "victory",
            f"victory of the {role} in {place(record)}: it is right of {own['accuracy']:.1%} of real and generated "
            f"examples; lower stage.training.roles.{role}.learning_rate, or use more r1 or noise where it judges",
        )
    return None


def collapse(record: Mapping[str, Any], start: Mapping[str, Any], *, last: bool) -> Alarm | None:
    """Samples of one class are too similar."""
    diversity, (whose, wanted) = record["samples"]["diversity"], reference(record, "diversity")
    if diversity is None or wanted is None or diversity >= COLLAPSED * wanted:
        return None
    if not last and start["diversity"] is not None and diversity >= start["diversity"] / WORSE:
        return None
    return Alarm(
        "collapse",
        f"collapse in {place(record)}: samples of a class vary by {diversity:.3g}, {whose} by {wanted:.3g}; lower "
        "stage.training.learning_rate or train longer",
    )


def saturation(record: Mapping[str, Any], start: Mapping[str, Any], *, last: bool) -> Alarm | None:
    """Samples have too much contrast, lie beyond the data's range, or too often at its limits."""
    for name, text, factor, margin in (
        ("contrast", "the contrast of samples is {:.3g}, of {} {:.3g}", OVERSTRETCHED, 0.0),
        ("excess", "samples lie {:.3g} half ranges beyond the data on average, {} {:.3g}", 1.0, EXCESSIVE),
        ("saturation", "{:.1%} of values lie at the data's limits, of {} {:.1%}", 1.0, SATURATED),
    ):
        value, (whose, wanted) = record["samples"][name], reference(record, name)
        if value is None or wanted is None:
            continue
        if value > factor * wanted + margin and (last or start[name] is None or value > WORSE * start[name]):
            return Alarm(
                "saturation",
                f"saturation in {place(record)}: {text.format(value, whose, wanted)}; lower "
                "stage.training.learning_rate or train longer",
            )
    return None


def reference(record: Mapping[str, Any], name: str) -> tuple[str, float | None]:
    """Whose samples the student's are compared with, and their statistic: the teacher's, else the data's if known."""
    teacher, data = record["teacher_samples"], record["data"]
    if teacher is not None:
        return "the teacher's", teacher[name]
    return "the data's", None if data is None else data[name]


def place(record: Mapping[str, Any]) -> str:
    """Stage, steps and images, as in "progressive 4 at 12,800 images"."""
    stage = record["stage"] if record["rung"] is None else f"{record['stage']} {record['rung']}"
    return f"{stage} at {record['images']:,} images"
