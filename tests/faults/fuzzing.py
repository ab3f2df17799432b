"""How much is tried at random: always the same by default, FEWSTEP_FUZZ=5000 tries as many, anew each time."""

import os

from hypothesis import HealthCheck, settings


def fuzz(examples: int) -> settings:
    """Hypothesis with so many examples by default."""
    wanted = int(os.environ.get("FEWSTEP_FUZZ", examples))
    return settings(
        max_examples=wanted,
        deadline=None,
        derandomize=wanted == examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
