"""Model files of format 1, which named roles where a card now says how a model is sampled and guided."""

from typing import Any

METHODS = {"teacher": "teacher", "guided": "guidance", "progressive": "progressive", "encoder": "encoder"}


def from_format_1(description: dict[str, Any]) -> dict[str, Any]:
    """A description of format 1 in the words of format 2; the model is sampled as before.

    Raises:
        KeyError, ValueError: it is none of format 1.
    """
    own = dict(description)
    role, steps, sampler = own.pop("role"), own.pop("num_steps"), own.pop("sampling", "deterministic")
    if sampler not in ("deterministic", "stochastic") or not (steps is None or (type(steps) is int and steps >= 1)):
        raise ValueError(f"its steps must be at least 1 and its sampler deterministic or stochastic, got {steps}")
    own["method"] = METHODS[role]
    own["native_schedule"] = own.pop("clock", None)
    own["parents"] = [{**parent, "method": METHODS[parent["role"]]} for parent in own["parents"]]
    for parent in own["parents"]:
        del parent["role"]
    own["sampling"] = {
        "sampler": sampler,
        "times": None if steps is None else [number / steps for number in range(steps, 0, -1)],
        "guidance": "two_evaluations" if own["w_min"] is None else "input",
        "direction": "encode" if role == "encoder" else "decode",
    }
    return own
