"""What `fewstep play` draws: a model's samples, and those of the teacher it was made from, with the time each took."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from PIL.Image import Image

from fewstep.artifacts.lineage import ancestors, models_in_folder
from fewstep.artifacts.model_file import ModelCard, load_model
from fewstep.artifacts.pictures import picture
from fewstep.diffusion.guidance import log_snr_interval
from fewstep.evaluation.images import evaluation_tensor
from fewstep.inference.model import Model, load, sample_batches
from fewstep.networks import Frozen


@dataclass(frozen=True)
class Request:
    """What to draw: `wanted` is a class, a prompt, or None for all classes in turn."""

    w: float
    steps: int
    seed: int
    num: int
    wanted: int | str | None


@dataclass(frozen=True)
class Drawn:
    """A picture of samples, the network evaluations of each, and the seconds that all took, decoding included."""

    picture: Image
    num: int
    steps: int
    evaluations: int
    seconds: float


class Player:
    """A model, those that its run made for other step counts, and its teacher.

    Args:
        path: of the model.
        teacher: to compare with; None looks for the one that the model's card names. Without one, `why_alone` says why.
        autoencoder, text_encoder: see `fewstep.load`.

    Raises:
        ValueError: a file is no model; or the model is an encoder.
    """

    def __init__(
        self,
        path: Path,
        teacher: Path | None = None,
        *,
        autoencoder: Path | None = None,
        text_encoder: Path | None = None,
    ) -> None:
        self.path = path
        self._companions = autoencoder, text_encoder
        self._models: dict[Path, Model] = {}
        self.model = self._open(path)
        self.by_steps = models_by_steps(path, self.model.card)
        self.why_alone = ""
        self.teacher = self._open(teacher) if teacher else self._find_teacher()

    def draw(self, request: Request) -> tuple[Drawn, Drawn | None]:
        """The pictures of the model and, where there is one, of its teacher, from the same noise."""
        return self.draw_model(request), self.draw_teacher(request)

    def draw_model(self, request: Request) -> Drawn:
        """The picture of the model that was made for so many steps, or else of the model itself."""
        return draw(self._open(self.by_steps.get(request.steps, self.path)), request, request.steps)

    def draw_teacher(self, request: Request) -> Drawn | None:
        """The picture of the teacher in its own number of steps, guided at the times that the model was made for."""
        if self.teacher is None:
            return None
        interval = log_snr_interval(self.model.card.schedule, self.model.card.guidance_interval)
        return draw(self.teacher, request, self.teacher.default_steps, interval)

    def _open(self, path: Path) -> Model:
        """The model at `path`, on the GPU if there is one, after a first call, which is slower than others."""
        if path not in self._models:
            autoencoder, text_encoder = self._companions
            model = load(path, autoencoder=autoencoder, text_encoder=text_encoder)
            if model.card.encodes:
                raise ValueError("this model is an encoder, which takes data to noise: play with the student it is of")
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            draw(model, Request(model.default_w, 1, 0, 1, "a" if model.card.data.text else 0), 1)
            self._models[path] = model
        return self._models[path]

    def _find_teacher(self) -> Model | None:
        if is_teacher(self.model.card):
            self.why_alone = "It is a teacher itself."
            return None
        self.why_alone = "It was distilled from an exact teacher, which is no file."
        for parent in reversed(self.model.card.parents):
            try:
                (file,) = ancestors(self.path, (parent,))
                if is_teacher(load_model(file)[1]):
                    self.why_alone = ""
                    return self._open(file)
            except ValueError as error:
                self.why_alone = f"Its teacher cannot be shown: {error}."
        return None


def is_teacher(card: ModelCard) -> bool:
    """Whether a model is guided by two evaluations, in any number of steps."""
    return card.sampling.guidance == "two_evaluations" and card.sampling.times is None


def models_by_steps(path: Path, card: ModelCard) -> dict[int, Path]:
    """The files of a few-step student and of those that its run made for other step counts."""
    found = dict.fromkeys(card.sampling.steps, path)
    for other in models_in_folder(path.parent) if found else []:
        about = load_model(other)[1]
        if (about.method, about.data, about.encodes) == (card.method, card.data, card.encodes):
            found |= {steps: other for steps in about.sampling.steps if steps not in found}
    return dict(sorted(found.items()))


def draw(model: Model, request: Request, steps: int, interval: tuple[float, float] | None = None) -> Drawn:
    """Sample a picture and take the time.

    Args:
        interval: log-SNR between which a teacher is guided; None: everywhere.

    Raises:
        ValueError: no such class, or samples that are not finite.
    """
    card, facts, num = model.card, model.card.data.pixels, request.num
    each = [n % max(1, card.data.num_classes) if request.wanted is None else request.wanted for n in range(num)]
    labels = model.condition(each)  # pyright: ignore[reportArgumentType]
    start = perf_counter()
    batches = sample_batches(
        card.sampling.guided(Frozen(model.denoiser), model.denoiser.null, interval),
        card,
        labels,
        times=card.sampling.grid(steps),
        w=request.w,
        seed=request.seed,
        batch_size=num,
        sampler=card.sampling.sampler,
        device=next(model.denoiser.parameters()).device,
    )
    x = torch.cat([model.decode(batch).cpu() for batch in batches])
    seconds = perf_counter() - start
    classes = torch.zeros(num).long() if labels.is_floating_point() else labels
    shown = picture(evaluation_tensor(x, facts), classes, facts, min(facts.in_a_row, num))
    return Drawn(shown, num, steps, steps * model.evaluations_per_step, seconds)
