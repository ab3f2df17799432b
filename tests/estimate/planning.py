"""Plans of small experiments, whole or without what takes time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from running import TINY, config_of

from fewstep.estimate import plan
from fewstep.estimate.phases import build_module, fresh_parent
from fewstep.estimate.table import Estimate
from fewstep.estimate.trial import Trial
from fewstep.methods.training import Training
from fewstep.runs.build import build_evaluator, phase_training
from fewstep.runs.config import Settings
from fewstep.runs.parent import method_of
from fewstep.runs.train import Job
from fewstep.training.module import DistillationModule

UPDATE, EVALUATION = 0.5, 0.01  # seconds


def planned(folder: Path, *settings: str) -> Estimate:
    """The estimate of these settings."""
    config = config_of(*TINY, *settings, f"outputs={folder / 'outputs'}")
    return plan.Planner(Settings.read(config), folder).estimate()


@pytest.fixture
def untimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Estimate]:
    """Settings -> their estimate, where every update takes UPDATE seconds and every evaluation EVALUATION."""
    monkeypatch.setattr(plan, "try_phase", lambda *_: Trial("measured", UPDATE, EVALUATION, 5000, 0))
    monkeypatch.setattr(plan, "seconds_per_evaluation", lambda *_: EVALUATION)
    monkeypatch.setattr(plan, "seconds_per_judged_image", lambda *_: 0.0)
    return partial(planned, tmp_path)


def first_phase(*settings: str) -> tuple[Job, Callable[[], DistillationModule], Training]:
    """The first phase of a stage, its parent a fresh network: its job, what builds its module, and its budget."""
    read = Settings.read(config_of(*settings))
    method, evaluator = method_of(read), build_evaluator(read)
    job = Job(read, method, evaluator.data, evaluator, evaluator.facts, Path())
    phase, wanted = method.phases()[0], method.parent()
    parent = wanted and fresh_parent(read, evaluator.facts, wanted)
    training = phase_training(method.training, phase, read.trainer)
    build: Any = partial(build_module, job, phase, parent, training, is_first=True)
    return job, build, training
