from collections.abc import Callable

import pytest
import torch
from students import (
    DATA,
    EXACT,
    encoder,
    guidance_stage,
    perfect,
    probe_of,
    rung,
    spoilt,
    starts_of,
    teacher_stage,
)

from fewstep.data.batches import Batch
from fewstep.diagnostics.gaps import Answers, answers, gap, gap_by
from fewstep.diagnostics.probe import Probe, weight_bins
from fewstep.diagnostics.steps import steps_of, taught_samples, walk
from fewstep.diffusion.sampler import encode, sample
from fewstep.methods import GuidanceRange, Stage
from fewstep.system.seeds import fresh_noise

STAGES: list[Callable[[], Stage]] = [
    guidance_stage,
    lambda: rung(1),
    lambda: rung(4),
    lambda: rung(32),
    lambda: rung(4, "stochastic"),
    lambda: encoder(4),
    teacher_stage,
]
NAMES = ["guidance", "1", "4", "32", "stochastic", "encoder", "teacher"]


def fresh(start: int, count: int):
    return fresh_noise(0, start, count, (2,))


# Gaps ---------------------------------------------------------------------------------------------------------------


def test_a_gap_of_1_says_nothing_and_of_0_all() -> None:
    found = Answers(torch.tensor([1.0, 1.0, 9.0, 9.0]), torch.tensor([4.0, 6.0, 5.0, 5.0]))
    assert gap(found) == pytest.approx(1)
    assert gap_by(found, torch.tensor([0, 0, 1, 1]), 2) == pytest.approx([(1 / 5) ** 0.5, (9 / 5) ** 0.5])
    assert gap(Answers(torch.zeros(4), torch.ones(4))) == 0


@pytest.mark.parametrize("make", STAGES[:-1], ids=NAMES[:-1])
def test_a_perfect_student_has_no_gap_in_any_bin(make: Callable[[], Stage]) -> None:
    stage = make()
    probe = probe_of(stage)
    found = answers(perfect(stage), stage, probe, 100)
    assert len(found.error) == 256
    assert max(gap_by(found, probe.t_bin, len(probe.t_bins))) < 1e-9
    assert max(gap_by(found, probe.w_bin, len(probe.w_bins))) < 1e-9


def test_a_student_that_is_wrong_in_one_bin_of_t_shows_there_only() -> None:
    stage = guidance_stage()
    probe = probe_of(stage)
    assert [(bin.low, bin.high) for bin in probe.t_bins][3] == (0.375, 0.5)
    found = answers(spoilt(perfect(stage), lambda t, w: (t >= 0.375) & (t < 0.5)), stage, probe, 256)
    by_t = gap_by(found, probe.t_bin, 8)
    assert by_t.pop(3) == pytest.approx(0.5 / float(found.target.mean().sqrt()))
    assert max(by_t) < 1e-9
    assert min(gap_by(found, probe.w_bin, 4)) > 0.1  # it is in every bin of w


def test_a_student_that_is_wrong_in_one_bin_of_w_shows_there_only() -> None:
    stage = rung(4)
    probe = probe_of(stage)
    assert [(bin.low, bin.high) for bin in probe.w_bins] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    found = answers(spoilt(perfect(stage), lambda t, w: w > 3), stage, probe, 256)
    by_w = gap_by(found, probe.w_bin, 4)
    assert by_w.pop() > 0.1
    assert max(by_w) < 1e-9
    assert [bin.low for bin in probe.t_bins] == [bin.high for bin in probe.t_bins] == [0.25, 0.5, 0.75, 1]
    assert min(gap_by(found, probe.t_bin, 4)) > 0.1


def test_the_probe_is_even_over_t_w_and_both_branches_and_always_the_same() -> None:
    for make in STAGES:
        stage = make()
        probe, again = probe_of(stage), probe_of(stage)
        assert torch.equal(probe.t, again.t)
        assert torch.equal(probe.eps, again.eps)
        cells = probe.t_bin * max(1, len(probe.w_bins)) + probe.w_bin
        counts = cells.bincount()
        assert int(counts.max()) - int(counts.min()) <= 1
        for number, bin in enumerate(probe.t_bins):
            inside = probe.t[probe.t_bin == number]
            assert bin.low <= float(inside.min())
            assert float(inside.max()) <= bin.high
        if stage.times is not None:
            assert set(probe.t.tolist()) == set(stage.times.tolist())
        if probe.w is None:
            assert torch.equal(probe.label == 3, probe.unconditional)
            assert int(probe.unconditional.sum()) == 128
        else:
            assert not probe.unconditional.any()


def test_bins_of_w_are_what_training_draws() -> None:
    edges = [(bin.low, bin.high) for bin in weight_bins(GuidanceRange(0.0, 15.0, "log_uniform"))[0]]
    assert edges == [pytest.approx(pair) for pair in ((0, 1), (1, 3), (3, 7), (7, 15))]
    listed = weight_bins(GuidanceRange(0.0, 0.0, "list", [4.0, 0.0, 1.0]))[0]
    assert [bin.low for bin in listed] == [bin.high for bin in listed] == [0, 1, 4]
    assert len(weight_bins(GuidanceRange(2.0, 2.0))[0]) == 1


def test_prompts_have_an_empty_one_in_their_place() -> None:
    examples = Batch(torch.randn(64, 3, 4, 4), torch.randn(64, 5, 7))
    probe = Probe.of(examples, None, None, torch.zeros(5, 7), torch.Generator().manual_seed(0))
    empty = probe.label.flatten(1).abs().sum(1) == 0
    assert torch.equal(empty, probe.unconditional)
    assert 0 < int(empty.sum()) < 64


# Steps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", STAGES[1:-1], ids=NAMES[1:-1])
def test_a_perfect_student_makes_no_error_in_any_step(make: Callable[[], Stage]) -> None:
    stage = make()
    path = walk(perfect(stage), stage, starts_of(stage), fresh, 20)
    times = [t for t, _ in path.errors]
    assert len(times) == min(16, len(stage.times))
    assert set(times) <= set(stage.times.tolist())
    assert times == sorted(times, reverse=stage.name != "encoder")
    assert max(error for _, error in path.errors) < 1e-9


def test_a_step_that_goes_wrong_is_named_and_those_after_it_are_judged_from_where_they_begin() -> None:
    stage = rung(4)
    path = walk(spoilt(perfect(stage), lambda t, w: (t - 0.75).abs() < 1e-6), stage, starts_of(stage), fresh, 64)
    errors = dict(path.errors)
    # v off by 1/2 moves z by sin(d) / 2 over an angle of d = pi / 8
    assert errors.pop(0.75) == pytest.approx(0.5 * float(torch.sin(torch.tensor(torch.pi / 8))), rel=1e-3)
    assert max(errors.values()) < 1e-9


def test_a_path_is_what_the_sampler_makes_however_many_walk_at_once() -> None:
    stage, student = rung(4, "stochastic"), perfect(rung(4, "stochastic"))
    starts = starts_of(stage)
    ends = [walk(student, stage, starts, fresh, rows).end for rows in (7, 64)]
    torch.testing.assert_close(ends[0], ends[1])
    plain = rung(4)
    end = walk(perfect(plain), plain, starts, fresh, 64).end
    straight = sample(
        perfect(plain), starts.noise, schedule=plain.schedule, num_steps=4, label=starts.label, w=starts.w
    )
    torch.testing.assert_close(end, straight)


def test_a_perfect_rung_ends_where_its_teacher_does() -> None:
    for sampler in ("deterministic", "stochastic"):
        stage = rung(4, sampler)
        taught = taught_samples(stage, starts_of(stage), fresh, 20)
        assert taught is not None
        assert bool(torch.isfinite(taught).all())
    deterministic = rung(4)
    end = walk(perfect(deterministic), deterministic, starts_of(deterministic), fresh, 64).end
    taught = taught_samples(deterministic, starts_of(deterministic), fresh, 64)
    torch.testing.assert_close(end, taught, rtol=0, atol=1e-3)  # up to sigma(0)
    assert taught_samples(encoder(4), starts_of(encoder(4)), fresh, 64) is None
    assert taught_samples(teacher_stage(), starts_of(teacher_stage()), fresh, 64) is None


def test_an_encoders_path_is_what_encode_makes_of_data() -> None:
    stage = encoder(4)
    starts = starts_of(stage).at_data(DATA.batch(1))
    end = walk(EXACT, stage, starts, fresh, 20).end
    straight = encode(EXACT, starts.noise, schedule=stage.schedule, num_steps=4, label=starts.label, w=starts.w)
    torch.testing.assert_close(end, straight)


def test_long_ladders_are_walked_in_steps_of_their_own_grid() -> None:
    assert [steps_of(count) for count in (1, 2, 8, 16, 32, 512, 25, 17)] == [1, 2, 8, 16, 16, 16, 5, 1]


def test_starts_are_even_over_classes_and_w() -> None:
    starts = starts_of(rung(4))
    assert starts.w is not None
    assert set(starts.w.tolist()) == {0.5, 1.5, 2.5, 3.5}
    assert set(starts.cell.bincount().tolist()) == {5}
    assert {(int(label), float(w)) for label, w in zip(starts.label, starts.w, strict=True)} == {
        (label, w) for label in range(3) for w in (0.5, 1.5, 2.5, 3.5)
    }
