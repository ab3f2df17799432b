"""Model files of format 1, which named roles where a card now says how a model is sampled and guided."""

from typing import Any

METHODS = {"teacher": "teacher", "guided": "guidance", "progressive": "progressive", "encoder": "encoder"}
SAMPLERS = ("deterministic", "stochastic")
MOST_STEPS = 100_000  # a file cannot make us allocate more


def from_format_1(description: dict[str, Any]) -> dict[str, Any]:
    """A description of format 1 in the words of format 2; the model is sampled as before.

    Raises:
        KeyError, TypeError, ValueError: it is none of format 1.
    """
    own = dict(description)
    role, steps, sampler = own.pop("role"), own.pop("num_steps"), own.pop("sampling", "deterministic")
    own["method"] = method_of(role)
    check_sampling(role, steps, sampler, takes_w=own["w_min"] is not None)
    own["native_schedule"] = own.pop("clock", None)
    own["parents"] = [{**parent, "method": method_of(parent["role"])} for parent in own["parents"]]
    for parent in own["parents"]:
        del parent["role"]
    own["sampling"] = {
        "sampler": sampler,
        "times": None if steps is None else [number / steps for number in range(steps, 0, -1)],
        "guidance": "two_evaluations" if own["w_min"] is None else "input",
        "direction": "encode" if role == "encoder" else "decode",
    }
    return own


def method_of(role: Any) -> str:
    """The method that made a model of that role; raises a ValueError for an unknown one."""
    if not isinstance(role, str) or role not in METHODS:
        raise ValueError(f"its role must be one of {', '.join(METHODS)}, got {role!r:.80}")
    return METHODS[role]


def check_sampling(role: str, steps: Any, sampler: Any, *, takes_w: bool) -> None:
    """Refuse steps or a sampler that format 1 does not have, and w for a role that has none or the other way round."""
    if not (steps is None or (type(steps) is int and 1 <= steps <= MOST_STEPS)):
        raise ValueError(f"its steps must be null or 1 to {MOST_STEPS}, got {steps!r:.80}")
    if sampler not in SAMPLERS:
        raise ValueError(f"its sampling must be {' or '.join(SAMPLERS)}, got {sampler!r:.80}")
    if takes_w and role == "teacher":
        raise ValueError("a teacher takes no w, and its w_min is not null")
    if not takes_w and role in ("guided", "encoder"):
        raise ValueError(f"a model of role {role} takes w, and its w_min is null")
