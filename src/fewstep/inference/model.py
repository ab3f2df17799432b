"""A trained model, ready to sample: `fewstep.load(PATH).sample(labels_or_prompts, steps=4, w=2.0, seed=0)`."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.diffusion.guidance import Weight, shared_weight
from fewstep.diffusion.hybrid import FirstSteps
from fewstep.diffusion.prediction import Condition, Denoise
from fewstep.diffusion.sampler import BEGINS_AT_IMAGE, END, SAMPLERS, TOLD_THE_END, sample
from fewstep.inference.conditions import Requested, condition_of, require_no_images
from fewstep.networks import Denoiser, Frozen
from fewstep.networks.memory import compile_calls
from fewstep.system.limits import require_request, require_weight
from fewstep.system.seeds import fresh_noise, starting_noise

if TYPE_CHECKING:
    from fewstep.networks.frozen.autoencoder import Autoencoder
    from fewstep.networks.frozen.text_encoder import TextEncoder

DEFAULT_TEACHER_STEPS = 64


@dataclass(frozen=True)
class Model:
    """A loaded model file. A teacher is guided by two evaluations a step; a student needs one.

    Args:
        autoencoder_folder, text_encoder_folder: of a latent model's autoencoder and a text model's encoder, opened when
            first used; None: where they were when the data set was made.
        guidance_interval: log-SNR between which a teacher is guided; None: everywhere.
    """

    denoiser: Denoiser
    card: ModelCard
    autoencoder_folder: Path | None = None
    text_encoder_folder: Path | None = None
    guidance_interval: tuple[float, float] | None = None

    @cached_property
    def autoencoder(self) -> "Autoencoder | None":
        """The autoencoder of its latents, None for a model of pixels or points; a ValueError if it is not found."""
        from fewstep.networks.frozen.autoencoder import Autoencoder

        latent = self.card.data.latent
        return None if latent is None else Autoencoder.of(latent, self.autoencoder_folder)

    @cached_property
    def text_encoder(self) -> "TextEncoder | None":
        """The encoder of its prompts, None for a model of classes; a ValueError if it is not found."""
        from fewstep.networks.frozen.text_encoder import TextEncoder

        text = self.card.data.text
        return None if text is None else TextEncoder.of(text, self.text_encoder_folder)

    def decode(self, x: Float[Tensor, "count *shape"]) -> Float[Tensor, "count *image"]:
        """Images in [-1, 1] of latents; pixels and points stay as they are."""
        if self.card.data.latent is None:
            return x
        assert self.autoencoder is not None
        return self.autoencoder.decode(x).clamp(-1.0, 1.0)

    def encode(self, images: Float[Tensor, "count *image"]) -> Float[Tensor, "count *shape"]:
        """The model's input for images in [-1, 1]: the mean latents for a latent model, else the images themselves."""
        if self.card.data.latent is None:
            return images
        assert self.autoencoder is not None
        return self.autoencoder.encode_mean(images)

    def condition(self, wanted: Requested) -> Condition:
        """Classes as a tensor, prompts as their embeddings; tensors, as degraded images must be, are only checked.

        Raises:
            ValueError: no class of the data, an empty prompt, prompts for a model of classes or the other way round, or
                embeddings of another shape.
        """
        return condition_of(wanted, self.card.data, lambda: self.text_encoder)

    def require_no_images(self) -> None:
        """Refuse a model whose conditions are degraded images, where classes or prompts are asked for.

        Raises:
            ValueError: it is one.
        """
        require_no_images(self.card.data)

    @property
    def denoise(self) -> Denoise:
        """(z, log_snr, label, w) -> Prediction, guided as its card says."""
        card = self.card
        return card.sampling.guided(Frozen(self.denoiser), self.denoiser.null, self.guidance_interval, card.data.styles)

    @property
    def evaluations_per_step(self) -> int:
        return self.card.sampling.evaluations

    @property
    def default_steps(self) -> int:
        """The steps it was made for, or DEFAULT_TEACHER_STEPS."""
        return self.card.num_steps or DEFAULT_TEACHER_STEPS

    @property
    def default_w(self) -> float:
        """1, or the nearest to it that the model was made for."""
        card = self.card
        if card.w_min is None or card.w_max is None:
            return 1.0
        return min(card.w_values or (min(max(1.0, card.w_min), card.w_max),), key=lambda w: abs(w - 1))

    def weight(self, w: float, w2: float | None = None) -> Weight:
        """The weight that the model is sampled with: w, or w of the class and w2 of the style, by default w too.

        Raises:
            ValueError: a w2 for a model of one weight, or one that no model can follow.
        """
        if not self.card.has_two_weights:
            if w2 is not None:
                raise ValueError(f"w2 is of models with a weight for the style too; this one has one, got {w2:g}")
            return w
        return w, (w if w2 is None else w2)

    def to(self, device: torch.device | str) -> "Model":
        self.denoiser.to(device)
        return self

    def check_request(self, steps: int, w: float, sampler: str | None = None, w2: float | None = None) -> None:
        """Refuse what cannot be sampled; warn of what the model was not made for.

        Raises:
            ValueError: an encoder, an unknown sampler, or see `require_request`.
        """
        card, sampler = self.card, sampler or self.card.sampling.sampler
        if card.encodes:
            raise ValueError("this model is an encoder, which takes data to noise: sample from the student it is of")
        if sampler not in SAMPLERS:
            raise ValueError(f"the sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        if (sampler in TOLD_THE_END) != (END in self.denoiser.extra_inputs):
            raise ValueError(
                f"the samplers {' and '.join(TOLD_THE_END)}, and no others, are for networks that know where a step "
                f"ends, got {sampler}; use {card.sampling.sampler}"
            )
        if (sampler in BEGINS_AT_IMAGE) != (card.sampling.sampler in BEGINS_AT_IMAGE):
            raise ValueError(
                f"the sampler {' or '.join(BEGINS_AT_IMAGE)} must be that of the model, whose own is "
                f"{card.sampling.sampler}, got {sampler}; leave it out"
            )
        if sampler in BEGINS_AT_IMAGE and not card.sampling.is_made_for(steps):
            raise ValueError(
                f"this student begins at the degraded image and was made for {card.num_steps} step, got {steps}; leave "
                "it out"
            )
        if card.num_steps and sampler != card.sampling.sampler:
            warnings.warn(
                f"this student was made for the {card.sampling.sampler} sampler, not the {sampler} one: expect worse "
                "images",
                stacklevel=3,
            )
        require_request(steps, w)
        if w2 is not None:
            require_weight(w2, "w2")
        self.warn_of_request("student", steps, w, w2)

    def warn_of_request(self, what: str, steps: int, w: float, w2: float | None = None) -> None:
        """Warn of steps or a w that the model was not made for; `what` it is called."""
        card, made_for = self.card, []
        if not card.sampling.is_made_for(steps):
            made_for.append(f"{' or '.join(map(str, card.sampling.steps))} steps, not {steps}")
        if card.w_max is not None and card.w_min is not None and not card.w_min <= w <= card.w_max:
            made_for.append(f"w in [{card.w_min:g}, {card.w_max:g}], not {w:g}")
        elif card.w_values and w not in card.w_values:
            made_for.append(f"w of {', '.join(f'{value:g}' for value in card.w_values)}, not {w:g}")
        second = w if w2 is None else w2
        if card.w2_max is not None and card.w2_min is not None and not card.w2_min <= second <= card.w2_max:
            made_for.append(f"w2 in [{card.w2_min:g}, {card.w2_max:g}], not {second:g}")
        for each in made_for:
            warnings.warn(f"this {what} was made for {each}: expect worse images", stacklevel=4)

    def sample(
        self,
        wanted: Requested,
        *,
        steps: int | None = None,
        w: float | None = None,
        w2: float | None = None,
        seed: int = 0,
        batch_size: int = 500,
        sampler: str | None = None,
        base: "Base | None" = None,
    ) -> Float[Tensor, "count *image"]:
        """One image per label or prompt, decoded, float32 in the data's range, on the CPU.

        Args:
            wanted: classes, 0..num_classes - 1, or prompts or their embeddings; see `condition`.
            steps: of the sampler, one evaluation each; default: those the model was made for, or 64.
            w: guidance weight, 0 none; diffusers' guidance_scale is 1 + w. Default: 1, or the nearest it was made for.
            w2: of the style, for a model with a weight for the class and one for the style; default: w for both.
            seed: image i depends on (seed, i) alone, whatever the batch size.
            sampler: one of `fewstep.diffusion.sampler.SAMPLERS`; default: the one the model was made for.
            base: a model that takes the first of the steps, see `Base`.

        Raises:
            ValueError: see `condition`, `check_request`, `Base.before`, and `FirstSteps.remaining`.
        """
        batches = self.batches(
            wanted, steps=steps, w=w, w2=w2, seed=seed, batch_size=batch_size, sampler=sampler, base=base
        )
        return torch.cat([*batches])

    def batches(
        self,
        wanted: Requested,
        *,
        steps: int | None = None,
        w: float | None = None,
        w2: float | None = None,
        seed: int = 0,
        batch_size: int = 500,
        sampler: str | None = None,
        base: "Base | None" = None,
    ) -> Iterator[Float[Tensor, "count *image"]]:
        """The images of `sample`, a batch at a time: any number in the memory of one batch.

        Raises:
            ValueError: see `sample`; when called, not at the first batch.
        """
        labels, card = self.condition(wanted), self.card
        steps = self.default_steps if steps is None else steps
        w = self.default_w if w is None else w
        weight = self.weight(w, w2)
        self.check_request(steps, w, sampler, w2)
        times, device = card.sampling.grid(steps), next(self.denoiser.parameters()).device
        first = base and base.before(self)
        if first is not None:
            first.remaining(times)  # refused now, not at the first batch

        def batch(start: int) -> Tensor:
            label = labels[start : start + batch_size].to(device)
            z, remaining = starting_noise(seed, start, len(label), card.data.shape).to(device), times
            if first is not None:
                z, remaining = first.take(z, schedule=card.schedule, times=times, label=label)
            x = sample(
                self.denoise,
                z,
                schedule=card.schedule,
                times=remaining,
                label=label,
                w=shared_weight(weight, len(label), device),
                sampler=SAMPLERS[sampler or card.sampling.sampler],
                fresh=fresh_noise(seed, start, len(label), card.data.shape),
            )
            return self.decode(x.clamp(card.data.low, card.data.high)).cpu()

        return map(batch, range(0, len(labels), batch_size))

    def save(self, path: str | Path) -> None:
        """Write the model's file, whole or not at all: safetensors weights, and a card in JSON."""
        save_model(Path(path), self.denoiser, self.card)

    def compile(self) -> "Model":
        """Have the network's calls compiled, on a GPU into CUDA graphs: for many calls of the same size."""
        compile_calls(self.denoiser, graphs=True)
        return self


@dataclass(frozen=True)
class Base:
    """The model that takes the first steps of another one, so that samples are as diverse as its own.

    Args:
        model: of any number of steps, like a teacher or a guided student.
        steps: of the base, from the noise on. w: its own guidance weight; 0, the most diverse, costs a teacher one
            evaluation a step instead of two.
        level: the student's level that they go down to: so many of the student's steps are left out.
    """

    model: Model
    steps: int = 1
    w: float = 0.0
    level: int = 1

    @property
    def first_steps(self) -> FirstSteps:
        """These steps, as tensors see them."""
        return FirstSteps(self.model.denoise, self.steps, self.w, self.level)

    def before(self, student: Model) -> FirstSteps:
        """`first_steps`, after all checks of whether they suit a student.

        Raises:
            ValueError: a base that is a few-step student or an encoder, or of other data; or a value that is refused.
        """
        card = self.model.card
        if card.encodes or card.sampling.times is not None or card.sampling.sampler != "deterministic":
            what = "an encoder" if card.encodes else f"{card.label}, made for {self.model.default_steps} steps"
            raise ValueError(
                f"a base takes any number of steps, as a teacher or a guided student does, and this one is {what}"
            )
        if card.data != student.card.data:
            raise ValueError(
                f"a base must be of the student's own data, {student.card.data.name} of shape "
                f"{student.card.data.shape}, and this one makes {card.data.name} of shape {card.data.shape}"
            )
        require_request(self.steps, self.w, "steps of the base")
        self.model.warn_of_request("base", self.steps, self.w)
        self.model.to(next(student.denoiser.parameters()).device)
        return self.first_steps


def load(
    path: str | Path,
    *,
    network: nn.Module | None = None,
    autoencoder: Path | None = None,
    text_encoder: Path | None = None,
) -> Model:
    """Load a model file.

    Args:
        network: for a file of a network of one's own: one of its class, made with the same arguments.
        autoencoder, text_encoder: folders of its companions, where they are not where they were; opened when needed.

    Raises:
        FileNotFoundError, ValueError: see `fewstep.artifacts.model_file.load_model`.
    """
    return Model(*load_model(Path(path), network), autoencoder, text_encoder)
