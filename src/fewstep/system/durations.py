"""Durations for tables and pages."""


def duration(seconds: float) -> str:
    """A duration in a unit of its size: "8.4 ms", "35 s", "7 min 20 s", "3 h 5 min", "12 days"."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours / 24:,.0f} days"
