"""Numbers that are no request but a slip of the finger. Imports nothing, so that a command line is checked at once."""

MOST_SEED = 2**63 - 1
MOST_IMAGES = 10_000_000  # of one command: two hundred times what published figures take
MOST_SHOWN = 10_000  # in one picture


def require_seed(seed: int, name: str = "seed") -> int:
    """The seed, a whole number of 0..MOST_SEED.

    Raises:
        ValueError: it is another.
    """
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"{name} must be a whole number from 0 to {MOST_SEED}, got {seed}")
    return seed


def require_count(count: int, name: str, *, least: int = 1, most: int = MOST_IMAGES) -> int:
    """The number of images, of least..most.

    Raises:
        ValueError: it is another.
    """
    if not least <= count <= most:
        raise ValueError(f"{name} must be at least {least} and at most {most:,}, got {count}")
    return count
