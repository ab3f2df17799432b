"""The fault harness, briefly: `python tests/faults/kill.py --kills 100` is the long form."""

import os

import kill
import pytest

pytestmark = pytest.mark.integration


def test_an_experiment_that_is_killed_again_and_again_ends_as_one_that_was_left_alone(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back after what `main` sets
    figures = kill.main(kills=int(os.environ.get("FEWSTEP_KILLS", "8")), seed=7, out=None, wandb_every=1)
    assert figures["kills"] >= 1
    assert figures["differences"] == []
    assert figures["identical"] == figures["experiments"]
