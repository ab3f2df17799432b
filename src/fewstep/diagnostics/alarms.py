"""When to say that a student is not well: divergence, collapse, saturation. Each is a line that names what to do.

The limits are ours. A student is compared with its teacher's samples from the same noise and with itself at the stage's
start: a rung of one step begins as a copy that can only say the mean of a class, and this is no alarm unless it stays.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

DIVERGED = 2.0  # times the smallest gap so far
NOTICED = 0.25  # a gap below it is none to speak of, however small it has been before
COLLAPSED = 0.5  # of the wanted diversity
STRETCHED = 1.5  # times the wanted contrast
WORSE = 1.1  # times what it was at the start: less is noise
BEYOND = 0.05  # mean distance beyond the data's limits more than wanted, in half ranges


class Alarm(NamedTuple):
    """What is wrong: divergence, collapse or saturation, and the line that says so."""

    kind: str
    says: str


def alarms(look: Mapping[str, Any], before: Sequence[Mapping[str, Any]], *, last: bool) -> list[Alarm]:
    """What is wrong at a look (a line of diagnostics.jsonl) that follows those `before` of the same stage and rung.

    At the start nothing is; later what is worse than at the start, and at the `last` look what has stayed wrong.
    """
    if not before:
        return []
    found = [divergence(look, before)]
    if look["samples"] is not None:
        begun = before[0]["samples"] or look["samples"]
        found += [collapse(look, begun, last=last), saturation(look, begun, last=last)]
    return [alarm for alarm in found if alarm is not None]


def divergence(look: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> Alarm | None:
    """The gap to the teacher grows instead of shrinking."""
    now, best = look["gap"], min((earlier["gap"] for earlier in before if earlier["gap"] is not None), default=0.0)
    if now is not None and now <= max(DIVERGED * best, NOTICED):
        return None
    grown = "no number" if now is None else f"{now:.3g}"
    return Alarm(
        "divergence",
        f"divergence in {place(look)}: the gap to what it is taught is {grown} and was {best:.3g}; lower "
        "stage.training.learning_rate",
    )


def collapse(look: Mapping[str, Any], begun: Mapping[str, Any], *, last: bool) -> Alarm | None:
    """Samples of one class are too much alike."""
    now, (who, wanted) = look["samples"]["diversity"], wanted_of(look, "diversity")
    if now is None or wanted is None or now >= COLLAPSED * wanted:
        return None
    if not last and begun["diversity"] is not None and now >= begun["diversity"] / WORSE:
        return None
    return Alarm(
        "collapse",
        f"collapse in {place(look)}: samples of a class vary by {now:.3g}, {who} by {wanted:.3g}; lower "
        "stage.training.learning_rate or train longer",
    )


def saturation(look: Mapping[str, Any], begun: Mapping[str, Any], *, last: bool) -> Alarm | None:
    """Samples have too much contrast, or lie beyond the data's range."""
    for name, text, limit in (
        ("contrast", "the contrast of samples is {:.3g}, of {} {:.3g}", lambda wanted: STRETCHED * wanted),
        (
            "excess",
            "samples lie {:.3g} half ranges beyond the data on average, {} {:.3g}",
            lambda wanted: wanted + BEYOND,
        ),
    ):
        now, (who, wanted) = look["samples"][name], wanted_of(look, name)
        if now is None or wanted is None:
            continue
        if now > limit(wanted) and (last or begun[name] is None or now > WORSE * begun[name]):
            said = text.format(now, who, wanted)
            return Alarm(
                "saturation",
                f"saturation in {place(look)}: {said}; lower stage.training.learning_rate or train longer",
            )
    return None


def wanted_of(look: Mapping[str, Any], name: str) -> tuple[str, float | None]:
    """Whose figure samples are compared with, the teacher's where there is one, and the figure."""
    taught = look["teacher_samples"]
    return ("the data's", look["data"][name]) if taught is None else ("the teacher's", taught[name])


def place(look: Mapping[str, Any]) -> str:
    """progressive 4 at 12,800 images."""
    stage = look["stage"] if look["rung"] is None else f"{look['stage']} {look['rung']}"
    return f"{stage} at {look['images']:,} images"
