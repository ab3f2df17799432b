"""What `fewstep play` draws: the samples of a model and of its teacher, from the same noise."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from PIL.Image import Image

from fewstep.artifacts.lineage import ancestors, models_in_folder
from fewstep.artifacts.model_file import ModelCard, load_model
from fewstep.artifacts.pictures import picture
from fewstep.artifacts.quality_file import TEACHER
from fewstep.diffusion.guidance import log_snr_interval
from fewstep.evaluation.images import evaluation_tensor
from fewstep.inference.model import Model, load
from fewstep.system.durations import duration


class Player:
    """A model, those that its run made for other step counts, and its teacher; `why_alone` says why there is none.

    Raises:
        ValueError: a file is no model, or the model is an encoder.
    """

    def __init__(self, path: Path, teacher: Path | None, autoencoder: Path | None, text_encoder: Path | None) -> None:
        def open_model(file: Path) -> Model:
            model = load(file, autoencoder=autoencoder, text_encoder=text_encoder)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            model.sample(["a"] if model.card.data.text else [0], w=model.default_w)  # the first call is slower
            return model

        self.open_model = cache(open_model)
        self.path, self.model, self.why_alone = path, self.open_model(path), ""
        self.by_steps = models_by_steps(path, self.model.card)
        try:
            self.teacher = self.open_model(teacher or teacher_of(path, self.model.card))
        except ValueError as error:
            if teacher:
                raise
            self.teacher, self.why_alone = None, f"No teacher is beside it: {error}. "
        else:  # guided at the times that the model was made for
            interval = log_snr_interval(self.model.card.schedule, self.model.card.guidance_interval)
            self.teacher = replace(self.teacher, guidance_interval=interval)

    def student(self, steps: int) -> Model:
        """The model that was made for so many steps, or else the model itself."""
        return self.open_model(self.by_steps.get(steps, self.path))


class Drawn(NamedTuple):
    """A picture of samples, how it was drawn as Markdown, and the seconds that sampling and decoding took."""

    picture: Image
    caption: str
    seconds: float


def draw(model: Model, w: float, steps: int, seed: int, num: int, wanted: int | str | None) -> Drawn:
    """Draw `num` samples of a class or prompt; None: of all classes in turn."""
    data, shown = model.card.data, model.card.data.pixels
    labels = model.condition([n % max(1, data.num_conditions) if wanted is None else wanted for n in range(num)])  # type: ignore
    start = perf_counter()
    x = model.sample(labels, steps=steps, w=w, seed=seed, batch_size=num)
    seconds = perf_counter() - start
    image = picture(evaluation_tensor(x, shown), labels, shown, min(shown.in_a_row, num))
    how = f"steps: {steps}, evaluations an image: {steps * model.evaluations_per_step}, w = {w:g}"
    return Drawn(image, f"{how}<br>images: {num}, **{duration(seconds)}**", seconds)


def teacher_of(path: Path, card: ModelCard) -> Path:
    """The file of the teacher that the model at `path` was made from.

    Raises:
        ValueError: there is none, or an ancestor is gone or was changed.
    """
    if card.label == TEACHER:
        raise ValueError("it is a teacher itself")
    for file in ancestors(path, card.parents[::-1]):
        if load_model(file)[1].label == TEACHER:
            return file
    raise ValueError("it was made without one, or from an exact one, which is no file")


def models_by_steps(path: Path, card: ModelCard) -> dict[int, Path]:
    """The files of a few-step student and of those that its run made for other step counts."""
    found = dict.fromkeys(card.sampling.steps, path)
    for other in models_in_folder(path.parent) if found else []:
        about = load_model(other)[1]
        if (about.method, about.data) == (card.method, card.data):
            found = dict.fromkeys(about.sampling.steps, other) | found
    return dict(sorted(found.items()))
