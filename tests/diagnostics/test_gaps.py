from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from students import (
    DATA,
    EXACT,
    consistency,
    consistency_training,
    dmd2,
    encoder,
    guidance,
    paths_of,
    perfect,
    probe_of,
    rung,
    spoilt,
    starts_of,
    teacher,
    tract,
)

from fewstep.data.batch import Batch
from fewstep.diagnostics.gaps import ProbeErrors, gap, probe_errors
from fewstep.diagnostics.probe import Probe, weight_bins
from fewstep.diagnostics.steps import largest_divisor, path_grid
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.sampler import SAMPLERS, encode, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import uniform_times
from fewstep.methods import GuidanceRange
from fewstep.training.module import DistillationModule

Make = Callable[[], DistillationModule]
PHASES: dict[str, Make] = {
    "guidance": guidance,
    "1": lambda: rung(1),
    "4": lambda: rung(4),
    "32": lambda: rung(32),
    "stochastic": lambda: rung(4, "stochastic"),
    "stochastic 32": lambda: rung(32, "stochastic"),
    "encoder": lambda: encoder(4),
    "encoder 32": lambda: encoder(32),
    "tract": tract,
    "consistency": consistency,
}
WITHOUT_TEACHER: dict[str, Make] = {"teacher": teacher, "consistency_training": consistency_training}
all_phases = pytest.mark.parametrize("make", PHASES.values(), ids=PHASES)


# Gaps ---------------------------------------------------------------------------------------------------------------


def gap_by(found: ProbeErrors, number: torch.Tensor, num_bins: int) -> list[float]:
    """The gap in each bin; `number` is the bin of each example."""
    return [gap(found, number == one) for one in range(num_bins)]


def test_a_gap_of_1_says_nothing_and_of_0_all() -> None:
    found = ProbeErrors(torch.tensor([1.0, 1.0, 9.0, 9.0]), torch.tensor([4.0, 6.0, 5.0, 5.0]))
    assert gap(found) == pytest.approx(1)
    assert gap_by(found, torch.tensor([0, 0, 1, 1]), 2) == pytest.approx([(1 / 5) ** 0.5, (9 / 5) ** 0.5])
    assert gap(ProbeErrors(torch.zeros(4), torch.ones(4))) == 0


@all_phases
def test_a_perfect_student_has_no_gap_in_any_bin(make: Make) -> None:
    module = make().double()
    probe = probe_of(module)
    found = probe_errors(perfect(module), module, probe, 100)
    assert len(found.error) == 256
    assert max(gap_by(found, probe.t_bin, len(probe.t_bins))) < 1e-9
    assert max(gap_by(found, probe.w_bin, len(probe.w_bins))) < 1e-9


def test_a_student_that_is_wrong_in_one_bin_of_t_shows_there_only() -> None:
    module = guidance()
    probe = probe_of(module)
    assert [(bin.low, bin.high) for bin in probe.t_bins][3] == (0.375, 0.5)
    found = probe_errors(spoilt(perfect(module), lambda t, w: (t >= 0.375) & (t < 0.5)), module, probe, 256)
    by_t = gap_by(found, probe.t_bin, 8)
    assert by_t.pop(3) == pytest.approx(0.5 / float(found.target.mean().sqrt()))
    assert max(by_t) < 1e-9
    assert min(gap_by(found, probe.w_bin, 4)) > 0.1  # it is in every bin of w


def test_a_student_that_is_wrong_in_one_bin_of_w_shows_there_only() -> None:
    module = rung(4)
    probe = probe_of(module)
    assert [(bin.low, bin.high) for bin in probe.w_bins] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    found = probe_errors(spoilt(perfect(module), lambda t, w: w > 3), module, probe, 256)
    by_w = gap_by(found, probe.w_bin, 4)
    assert by_w.pop() > 0.1
    assert max(by_w) < 1e-9
    assert [bin.low for bin in probe.t_bins] == [bin.high for bin in probe.t_bins] == [0.25, 0.5, 0.75, 1]
    assert min(gap_by(found, probe.t_bin, 4)) > 0.1


def test_the_probe_is_even_over_t_w_and_both_branches_and_always_the_same() -> None:
    for make in [*PHASES.values(), *WITHOUT_TEACHER.values()]:
        module = make().double()
        probe, again = probe_of(module), probe_of(module)
        assert torch.equal(probe.t, again.t)
        assert torch.equal(probe.eps, again.eps)
        cells = probe.t_bin * max(1, len(probe.w_bins)) + probe.w_bin
        counts = cells.bincount()
        assert int(counts.max()) - int(counts.min()) <= 1
        for number, bin in enumerate(probe.t_bins):
            inside = probe.t[probe.t_bin == number]
            assert bin.low <= float(inside.min())
            assert float(inside.max()) <= bin.high
        times = module.method.times(module.phase)
        if times is not None:
            assert set(probe.t.tolist()) == set(times.tolist())
        assert torch.equal(probe.label == 3, probe.unconditional)
        branches = module.phase.sampling.guidance == "two_evaluations"
        assert int(probe.unconditional.sum()) == (128 if branches else 0)
        assert (probe.w is None) == (module.nets.guidance is None)


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


def test_a_method_without_a_target_has_neither_gap_nor_step_errors() -> None:
    module = dmd2(gan_weight=1.0).double()
    assert probe_errors(module.nets.model, module, probe_of(module), 100) is None
    paths = paths_of(module)
    path = paths.follow(module.nets.model, module.phase.sampling)
    assert len(path.steps) == 4
    assert paths.step_errors(path) == []


# Steps --------------------------------------------------------------------------------------------------------------


@all_phases
def test_a_perfect_student_makes_no_error_in_any_step(make: Make) -> None:
    module = make().double()
    paths, sampling = paths_of(module, 20), module.phase.sampling
    errors = paths.step_errors(paths.follow(perfect(module), sampling))
    times = [t for t, _ in errors]
    assert len(times) == min(16, len(sampling.times or range(16)))
    trained = module.method.times(module.phase)
    assert trained is None or set(times) <= set(trained.tolist())
    assert times == sorted(times, reverse=sampling.direction == "decode")
    assert max(error for _, error in errors) < 1e-9


@pytest.mark.parametrize("make", WITHOUT_TEACHER.values(), ids=WITHOUT_TEACHER)
def test_without_a_teacher_there_is_no_target_on_a_students_own_path(make: Make) -> None:
    module = make()
    starts = starts_of(module)
    paths = paths_of(module, starts=replace(starts, z=starts.z.float()))
    assert paths.step_errors(paths.follow(module.nets.model, module.phase.sampling)) == []
    assert paths.teacher_samples() is None


def test_a_step_that_goes_wrong_is_named_and_those_after_it_are_judged_from_where_they_begin() -> None:
    module = rung(4)
    paths, student = paths_of(module), spoilt(perfect(module), lambda t, w: (t - 0.75).abs() < 1e-6)
    errors = dict(paths.step_errors(paths.follow(student, module.phase.sampling)))
    # v off by 1/2 moves z by sin(d) / 2 over an angle of d = pi / 8
    assert errors.pop(0.75) == pytest.approx(0.5 * float(torch.sin(torch.tensor(torch.pi / 8))), rel=1e-3)
    assert max(errors.values()) < 1e-9


@pytest.mark.parametrize(
    ("make", "angle"),
    [(lambda: rung(4, "stochastic"), torch.pi / 4), (consistency, torch.pi / 4), (lambda: encoder(4), torch.pi / 8)],
)
def test_a_step_is_judged_where_the_samplers_jump_lands(make: Make, angle: float) -> None:
    module = make().double()
    paths, student = paths_of(module), spoilt(perfect(module), lambda t, w: (t - 0.5).abs() < 1e-6)
    errors = dict(paths.step_errors(paths.follow(student, module.phase.sampling)))
    assert errors.pop(0.5) == pytest.approx(0.5 * float(torch.sin(torch.tensor(angle))), rel=1e-3)
    assert max(errors.values()) < 1e-9


def test_a_path_is_what_the_sampler_makes_however_many_rows_are_evaluated_at_once() -> None:
    for make in (lambda: rung(4), lambda: rung(4, "stochastic"), consistency):
        module = make().double()
        sampling, student = module.phase.sampling, perfect(module)
        ends = [paths_of(module, rows).follow(student, sampling).end for rows in (7, 64)]
        torch.testing.assert_close(ends[0], ends[1])
        starts = starts_of(module)
        straight = sample(
            student,
            starts.z,
            schedule=module.nets.schedule,
            times=sampling.grid(),
            label=starts.label,
            w=starts.w,
            sampler=SAMPLERS[sampling.sampler],
            fresh=paths_of(module).fresh(0, 60),
        )
        torch.testing.assert_close(ends[1], straight)


def test_a_perfect_rung_ends_where_its_teacher_does() -> None:
    for sampler in ("deterministic", "stochastic"):
        samples = paths_of(rung(4, sampler), 20).teacher_samples()
        assert samples is not None
        assert bool(torch.isfinite(samples).all())
    deterministic = rung(4)
    paths = paths_of(deterministic)
    end = paths.follow(perfect(deterministic), deterministic.phase.sampling).end
    torch.testing.assert_close(end, paths.teacher_samples(), rtol=0, atol=1e-3)  # up to sigma(0)
    assert paths_of(encoder(4)).teacher_samples() is None
    assert paths_of(teacher()).teacher_samples() is None


def test_a_teacher_is_sampled_in_its_own_steps() -> None:
    evaluated: list[float] = []

    def counting(z: torch.Tensor, log_snr: torch.Tensor, label: torch.Tensor, w: torch.Tensor | None):
        evaluated.append(float(log_snr[0]))
        return EXACT(z, log_snr, label, w)

    for make, num_steps in ((tract, 16), (lambda: rung(32), 32), (consistency, 16), (lambda: dmd2(), 16)):
        evaluated.clear()
        module = make().double()
        paths_of(replaced_teacher(module, counting)).teacher_samples()
        assert len(evaluated) == num_steps


def replaced_teacher(module: DistillationModule, teacher: Denoise) -> DistillationModule:
    module.nets = replace(module.nets, teacher=teacher)
    return module


def test_an_encoders_path_is_what_encode_makes_of_data() -> None:
    for num_steps in (4, 32):
        module = encoder(num_steps)
        starts = starts_of(module).at_data(DATA.batch(1))
        end = paths_of(module, 20, starts).follow(EXACT, module.phase.sampling).end
        straight = encode(
            EXACT,
            starts.z,
            schedule=module.nets.schedule,
            times=uniform_times(min(16, num_steps)),
            label=starts.label,
            w=starts.w,
        )
        torch.testing.assert_close(end, straight)


def test_long_grids_are_thinned_to_times_of_their_own() -> None:
    assert [largest_divisor(count, 16) for count in (1, 2, 8, 16, 32, 512, 25, 17)] == [1, 2, 8, 16, 16, 16, 5, 1]
    times, ends, last = path_grid(Sampling.uniform(32, guidance="input"))
    assert (times[:2].tolist(), float(last)) == ([1, 1 - 1 / 16], 0)
    assert ends[0] == 1 - 1 / 32  # a jump is one of the whole grid
    times, ends, last = path_grid(Sampling.uniform(4, sampler="stochastic"))
    assert (times.tolist(), ends.tolist(), float(last)) == ([1, 0.75, 0.5, 0.25], [0.5, 0.25, 0, 0], 0)
    times, ends, last = path_grid(Sampling(sampler="renoise", times=(1.0, 0.3)))
    assert (times.tolist(), ends.tolist(), float(last)) == ([1, 0.3], [0, 0], 0)
    times, ends, last = path_grid(Sampling.uniform(2, direction="encode"))
    assert (times.tolist(), ends.tolist(), float(last)) == ([0, 0.5], [0.5, 1], 1)
    assert len(path_grid(Sampling()).begin) == 16


def test_starts_are_even_over_classes_and_w() -> None:
    starts = starts_of(rung(4))
    assert starts.w is not None
    assert set(starts.w.tolist()) == {0.5, 1.5, 2.5, 3.5}
    assert set(starts.cell.bincount().tolist()) == {5}
    assert {(int(label), float(w)) for label, w in zip(starts.label, starts.w, strict=True)} == {
        (label, w) for label in range(3) for w in (0.5, 1.5, 2.5, 3.5)
    }
