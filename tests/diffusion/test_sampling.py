from typing import Any

import pytest
import torch

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import uniform_times

TIMES = (1.0, 0.9, 0.6, 0.5, 0.2, 0.1)


def test_a_model_without_times_takes_any_number_of_uniform_steps() -> None:
    sampling = Sampling()
    assert sampling.steps == ()
    assert sampling.is_made_for(1)
    assert sampling.is_made_for(37)
    assert torch.equal(sampling.grid(37), uniform_times(37))
    with pytest.raises(ValueError, match="needs a number of steps"):
        sampling.grid()
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        sampling.grid(0)


@pytest.mark.parametrize("sampler", ["deterministic", "stochastic", "ancestral"])
def test_a_model_with_times_has_one_number_of_steps(sampler: str) -> None:
    sampling = Sampling(sampler=sampler, times=TIMES)
    assert sampling.steps == (6,)
    assert [n for n in range(10) if sampling.is_made_for(n)] == [6]
    assert tuple(sampling.grid().tolist()) == tuple(sampling.grid(6).tolist()) == TIMES
    assert torch.equal(sampling.grid(3), uniform_times(3))


def test_with_renoising_every_divisor_is_a_number_of_steps() -> None:
    sampling = Sampling(sampler="renoise", times=TIMES)
    assert sampling.steps == (1, 2, 3, 6)
    expected = {1: (1.0,), 2: (1.0, 0.5), 3: (1.0, 0.6, 0.2), 6: TIMES}
    assert {n: tuple(sampling.grid(n).tolist()) for n in sampling.steps} == expected
    assert tuple(sampling.grid().tolist()) == TIMES
    assert not sampling.is_made_for(4)
    assert torch.equal(sampling.grid(4), uniform_times(4))


@pytest.mark.parametrize("num_steps", [1, 3, 4, 8, 49])
def test_uniform_times_round_trip(num_steps: int) -> None:
    sampling = Sampling.uniform(num_steps, guidance="input", direction="encode")
    assert sampling == Sampling(times=tuple(uniform_times(num_steps).tolist()), guidance="input", direction="encode")
    assert torch.equal(sampling.grid(), uniform_times(num_steps))
    assert sampling.grid().dtype == torch.float64
    renoised = Sampling.uniform(12, sampler="renoise")
    for fewer in renoised.steps:
        torch.testing.assert_close(renoised.grid(fewer), uniform_times(fewer), rtol=0, atol=1e-15)


def test_two_evaluations_are_guided_and_one_is_not() -> None:
    one, half = torch.ones(2, 1), torch.full((2,), 0.5)
    denoise = GaussianMixture(one, one, half, torch.arange(2)).denoise
    guided = Sampling().guided(denoise, 2, interval=(-1.0, 1.0))
    assert isinstance(guided, Guided)
    assert (guided.denoise, guided.null, guided.interval) == (denoise, 2, (-1.0, 1.0))
    assert Sampling().evaluations == 2
    for guidance in ("input", "none"):
        sampling = Sampling(guidance=guidance)
        assert sampling.guided(denoise, 2) is denoise
        assert sampling.evaluations == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sampler": "euler"},
            "must be one of deterministic, stochastic, ancestral, renoise, flow_map, restore, policy, got 'euler'",
        ),
        ({"guidance": "cfg"}, "guidance must be one of two_evaluations, three_evaluations, input, none, got 'cfg'"),
        ({"direction": "up"}, "direction must be one of decode, encode, got 'up'"),
        ({"direction": "encode", "sampler": "renoise"}, "an encoder must have the deterministic sampler"),
        ({"times": ()}, "at least one of them"),
        ({"times": (0.5, 1.0)}, "strictly decrease, got 1 after 0.5"),
        ({"times": (1.0, 0.0)}, "must lie in"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_no_model_can_say_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Sampling(**arguments)
    assert "\n" not in str(refused.value)
