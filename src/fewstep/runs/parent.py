"""The method of a stage, the data set where it needs one, and the parent that it starts from."""

import warnings
from pathlib import Path

from fewstep.artifacts.lineage import find_newest, resolve_parent
from fewstep.data.labels import NONE
from fewstep.distributed.collectives import on_main_process
from fewstep.evaluation.evaluator import Evaluator
from fewstep.methods.base import Method
from fewstep.runs.build import build_evaluator, build_method
from fewstep.runs.compatibility import compatibility_of
from fewstep.runs.config import EXACT, NO_TEACHER, Settings
from fewstep.teachers.imported import imported, is_foreign


def method_of(settings: Settings) -> Method:
    """The method of a stage, as it is with the teacher and the labels that the settings say.

    Raises:
        ValueError: see `build_method`; or it needs a teacher and teacher=none, or labels and dataset.labels=none.
    """
    method = build_method(settings.stage)
    if settings.labels == NONE:
        method = method.without_labels()
    return method.without_teacher() if settings.teacher == NO_TEACHER else method


def open_evaluator(settings: Settings, method: Method) -> Evaluator | None:
    """The data set and what judges samples; a method that needs no data may go without.

    Raises:
        ValueError, OSError: the data set of a method that needs it cannot be opened.
    """
    try:
        return build_evaluator(settings)
    except (ValueError, OSError) as error:
        if method.inputs == "data" or settings.teacher == EXACT:
            raise
        warnings.warn(f"training without data, so without snapshots and diagnostics: {error}", stacklevel=2)
        return None


def existing(parent: Path | None) -> Path:
    """The parent, which a method without data cannot do without.

    Raises:
        ValueError: there is none.
    """
    if parent is None:
        raise ValueError("a method that needs no data needs a trained parent, whose card says what to make")
    return parent


def has_weights(method: Method) -> bool:
    """Whether the method says at which weights w it trains; the exact teacher has no range of its own."""
    try:
        method.guidance(None)
    except ValueError:
        return False
    return True


def find_parent(settings: Settings, method: Method, evaluator: Evaluator | None) -> Path | None:
    """The parent's model file: the one named by teacher=PATH, else the newest that is compatible.

    None for a method that has no parent, and for the exact teacher, which is no file.

    Raises:
        ValueError: there is none, or the one that was named is not compatible.
    """
    wanted, teacher, outputs = method.parent(), settings.teacher, settings.outputs
    if wanted is None or (teacher == EXACT and wanted.teacher is not None and has_weights(method)):
        return None
    facts = None if evaluator is None else evaluator.facts
    if teacher in (None, EXACT):
        reason = compatibility_of(settings, wanted, facts, preferred=True)
        kind = "none" if settings.labels == NONE else wanted.guidance[0]
        return on_main_process(lambda: find_newest(outputs, settings.dataset_name, kind, reason))
    reason = compatibility_of(settings, wanted, facts, named=True)

    def named() -> Path:
        if not is_foreign(teacher):
            return resolve_parent(Path(teacher), reason)
        if facts is None:
            raise ValueError(f"teacher={teacher} is imported for its data set, which is not there")
        return resolve_parent(imported(teacher, outputs, facts), reason)

    return on_main_process(named)
