"""Ask and tell: Hydra's ranges are Optuna's, a killed search goes on with the trials that it had asked for."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fewstep.sweeps.objective import Objective
from fewstep.sweeps.search import Search, ask, chosen, opened_study, tell
from fewstep.sweeps.space import Dimension, space_of

pytest.importorskip("optuna")
from optuna.distributions import FloatDistribution, IntDistribution


def space(*overrides: str) -> dict[str, Dimension]:
    return space_of(OverridesParser.create().parse_overrides(list(overrides)))[1]


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("interval(0.0, 1.0)", FloatDistribution(0.0, 1.0)),
        ("int(interval(1, 8))", IntDistribution(1, 8)),
        ("range(1, 9, 2)", IntDistribution(1, 7, step=2)),
        ("choice(snr, truncated_snr)", ("snr", "truncated_snr")),
        ("a,b", ("a", "b")),
    ],
)
def test_hydras_sweep_syntax_says_what_is_searched(text: str, own: Dimension):
    assert space(f"x={text}") == {"x": own}


@pytest.mark.parametrize("text", ["interval(2, 1)", "tag(log, interval(0, 1))", "range(3, 3)"])
def test_a_range_that_holds_nothing_is_refused(text: str):
    with pytest.raises(ValueError, match="x="):
        space(f"x={text}")


def test_a_search_goes_on_where_it_was_and_finds_the_best(tmp_path: Path):
    own = space("x=interval(-2.0, 2.0)", "n=int(interval(1, 4))", "kind=choice(a, b)")
    search = Search(trials=24, at_once=2, seed=0)

    def figure(values: dict[str, str]) -> float:
        return (float(values["x"]) - 1) ** 2 + int(values["n"]) + (values["kind"] == "b")

    def values_of(trials: list) -> list[tuple[int, dict[str, str]]]:
        return [(trial.number, chosen(trial, own)) for trial in trials]

    first = values_of(ask(opened_study(tmp_path, Objective(), 0), own, search))  # and then it is killed
    tried = []
    while asked := ask(study := opened_study(tmp_path, Objective(), 0), own, search):
        tried += values_of(asked)
        for trial in asked:
            tell(study, trial, None if trial.number == 3 else figure(chosen(trial, own)))
    assert tried[:2] == first
    assert [number for number, _ in tried] == list(range(24))
    assert figure(chosen(study.best_trial, own)) == min(figure(values) for number, values in tried if number != 3)
    assert figure(chosen(study.best_trial, own)) < 2.5


def test_so_many_trials_are_at_least_one():
    with pytest.raises(ValueError, match="trials"):
        Search(trials=0, at_once=1, seed=0)
