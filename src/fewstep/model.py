"""A trained model, ready to sample: `fewstep.load(PATH).sample(labels, steps=4, w=2.0, seed=0)`."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.checkpoint import ModelCard, load_model
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.sampler import sample
from fewstep.networks import Denoiser, Frozen
from fewstep.seeds import starting_noise

DEFAULT_TEACHER_STEPS = 64


def sample_batches(
    denoise: Denoise,
    card: ModelCard,
    labels: Int[Tensor, "count"],
    *,
    steps: int,
    w: float,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Sample images for `labels`, batch by batch, in the data's range (clamped at the end only)."""
    facts = card.data
    for start in range(0, len(labels), batch_size):
        label = labels[start : start + batch_size].to(device)
        noise = starting_noise(seed, start, len(label), facts.shape).to(device)
        x = sample(
            denoise,
            noise,
            schedule=card.schedule,
            num_steps=steps,
            label=label,
            w=torch.full((len(label),), float(w), device=device),
        )
        yield x.clamp(facts.low, facts.high)


@dataclass(frozen=True)
class Model:
    """A model file, loaded. A teacher is guided by two evaluations a step, a student needs one."""

    denoiser: Denoiser
    card: ModelCard

    @property
    def denoise(self) -> Denoise:
        """(z, log_snr, label, w) -> Prediction, guided."""
        frozen = Frozen(self.denoiser)
        return Guided(frozen, frozen.null) if self.card.is_guided_outside else frozen

    @property
    def evaluations_per_step(self) -> int:
        return Guided.evaluations if self.card.is_guided_outside else Denoiser.evaluations

    @property
    def default_steps(self) -> int:
        """The steps it was made for, or DEFAULT_TEACHER_STEPS."""
        return self.card.num_steps or DEFAULT_TEACHER_STEPS

    def to(self, device: torch.device | str) -> "Model":
        self.denoiser.to(device)
        return self

    def check_request(self, labels: Int[Tensor, "count"], steps: int, w: float) -> None:
        """Refuse what cannot be sampled; warn of what the model was not made for.

        Raises:
            ValueError: labels outside the classes, fewer than one step, w negative or not finite.
        """
        card = self.card
        if len(labels) < 1 or int(labels.min()) < 0 or int(labels.max()) >= card.data.num_classes:
            raise ValueError(
                f"labels must be in 0..{card.data.num_classes - 1} for {card.data.name}, at least one, got "
                f"{sorted(set(labels.tolist()))[:12]}"
            )
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not 0 <= w < float("inf"):
            raise ValueError(
                f"w must be finite and at least 0 (0 is no guidance; diffusers' scale is 1 + w), got {w:g}"
            )
        if card.num_steps and steps != card.num_steps:
            warnings.warn(
                f"this student was made for {card.num_steps} steps, not {steps}: expect worse images",
                stacklevel=3,
            )
        if card.w_max is not None and card.w_min is not None and not card.w_min <= w <= card.w_max:
            warnings.warn(
                f"this student was made for w in [{card.w_min:g}, {card.w_max:g}], not {w:g}: expect worse images",
                stacklevel=3,
            )

    def sample(
        self,
        labels: Int[Tensor, "count"] | Sequence[int],
        *,
        steps: int | None = None,
        w: float = 1.0,
        seed: int = 0,
        batch_size: int = 500,
    ) -> Float[Tensor, "count *shape"]:
        """One image per label, float32 in the data's range, on the CPU.

        Args:
            labels: classes, 0..num_classes - 1.
            steps: DDIM steps; default: those the model was made for, or 64.
            w: guidance weight, 0 none; diffusers' guidance_scale is 1 + w.
            seed: image i depends on (seed, i) alone, whatever the batch size.

        Raises:
            ValueError: see `check_request`.
        """
        labels = torch.as_tensor(labels, dtype=torch.long)
        steps = self.default_steps if steps is None else steps
        self.check_request(labels, steps, w)
        device = next(self.denoiser.parameters()).device
        batches = sample_batches(
            self.denoise, self.card, labels, steps=steps, w=w, seed=seed, batch_size=batch_size, device=device
        )
        return torch.cat([batch.cpu() for batch in batches])


def load(path: str | Path) -> Model:
    """Load a model file.

    Raises:
        FileNotFoundError, ValueError: see `fewstep.checkpoint.load_model`.
    """
    return Model(*load_model(Path(path)))
