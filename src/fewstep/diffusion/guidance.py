"""Classifier-free guidance, the paper's convention: w = 0 is no guidance; diffusers' and Imagen's scale is 1 + w."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise, Prediction, Weights
from fewstep.diffusion.schedule import Batch, Images, Schedule, expand
from fewstep.diffusion.styles import Styles

Weight = float | tuple[float, float]
"""A guidance weight that several examples share; or two, where class and style have their own."""


def shared_weight(w: Weight, count: int, device: torch.device | str = "cpu") -> Weights:
    """That weight for each of `count` examples, float32."""
    values = torch.tensor(w, dtype=torch.float32, device=device)
    return values.expand(count, *values.shape)


def weight_in_words(w: Weight) -> str:
    """w = 1, or w = 1 and w2 = 2."""
    return "w = {:g} and w2 = {:g}".format(*w) if isinstance(w, tuple) else f"w = {w:g}"


def guide(*, conditional: Images, unconditional: Images, w: Float[Tensor, "batch"]) -> Images:
    """(1 + w) conditional - w unconditional (Meng et al. 2023, section 3.1), alike in x, eps and v."""
    return conditional + expand(w, conditional) * (conditional - unconditional)


def steer(*, neutral: Images, towards: Images, away: Images, amount: Float[Tensor, "batch"]) -> Images:
    """neutral + amount (towards - away): the target of a concept slider, alike in x, eps and v at one z.

    (Gandikota et al. 2023, 2311.12092, whose amount is eta at strength 1 and -eta at strength -1.) Where `neutral` is
    `away`, an amount of 1 gives `towards`, and 1 + w is `guide` with `away` as the unconditional branch.
    """
    return neutral + expand(amount, neutral) * (towards - away)


def guide_twice(*, paired: Images, conditional: Images, unconditional: Images, w: Weights) -> Images:
    """D_0 + (1 + w1) (D_c - D_0) + (1 + w2) (D_cs - D_c), alike in x, eps and v: each condition with its own weight.

    D_cs is predicted for a class and a style, D_c for the class alone, D_0 for neither (multi-condition guidance, as
    in FADA, whose scales are 1 + w). Without guidance, w1 = w2 = 0, it is D_cs; w1 = w2 = w is `guide` of D_cs and D_0.
    """
    w1, w2 = weights_of_both(w)
    return paired + expand(w1, paired) * (conditional - unconditional) + expand(w2, paired) * (paired - conditional)


def weights_of_both(w: Weights) -> tuple[Batch, Batch]:
    """w1 and w2 of each example; one weight stands for both."""
    if w.ndim == 1:
        return w, w
    w1, w2 = w.unbind(1)
    return w1, w2


def nulls(label: Condition, null: int | Tensor) -> Condition:
    """`null` in the place of every condition of `label`."""
    return null.to(label).expand_as(label) if isinstance(null, Tensor) else torch.full_like(label, null)


def nulls_but(kept: Bool[Tensor, "batch"], label: Condition, null: int | Tensor) -> Condition:
    """The conditions of the examples that are `kept`, and `null` in the place of the others'."""
    return label.where(kept.reshape(-1, *[1] * (label.ndim - 1)), nulls(label, null))


def log_snr_interval(schedule: Schedule, times: Sequence[float] | None) -> tuple[float, float] | None:
    """The interval of `Guided`, of one in time: guidance at low <= t <= high alone.

    Raises:
        ValueError: not two times with 0 <= low < high <= 1.
    """
    if times is None:
        return None
    if len(times) != 2 or not 0 <= times[0] < times[1] <= 1:
        raise ValueError(
            "stage.guidance_interval must be null or two times [low, high] with 0 <= low < high <= 1, got "
            f"{list(times)}"
        )
    highest, lowest = schedule.log_snr(torch.tensor(times, dtype=torch.float64)).tolist()
    return lowest, highest


class Guided:
    """A Denoise made of one without w input: both branches in one call on a doubled batch, then `guide`.

    Args:
        null: what means "no condition": a label, the embedding (tokens, features) of the empty prompt, or an image.
        interval: (lowest, highest) log-SNR at which there is guidance; outside w is 0 (Kynkaanniemi et al. 2024).
    """

    evaluations = 2  # network evaluations per call and image

    def __init__(self, denoise: Denoise, null: int | Tensor, interval: tuple[float, float] | None = None) -> None:
        self.denoise = denoise
        self.null = null
        self.interval = interval

    def __call__(self, z: Images, log_snr: Batch, label: Condition, w: Weights | None) -> Prediction:
        assert w is not None, "a guided denoiser needs w"
        if self.interval is not None:
            inside = (log_snr >= self.interval[0]) & (log_snr <= self.interval[1])
            w = w * inside.reshape(-1, *[1] * (w.ndim - 1))
        conditions, number = self.conditions(label), self.evaluations
        found = self.denoise(torch.cat([z] * number), log_snr.repeat(number), torch.cat(conditions), None)
        return Prediction(z=z, v=self.combine(*found.v.chunk(number), w=w), log_snr=log_snr)

    def conditions(self, label: Condition) -> tuple[Condition, ...]:
        """The conditions of each evaluation, the one that is asked for first."""
        return label, nulls(label, self.null)

    def combine(self, *found: Images, w: Weights) -> Images:
        """What is predicted of the evaluations' outputs."""
        conditional, unconditional = found
        return guide(conditional=conditional, unconditional=unconditional, w=w)


class GuidedTwice(Guided):
    """A Denoise guided by a class and by a style, each with its own weight: three evaluations, then `guide_twice`.

    Args:
        styles: the labels of both conditions. The rest: see `Guided`.
    """

    evaluations = 3

    def __init__(self, denoise: Denoise, styles: Styles, interval: tuple[float, float] | None = None) -> None:
        super().__init__(denoise, styles.num_labels, interval)
        self.styles = styles

    def conditions(self, label: Condition) -> tuple[Condition, ...]:
        return label, self.styles.of_any_style(label), nulls(label, self.null)

    def combine(self, *found: Images, w: Weights) -> Images:
        paired, conditional, unconditional = found
        return guide_twice(paired=paired, conditional=conditional, unconditional=unconditional, w=w)
