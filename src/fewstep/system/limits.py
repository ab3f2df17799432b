"""Numbers that are no request but a slip of the finger. Imports little, so that a command line is checked at once."""

from numbers import Integral, Real

MOST_SEED = 2**63 - 1
MOST_IMAGES = 10_000_000  # of one command: two hundred times what published figures take
MOST_SIDE = 4096  # pixels of a square image, of 50 MB then
MOST_SHOWN = 10_000  # in one picture
MOST_STEPS = 100_000  # a hundred times any teacher's
MOST_W = 1e4  # hundreds of times any published; far above it float32 overflows, and a sound model seems to diverge


def require_seed(seed: int, name: str = "seed") -> int:
    """The seed, a whole number of 0..MOST_SEED.

    Raises:
        ValueError: it is another.
    """
    if not (isinstance(seed, Integral) and 0 <= seed <= MOST_SEED):
        raise ValueError(f"{name} must be a whole number from 0 to {MOST_SEED}, got {seed!r}")
    return seed


def require_count(count: int, name: str, *, least: int = 1, most: int = MOST_IMAGES) -> int:
    """The count, a whole number of least..most.

    Raises:
        ValueError: it is another.
    """
    if not (isinstance(count, Integral) and least <= count <= most):
        raise ValueError(f"{name} must be at least {least} and at most {most:,}, a whole number, got {count!r}")
    return count


def require_request(steps: int, w: float, name: str = "steps") -> None:
    """Refuse steps or a guidance weight that no model can follow.

    Raises:
        ValueError: fewer than one step or more than MOST_STEPS; w negative, above MOST_W, or no number.
    """
    require_count(steps, name, most=MOST_STEPS)
    require_weight(w)


def require_weight(w: float, name: str = "w") -> None:
    """Refuse a guidance weight that no model can follow.

    Raises:
        ValueError: it is negative, above MOST_W, or no number.
    """
    if not (isinstance(w, Real) and 0 <= w <= MOST_W):
        raise ValueError(
            f"{name} must be finite and at least 0 (0 is no guidance; diffusers' scale is 1 + w) and at most "
            f"{MOST_W:g}, got {w!r}"
        )
