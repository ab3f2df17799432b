"""What users read when a method refuses, whole: half a message, or one that runs on, is a fault too."""

from collections.abc import Callable
from typing import Any

import pytest
from small_methods import LADDER, SCHEDULE, small

from fewstep.diffusion.sampling import require_styles
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.methods import GuidanceRange
from fewstep.methods.guidance_range import chosen_weights
from fewstep.methods.readings import check_student_at_noise, check_teacher_at_noise, ends_without_signal

SHALLOW = CosineSchedule(-5.0, 12.0)  # which keeps signal at t = 1


def at_noise(check: Callable[..., None], name: str) -> Callable[[], None]:
    method = small(name)
    return lambda: check(method, method.phases()[0], "eps", SCHEDULE)


MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "labels": (
        lambda: small("guidance").without_labels(),
        "stage=guidance needs a guided teacher, guidance needs labels, and dataset.labels=none says there "
        "are none; leave "
        "the stage out (a teacher without guidance is distilled as it is: stage=progressive and most others), or make "
        "labels of clusters with `fewstep data label` (docs/self_labelled.md)",
    ),
    "student at noise": (
        at_noise(check_student_at_noise, "progressive"),
        "a student of stage=progressive is evaluated at t = 1, where no signal is left and x cannot be read from eps, "
        "which it predicts; use stage.prediction=v",
    ),
    "teacher at noise": (
        at_noise(check_teacher_at_noise, "progressive"),
        "the teacher of stage=progressive is evaluated at t = 1, where no signal is left and x cannot be "
        "read from eps, "
        "which it predicts; use one that predicts v (stage=guidance stage.prediction=v makes one), or "
        "stage.clip_target=true",
    ),
    "draw": (
        lambda: GuidanceRange(0.0, 4.0, "uniform", [1.0]),
        "stage.w_draw must be one of uniform, log_uniform, list, and list alone has stage.w_values, got 'uniform' with "
        "[1.0]",
    ),
    "list": (
        lambda: GuidanceRange(0.0, 4.0, "list"),
        "stage.w_draw must be one of uniform, log_uniform, list, and list alone has stage.w_values, got "
        "'list' with none",
    ),
    "range": (
        lambda: GuidanceRange(3.0, 2.0),
        "the guidance range must satisfy 0 <= w_min <= w_max, got w_min=3, w_max=2; w = 0 is no guidance (diffusers' "
        "guidance_scale is 1 + w)",
    ),
    "no range": (
        lambda: chosen_weights(None, 0.0, None),
        "stage.w_min and stage.w_max must be given where the parent is a teacher guided by two evaluations, which "
        "has no range of its own, got 0.0 and None; 0 and 4 are usual",
    ),
    "no range without a teacher": (
        lambda: small("meanflow from data", w_min=None),
        "stage.w_min and stage.w_max must be given where teacher=none, got None and 4.0; 0 and 4 are usual",
    ),
    "about a teacher": (
        lambda: small("consistency training", w_min=0.0),
        "stage.w_min is about a teacher, and teacher=none says there is none, got 0.0",
    ),
    "w of no teacher": (
        lambda: small("ect along data", w_min=0.0, w_max=1.0),
        "stage.w_min and stage.w_max are of a guided teacher, and stage.hop=data follows none, got 0.0 and 1.0",
    ),
    "no judge": (
        lambda: small("ladd", judge=None),
        "stage.judge must be given: the judge is all that this student learns from",
    ),
    "no loss": (
        lambda: small("add", distillation=0.0, judge=None),
        "stage.distillation must be above 0 where stage.judge is null, got 0",
    ),
    "times of the fake score": (
        lambda: small("dmd2", t_min=0.5, t_max=0.2),
        "stage.t_min and stage.t_max must satisfy 0 <= t_min < t_max <= 1, got 0.5 and 0.2",
    ),
    "divergence": (
        lambda: small("dmd2", divergence="js", gan_weight=0.0),
        "stage.divergence=js is weighted by what the critic says, and stage.gan_weight=0 says there is none; use "
        "stage.gan_weight=0.003, or stage.divergence=rkl",
    ),
    "two readers": (
        lambda: small("sfddm with features", judge={"weight": 1.0}),
        "stage.features and stage.judge each read the teacher's latest call, and there is but one; use "
        "stage.features=0 "
        "or stage.judge=null",
    ),
    "a role without a rate": (
        lambda: small("dmd2", {"roles": {}}),
        "stage.training.roles.fake.learning_rate must be given: this method trains fake beside the student, with a "
        "learning rate of its own",
    ),
    "styles": (
        lambda: require_styles(None),
        "guidance by three evaluations is of a class and of a style, and these data have no styles; use data that have "
        "both, like dataset=digits_styled, or two_evaluations",
    ),
    "levels": (
        lambda: small("ict", first_levels=20, most_levels=10),
        "stage.first_levels must be at most stage.most_levels, got 20 and 10",
    ),
    "sizes of experts": (lambda: small("vdd", width=7), "stage.width must be even and at least 4, got 7"),
    "sizes of a queue": (
        lambda: small("rdd", **LADDER | {"queue": 10, "contrasts": 16}),
        "stage.contrasts and stage.enqueued must be at most stage.queue, got 16, 8 and 10",
    ),
    "priors": (
        lambda: small("lcm", states={"data": 0.5, "teacher": 0.5, "student": 0.5}),
        "stage.states.data, teacher and student must sum to 1, got 0.5, 0.5, 0.5",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.usefixtures("unchecked")
def test_a_refusal_says_all_of_it(name: str) -> None:
    make, words = MESSAGES[name]
    with pytest.raises(ValueError, match=r"^\S") as caught:
        make()
    assert str(caught.value) == words


def test_where_signal_is_left_eps_can_be_read() -> None:
    assert ends_without_signal(SCHEDULE)
    assert not ends_without_signal(SHALLOW)
    method = small("progressive")
    for check in (check_student_at_noise, check_teacher_at_noise):
        check(method, method.phases()[0], "eps", SHALLOW)
        check(method, method.phases()[0], "v", SCHEDULE)
    clipped = small("progressive", clip_target=True)
    check_teacher_at_noise(clipped, clipped.phases()[0], "eps", SCHEDULE)
    for name in ("guidance", "encoder"):
        other = small(name)
        check_student_at_noise(other, other.phases()[0], "eps", SCHEDULE)
