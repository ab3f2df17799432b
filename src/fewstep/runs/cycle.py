"""cycle.json of a run of encoders: how well each few-step encoder's code decodes, beside many steps."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fewstep.artifacts.lineage import ancestors, models_in_folder, run_folders
from fewstep.artifacts.model_file import load_model
from fewstep.evaluation.cycle import Coder, cycle_rows
from fewstep.inference.model import DEFAULT_TEACHER_STEPS, Model, load
from fewstep.runs.config import Settings
from fewstep.system.files import write_json

CYCLE = "cycle.json"


def write_cycle(path: Path, encoders: Sequence[Path], settings: Settings, examples: tuple[Tensor, Tensor]) -> None:
    """Judge encoders on held-out data and their own condition, at their smallest w.

    Each is decoded by the guided student in 64 steps, and by the newest deterministic student of as many steps as the
    encoder, of the same guided parent, where there is one. The reference encodes and decodes with the guided student in
    64 steps.
    """
    models = [load(encoder) for encoder in encoders]
    card = models[0].card
    parents = {p: load_model(p)[1] for p in ancestors(encoders[0], card.parents)}
    guided = next(p for p, own in parents.items() if own.sampling.times is None and own.sampling.guidance == "input")
    sha256 = next(each.sha256 for each, file in zip(card.parents, parents, strict=True) if file == guided)
    many = Coder("guided", load(guided).denoise, DEFAULT_TEACHER_STEPS)
    pairs = [(many, many)]
    for encoder in models:
        own = Coder("encoder", encoder.denoise, encoder.default_steps)
        pairs.append((own, many))
        if (decoder := decoder_of(settings, sha256, own.steps)) is not None:
            pairs.append((own, Coder(decoder.card.label, decoder.denoise, own.steps)))
    x, label = examples
    assert card.w_min is not None, "an encoder has a w input"
    clip = (card.data.low, card.data.high)
    rows = cycle_rows(pairs, x, label, card.w_min, schedule=card.schedule, clip=clip)
    write_json(path, [row.as_dict() for row in rows])


def decoder_of(settings: Settings, guided: str, steps: int) -> Model | None:
    """The newest deterministic student of that many steps whose guided ancestor has that hash."""
    for folder in run_folders(settings.outputs, settings.dataset_name):
        for path in models_in_folder(folder):
            card = load_model(path)[1]
            own = card.sampling
            fits = own.sampler == "deterministic" and own.direction == "decode" and card.num_steps == steps
            if fits and guided in [parent.sha256 for parent in card.parents]:
                return load(path)
    return None
