"""cycle.json of a run of encoders: how well each few-step encoder's code decodes, beside many steps."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.artifacts.lineage import ancestors, find_newest
from fewstep.evaluation.cycle import Coder, cycle_rows
from fewstep.inference.model import DEFAULT_TEACHER_STEPS, Model, load
from fewstep.runs.build import Setup
from fewstep.runs.evaluate import write_json

CYCLE = "cycle.json"
MOST_IMAGES = 1000


def write_cycle(path: Path, rungs: Sequence[Path], setup: Setup) -> None:
    """Judge the encoders at `rungs` on held-out data and their own condition, at their smallest w.

    Each is decoded by the guided student in 64 steps, and by the newest deterministic student of as many steps as the
    encoder, of the same guided parent, where there is one. The reference encodes and decodes with the guided student in
    64 steps.
    """
    encoders = [load(rung) for rung in rungs]
    card = encoders[0].card
    parent = next(p for p in ancestors(rungs[0], card) if load(p).card.role == "guided")
    many = Coder("guided", load(parent).denoise, DEFAULT_TEACHER_STEPS)
    sha256 = next(p.sha256 for p in card.parents if p.role == "guided")
    pairs = [(many, many)]
    for encoder in encoders:
        steps = encoder.default_steps
        own = Coder("encoder", encoder.denoise, steps)
        pairs.append((own, many))
        if (decoder := decoder_of(setup, sha256, steps)) is not None:
            pairs.append((own, Coder("progressive", decoder.denoise, steps)))
    x, label = setup.examples(min(MOST_IMAGES, setup.settings.max_images or MOST_IMAGES))
    assert card.w_min is not None, "an encoder has a w input"
    clip = (card.data.low, card.data.high)
    rows = cycle_rows(pairs, x, label, card.w_min, schedule=card.schedule, clip=clip)
    write_json(path, [row.as_dict() for row in rows])


def decoder_of(setup: Setup, guided: str, steps: int) -> Model | None:
    """The newest deterministic student of that many steps whose guided ancestor has that hash."""

    def reason(model: Model) -> str | None:
        card = model.card
        from_it = guided in [parent.sha256 for parent in card.parents]
        wanted = (card.num_steps, card.sampling) == (steps, "deterministic")
        return None if from_it and wanted else "another chain or number of steps"

    try:
        return load(find_newest(Path(setup.config.outputs), setup.facts.name, "progressive", reason))
    except ValueError:  # there is none
        return None
