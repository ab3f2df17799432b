from typing import Any

import pytest

from fewstep.diagnostics.alarms import alarms

WELL = {"contrast": 0.6, "saturation": 0.1, "excess": 0.01, "diversity": 0.3}


def record(
    *, gap: float = 0.1, teacher: dict[str, Any] | None = WELL, rung: int | None = 4, **samples: Any
) -> dict[str, Any]:
    return {
        "images": 12800,
        "stage": "progressive",
        "rung": 4,
        "gap": gap,
        "gap_by_t": [{"low": 0.0, "high": 1.0, "gap": gap}],
        "samples": WELL | samples,
        "teacher_samples": teacher,
        "data": WELL,
    }


START = record(gap=0.2)


def kinds(*records: dict[str, Any], last: bool = False) -> list[str]:
    return [alarm.kind for alarm in alarms(records[-1], records[:-1], last=last)]


def test_a_healthy_student_raises_none() -> None:
    assert kinds(START, record()) == kinds(START, record(gap=0.05, diversity=0.2), last=True) == []


@pytest.mark.parametrize(
    ("kind", "what", "words"),
    [
        ("divergence", {"gap": 0.9}, "is 0.9 and was 0.2"),
        ("collapse", {"diversity": 0.1}, "vary by 0.1, the teacher's by 0.3"),
        ("saturation", {"contrast": 1.0}, "contrast of samples is 1, of the teacher's 0.6"),
        ("saturation", {"excess": 0.2}, "0.2 half ranges beyond"),
        ("saturation", {"saturation": 0.5}, "50.0% of values lie at the data's limits, of the teacher's 10.0%"),
    ],
)
def test_each_alarm_is_one_line_of_where_what_and_what_to_do(kind: str, what: dict[str, float], words: str) -> None:
    (alarm,) = alarms(record(**what), [START], last=False)
    assert alarm.kind == kind
    assert alarm.message.startswith(f"{kind} in progressive 4 at 12,800 images: ")
    assert words in alarm.message
    assert "lower stage.training.learning_rate" in alarm.message
    assert "\n" not in alarm.message


def judged(accuracy: float) -> dict[str, Any]:
    return record() | {"critics": {"critic": {"accuracy": accuracy, "real_loss": 0.1, "generated_loss": 0.1}}}


def test_a_critic_that_is_always_right_has_won() -> None:
    (alarm,) = alarms(judged(0.995), [START, judged(0.99)], last=False)
    assert alarm.kind == "victory"
    assert alarm.message.startswith("victory of the critic in progressive 4 at 12,800 images: it is right of 99.5% of")
    assert "lower stage.training.roles.critic.learning_rate" in alarm.message
    assert "\n" not in alarm.message


def test_a_critic_that_errs_or_was_right_but_once_has_not() -> None:
    assert kinds(START, judged(0.75), judged(0.9), last=True) == []
    assert kinds(START, judged(0.995)) == []
    assert kinds(START, judged(0.9), judged(0.995)) == []


def test_what_the_teacher_does_too_is_no_alarm() -> None:
    strange = {"contrast": 1.0, "saturation": 0.9, "excess": 0.3, "diversity": 0.05}
    assert kinds(START, record(teacher=strange, **strange), last=True) == []
    assert kinds(START, record(teacher=None, **strange)) == ["collapse", "saturation"]  # without one, the data's count


def test_what_a_rung_begins_with_is_an_alarm_only_if_it_stays() -> None:
    begun = record(diversity=0.0, contrast=1.0)
    assert kinds(begun) == []
    assert kinds(begun, record(diversity=0.1, contrast=0.95)) == []
    assert kinds(begun, record(diversity=0.1, contrast=0.95), last=True) == ["collapse", "saturation"]
    assert kinds(record(diversity=0.14), record(diversity=0.1)) == ["collapse"]


def test_a_gap_that_was_almost_nothing_may_grow_a_little() -> None:
    assert kinds(record(gap=1e-7), record(gap=0.2)) == []
    assert kinds(record(gap=1e-7), record(gap=0.3)) == ["divergence"]
    assert kinds(record(gap=0.9), record(gap=0.5), record(gap=1.01)) == ["divergence"]


def test_data_whose_diversity_is_not_known_cannot_collapse() -> None:
    unknown = record(teacher=None) | {"data": WELL | {"diversity": None}}
    assert kinds(START, unknown | {"samples": WELL | {"diversity": 0.0}}, last=True) == []
    assert kinds(START, START | {"samples": None}, last=True) == []


def test_what_is_no_number_diverged() -> None:
    (alarm,) = alarms(record(contrast=None, excess=None, diversity=None) | {"gap": None}, [START], last=True)
    assert alarm.kind == "divergence"
    assert "is no number and was 0.2" in alarm.message
    assert kinds(START, record() | {"gap": None}, record()) == []


def test_without_a_target_there_is_no_divergence_and_without_data_no_comparison_with_it() -> None:
    unmeasured = {"gap": None, "gap_by_t": []}
    assert kinds(START | unmeasured, record() | unmeasured, last=True) == []
    no_data = {"data": None}
    strange = {"contrast": 1.0, "diversity": 0.05}
    assert kinds(START | no_data, record(teacher=None, **strange) | no_data, last=True) == []
    assert kinds(START | no_data, record(**strange) | no_data) == ["collapse", "saturation"]
