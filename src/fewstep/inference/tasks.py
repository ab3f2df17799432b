"""Tasks on given images: `edit`, `inpaint`, `transfer`, `interpolate`.

Images in, images out: float32 (count, channels, height, width) in [-1, 1], whether the model works on pixels or on
latents of its autoencoder (points: in the data's range). Conditions are classes, prompts or embeddings, one for each
image, as `Model.sample` takes them. Every model is sampled at its own times, with its own sampler: one that adds noise
draws it from `seed`.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from fewstep.diffusion import edit as tensors
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.sampler import SAMPLERS, TOLD_THE_END, encode, sample
from fewstep.inference.model import Model, Requested
from fewstep.system.limits import require_request
from fewstep.system.seeds import fresh_noise, starting_noise

Pictures = Float[Tensor, "count *image"]


def edit(
    model: Model,
    images: Pictures,
    wanted: Requested,
    *,
    strength: float = 0.5,
    steps: int | None = None,
    w: float = 1.0,
    seed: int = 0,
    batch_size: int = 500,
) -> Pictures:
    """Image to image: noise each image to t = `strength`, then sample from there as `wanted`.

    Args:
        strength: 0 leaves the images as they are, 1 keeps nothing of them; it becomes the nearest of the sampler's
            times, from which on the steps are taken.
        steps: of the whole way from noise; default: those the model was made for, or 64.
        seed: image i's noise depends on (seed, i) alone.

    Raises:
        ValueError: a strength outside [0, 1], images of another size, or see `Model.condition`, `Model.check_request`.
    """
    labels, times = _checked(model, images, wanted, steps, w)
    if tensors.steps_for(strength, times) == 0:
        if strength > 0:
            warnings.warn(
                f"strength {strength:g} of {len(times)} steps is no step, the images stay as they are; "
                f"take {float(times[-1]) / 2:g} or more",
                stacklevel=2,
            )
        return images.clone()  # not decoded from latents: as they are

    def batch(part: slice, x: Tensor) -> Tensor:
        return tensors.edit(
            model.denoise,
            x,
            _noise(model, seed, part, x),
            strength=strength,
            **_request(model, x, labels[part], times, w, seed, part),
        )

    return _in_batches(model, images, batch, batch_size)


def inpaint(
    model: Model,
    images: Pictures,
    missing: Bool[Tensor, "count *image"],
    wanted: Requested,
    *,
    steps: int | None = None,
    w: float = 1.0,
    seed: int = 0,
    batch_size: int = 500,
) -> Pictures:
    """Fill in what is `missing` of each image; the known pixels are returned exactly, also by a latent model.

    Args:
        missing: True where the image is to be made; a model of pixels never reads what `images` hold there. A latent is
            known where all of its pixels are.
        The rest: as in `edit`.

    Raises:
        ValueError: a mask of another shape or that marks nothing, or as `edit`.
    """
    labels, times = _checked(model, images, wanted, steps, w)
    if missing.shape != images.shape or not missing.any():
        raise ValueError(
            f"the mask must be True where an image is missing and have the images' shape {tuple(images.shape)}, "
            f"got {tuple(missing.shape)} with {int(missing.sum())} True"
        )

    def batch(part: slice, x: Tensor) -> Tensor:
        return tensors.inpaint(
            model.denoise,
            x,
            _missing_of(model, missing[part]).to(x.device).expand_as(x),
            _noise(model, seed, part, x),
            **_request(model, x, labels[part], times, w, seed, part),
        )

    return torch.where(missing, _in_batches(model, images, batch, batch_size), images)


def transfer(
    model: Model,
    images: Pictures,
    source: Requested,
    target: Requested,
    *,
    encoder: Model | None = None,
    steps: int | None = None,
    encode_steps: int | None = None,
    w: float = 1.0,
    encode_w: float | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> Pictures:
    """Encode each image as `source` and decode it as `target`: from the same noise, so in much of the same style.

    Nothing is random but what the model's own sampler adds. `target` = `source` gives the images back, up to the error
    of the two ways.

    Args:
        encoder: a student of `stage=encoder`, or a teacher or guided student, which encode by DDIM backwards; default:
            the model itself, which suits only those two.
        steps: of decoding; default: those the model was made for, or 64.
        encode_steps: default: those the encoder was made for, or 64.
        w: guidance of decoding. encode_w: of encoding; default: the encoder's least, 0 as a rule.
        seed: of the noise that the model's sampler adds, if it does.

    Raises:
        ValueError: an encoder of other data or another schedule, or as `edit`.
    """
    target_labels, times = _checked(model, images, target, steps, w)
    encoded = _encoding(model, encoder, images, source, encode_steps, encode_w)

    def batch(part: slice, x: Tensor) -> Tensor:
        return sample(model.denoise, encoded(part, x), **_request(model, x, target_labels[part], times, w, seed, part))

    return _in_batches(model, images, batch, batch_size)


def interpolate(
    model: Model,
    first: Pictures,
    second: Pictures,
    source: Requested,
    target: Requested,
    *,
    num: int = 8,
    encoder: Model | None = None,
    steps: int | None = None,
    encode_steps: int | None = None,
    w: float = 1.0,
    encode_w: float | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> Float[Tensor, "count num *image"]:
    """`num` images from each of `first` to its partner in `second`, by slerp between their encodings.

    The two ends are those images encoded and decoded again. In between a prompt's embedding is blended evenly; a class
    is that of the nearer end (in the middle: of `first`). All images of a row have the same noise added, if any.

    Args:
        source, target: what `first` and `second` are.
        The rest: as in `transfer`.

    Raises:
        ValueError: fewer than two images a row, `first` and `second` of different shapes, or as `transfer`.
    """
    if num < 2:
        raise ValueError(f"num must be at least 2, the two ends, got {num}")
    if first.shape != second.shape:
        raise ValueError(f"images come in pairs of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    source_labels, times = _checked(model, first, source, steps, w)
    target_labels, _ = _checked(model, second, target, steps, w, warn=False)
    starts = _encoding(model, encoder, first, source_labels, encode_steps, encode_w)
    ends = _encoding(model, encoder, second, target_labels, encode_steps, encode_w, warn=False)

    def batch(part: slice, x: Tensor) -> Tensor:
        start, end = starts(part, x), ends(part, model.encode(second[part].float()).to(x.device))
        a, b = source_labels[part], target_labels[part]
        frames = []
        for fraction in torch.linspace(0, 1, num).tolist():
            z = tensors.slerp(start, end, torch.full((len(x),), fraction, device=x.device))
            label = torch.lerp(a, b, fraction) if a.is_floating_point() else (a if fraction <= 0.5 else b)
            frames.append(sample(model.denoise, z, **_request(model, z, label, times, w, seed, part)))
        return torch.stack(frames, 1)

    return _in_batches(model, first, batch, batch_size)


def _checked(
    model: Model, images: Pictures, wanted: Requested, steps: int | None, w: float, warn: bool = True
) -> tuple[Condition, Float[Tensor, "times"]]:
    """The condition of every image, and the times of the sampler, after all checks of a request."""
    labels, shape = model.condition(wanted), model.card.data.pixels.shape
    steps = model.default_steps if steps is None else steps
    if images.ndim < 2 or tuple(images.shape[1:]) != shape or len(images) != len(labels):
        raise ValueError(
            f"this model takes images of shape {shape} and one condition for each, got images "
            f"{tuple(images.shape)} and {len(labels)} conditions"
        )
    if warn:
        model.check_request(steps, w)
    return labels, model.card.sampling.grid(steps)


def _encoding(
    model: Model,
    encoder: Model | None,
    images: Pictures,
    source: Requested,
    steps: int | None,
    w: float | None,
    warn: bool = True,
) -> Callable[[slice, Tensor], Tensor]:
    """A function that encodes a part of the images as `source`, after all checks of the encoder."""
    chosen = encoder or model
    card = chosen.card
    if (card.data, card.schedule) != (model.card.data, model.card.schedule):
        raise ValueError(
            f"an encoder must be of the model's own data and schedule, {model.card.data.name}, and this one is of "
            f"{card.data.name} with {card.schedule}; give one made from the same teacher"
        )
    if card.sampling.sampler in TOLD_THE_END:
        raise ValueError(
            "this student is told where each step ends and does not encode: give an encoder (stage=encoder), a guided "
            "student or a teacher"
        )
    labels = model.condition(source)
    if len(labels) != len(images):
        raise ValueError(f"every image needs a source condition: {len(images)} images, {len(labels)} conditions")
    steps = chosen.default_steps if steps is None else steps
    w = (card.w_min or 0.0) if w is None else w
    require_request(steps, w, "steps of encoding")
    if warn and card.sampling.times is not None and not card.encodes:
        warnings.warn(
            "a few-step student was made to sample and encodes badly: give an encoder (stage=encoder), a guided "
            "student or a teacher",
            stacklevel=3,
        )
    if warn:
        chosen.warn_of_request("encoder", steps, w)
    times = card.sampling.grid(steps)

    def encoded(part: slice, x: Tensor) -> Tensor:
        label = labels[part].to(x.device)
        weight = torch.full((len(x),), float(w), device=x.device)
        return encode(chosen.denoise, x, schedule=card.schedule, times=times, label=label, w=weight)

    return encoded


def _request(
    model: Model, like: Tensor, labels: Condition, times: Float[Tensor, "times"], w: float, seed: int, part: slice
) -> dict[str, Any]:
    """The keyword arguments by which a part of the images is sampled, on the device of `like`."""
    return {
        "schedule": model.card.schedule,
        "times": times,
        "label": labels.to(like.device),
        "w": torch.full((len(like),), float(w), device=like.device),
        "sampler": SAMPLERS[model.card.sampling.sampler],
        "fresh": fresh_noise(seed, part.start, part.stop - part.start, model.card.data.shape),
    }


def _in_batches(
    model: Model, images: Pictures, task: Callable[[slice, Tensor], Tensor], batch_size: int
) -> Float[Tensor, "..."]:
    """`task(part, x)` of every part, x its images or latents; decoded, in the data's range, on the CPU."""
    device, facts = next(model.denoiser.parameters()).device, model.card.data
    done = []
    for start in range(0, len(images), batch_size):
        part = slice(start, min(start + batch_size, len(images)))
        made = task(part, model.encode(images[part].float()).to(device)).clamp(facts.low, facts.high)
        leading = made.shape[: made.ndim - len(facts.shape)]
        decoded = model.decode(made.reshape(-1, *facts.shape)).cpu()
        done.append(decoded.reshape(*leading, *decoded.shape[1:]))
    return torch.cat(done)


def _missing_of(model: Model, missing: Bool[Tensor, "count *image"]) -> Bool[Tensor, "count *shape"]:
    """The mask of images, or of latents: a latent is missing if a pixel under it is."""
    facts = model.card.data
    if facts.latent is None:
        return missing
    size = tuple(pixels // latents for pixels, latents in zip(facts.pixels.shape[1:], facts.shape[1:], strict=True))
    return max_pool2d(missing.any(1, keepdim=True).float(), size) > 0


def _noise(model: Model, seed: int, part: slice, like: Tensor) -> Tensor:
    return starting_noise(seed, part.start, part.stop - part.start, model.card.data.shape).to(like)
