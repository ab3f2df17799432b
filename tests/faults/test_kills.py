"""A short run of the fault harness; the long one is `python tests/faults/kill.py --kills 100`."""

import os

import kill
import pytest

pytestmark = pytest.mark.integration


def test_a_killed_experiment_ends_as_an_undisturbed_one(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored after `main` has set them
    figures = kill.main(kills=int(os.environ.get("FEWSTEP_KILLS", "8")), seed=7, out=None, wandb_every=1)
    assert figures["kills"] >= 1
    assert figures["differences"] == []
    assert figures["identical"] == figures["experiments"]
