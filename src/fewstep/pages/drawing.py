"""What the page of `fewstep play` draws: a chain's students by their steps, and the teacher they come from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from time import perf_counter

import torch
from PIL import Image

from fewstep.artifacts.lineage import ancestors, models_in_folder
from fewstep.artifacts.model_file import load_model
from fewstep.diffusion.guidance import Guided, log_snr_interval
from fewstep.diffusion.prediction import Denoise
from fewstep.evaluation.images import evaluation_tensor
from fewstep.inference.model import DEFAULT_TEACHER_STEPS, Model, sample_batches
from fewstep.reports.pictures import picture

MOST_STEPS = 16  # of a slider, where no rung has more
TEACHERS_MOST_W = 8.0  # of a slider, for models that were not made for a range of w


class Superseded(Exception):
    """What was being drawn is not wanted any more."""


@dataclass(frozen=True)
class Asked:
    """One setting of the page: `wanted` is a class, a prompt, or None for all classes in turn."""

    w: float
    steps: int
    seed: int
    wanted: int | str | None
    num: int


@dataclass(frozen=True)
class Drawn:
    """A picture of samples, how it was made, and the seconds that took, decoding included."""

    picture: Image.Image
    steps: int
    evaluations: int
    w: float
    seed: int
    num: int
    seconds: float
    made_for: int | None

    @property
    def milliseconds(self) -> float:
        """Per image."""
        return 1000 * self.seconds / self.num


class Chain:
    """A model, the rungs of other steps that lie beside it, and its teacher.

    One picture is made at a time, whoever asks, so that times are those of a machine that does nothing else.

    Args:
        path: of the model. autoencoder, text_encoder: see `fewstep.load`.

    Raises:
        ValueError: see `load_model`; or the model is an encoder, which makes no samples.
    """

    def __init__(self, path: Path, *, autoencoder: Path | None = None, text_encoder: Path | None = None) -> None:
        self.path = path
        self._companions = (autoencoder, text_encoder)
        self.model = self._opened(path)
        card = self.card = self.model.card
        if card.role == "encoder":
            raise ValueError("this model is an encoder, which takes data to noise: play with the student it is of")
        self._rungs = {card.num_steps: path} if card.num_steps else {}
        for other in models_in_folder(path.parent) if card.num_steps else []:
            about = load_model(other)[1]
            if about.num_steps and replace(about, parents=(), num_steps=None, images=0) == replace(
                card, parents=(), num_steps=None, images=0
            ):
                self._rungs.setdefault(about.num_steps, other)
        self._models = {path: self.model}
        self.teacher, self.why_alone = self._teacher()
        self._lock = Lock()
        self._warm: set[int] = set()

    @property
    def steps(self) -> list[int]:
        """The steps to choose from: powers of two, and those that a rung was made for."""
        most = max([MOST_STEPS, *self._rungs] if self.card.num_steps else [DEFAULT_TEACHER_STEPS])
        return sorted({2**n for n in range(most.bit_length()) if 2**n <= most} | set(self._rungs))

    @property
    def w_range(self) -> tuple[float, float]:
        """Of the slider."""
        low, high = self.card.w_min, self.card.w_max
        return (0.0, TEACHERS_MOST_W) if low is None or high is None else (low, high)

    @property
    def num(self) -> int:
        """Images to draw: six rows of tiny ones, two of others; and of points enough to see a shape."""
        facts = self.card.data.pixels
        return facts.in_a_row * (6 if max(facts.shape) <= 16 else 2) if facts.is_image else 500

    def student(self, steps: int) -> Model:
        """The rung that was made for so many steps, or else the model itself."""
        path = self._rungs.get(steps, self.path)
        with self._lock:
            if path not in self._models:
                self._models[path] = self._opened(path)
        return self._models[path]

    def draw_student(self, asked: Asked) -> Drawn:
        """The student's picture.

        Raises:
            ValueError: see `Model.condition`; or the samples are not finite.
        """
        model = self.student(asked.steps)
        return self._draw(model, model.denoise, asked, asked.steps, lambda: False)

    def draw_teacher(self, asked: Asked, stop: Callable[[], bool]) -> Drawn:
        """The teacher's picture from the same noise, guided at the times that its student was made for.

        Raises:
            Superseded: `stop` said so, before some evaluation.
            ValueError: as for `draw_student`.
        """
        assert self.teacher is not None
        denoise = self.teacher.denoise
        if isinstance(denoise, Guided):
            between = log_snr_interval(self.card.schedule, self.card.guidance_interval)
            denoise = Guided(denoise.denoise, denoise.null, between)
        return self._draw(self.teacher, denoise, asked, DEFAULT_TEACHER_STEPS, stop)

    def _draw(self, model: Model, denoise: Denoise, asked: Asked, steps: int, stop: Callable[[], bool]) -> Drawn:
        facts = self.card.data
        every = [asked.wanted if asked.wanted is not None else n % facts.num_classes for n in range(asked.num)]
        labels = model.condition(every)  # pyright: ignore[reportArgumentType]
        device = next(model.denoiser.parameters()).device

        def denoise_unless(z: torch.Tensor, log_snr: torch.Tensor, label: torch.Tensor, w: torch.Tensor | None):
            if stop():
                raise Superseded
            return denoise(z, log_snr, label, w)

        def images(steps: int, num: int) -> torch.Tensor:
            batches = sample_batches(
                denoise_unless,
                model.card,
                labels[:num],
                steps=steps,
                w=asked.w,
                seed=asked.seed,
                batch_size=num,
                sampler=model.card.sampling,
                device=device,
            )
            return torch.cat([model.decode(batch).cpu() for batch in batches])

        with self._lock:
            if id(model) not in self._warm:
                images(1, asked.num)  # the first call of a network is slower than all others
                self._warm.add(id(model))
            start = perf_counter()
            x = images(steps, asked.num)
            seconds = perf_counter() - start
        classes = torch.zeros(asked.num).long() if labels.is_floating_point() else labels
        shown = picture(evaluation_tensor(x, facts.pixels), classes, facts.pixels, facts.in_a_row)
        evaluations = steps * model.evaluations_per_step
        return Drawn(shown, steps, evaluations, asked.w, asked.seed, asked.num, seconds, model.card.num_steps)

    def _opened(self, path: Path) -> Model:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Model(*load_model(path), *self._companions).to(device)

    def _teacher(self) -> tuple[Model | None, str]:
        """The teacher, or why there is none to show."""
        if self.card.role == "teacher":
            return None, "this model is a teacher itself"
        if not (parents := [parent for parent in self.card.parents if parent.role == "teacher"]):
            return None, "it was distilled from an exact teacher, which is no file"
        try:
            (path,) = ancestors(self.path, replace(self.card, parents=(parents[-1],)))
            return self._opened(path), ""
        except ValueError as error:
            return None, str(error)
