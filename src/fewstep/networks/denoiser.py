"""A network read as x, eps or v: the Denoise that is trained, saved and sampled."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import KINDS, Condition, Prediction, PredictionKind, interpret
from fewstep.diffusion.schedule import Batch, Images, network_time

EPS_FLOOR = -8.0  # log-SNR, alpha = 0.018


class Denoiser(nn.Module):
    """Denoise by a network of signature (z, time, label, w) -> output of z's shape.

    The network keeps its constructor's arguments in `arguments`, which is how a model file describes it.

    Args:
        prediction: how its output reads.
        clock: the schedule it was trained with, if it is told timesteps (over 1000) instead of `network_time`. Noisier
            than its last timestep it is asked as if at that one, and its x is kept: what every sampler does that
            starts such a network from pure noise. See `lowest_asked`.

    Raises:
        ValueError: `prediction` is none of x, eps, v.
    """

    evaluations = 1  # network evaluations per call and image

    def __init__(self, network: nn.Module, prediction: PredictionKind = "v", clock: BetaSchedule | None = None) -> None:
        super().__init__()
        if prediction not in KINDS:
            raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {prediction!r}")
        self.network = network
        self.prediction: PredictionKind = prediction
        self.clock = clock

    @property
    def null(self) -> int | Tensor:
        """What means "no condition" to it: the label past the last class, or the embedding of the empty prompt."""
        empty: Tensor | None = getattr(self.network, "empty_prompt", None)
        return int(arguments_of(self.network)["num_classes"]) if empty is None else empty

    @property
    def has_guidance_input(self) -> bool:
        return bool(arguments_of(self.network)["guidance_input"])

    def forward(
        self,
        z: Images,
        log_snr: Batch,
        label: Condition,
        w: Float[Tensor, "batch"] | None = None,
    ) -> Prediction:
        w = w if self.has_guidance_input else None
        if self.clock is None:
            output = self.network(z, network_time(log_snr).to(z.dtype), label, w)
            return interpret(self.prediction, output.to(z.dtype), z=z, log_snr=log_snr)
        known = log_snr.clamp(min=lowest_asked(self.prediction, self.clock))
        time = self.clock.timestep(known.double()) / 1000  # float64: 1000 * time is a timestep again, and whole
        output = self.network(z, time, label, w)
        there = interpret(self.prediction, output.to(z.dtype), z=z, log_snr=known)
        here = interpret("x", there.x, z=z, log_snr=log_snr)
        beyond = (log_snr < known).reshape(-1, *[1] * (z.ndim - 1))
        return Prediction(z=z, v=here.v.where(beyond, there.v), log_snr=log_snr)


def lowest_asked(prediction: PredictionKind, clock: BetaSchedule) -> float:
    """The noisiest log-SNR at which a network of that clock is asked: that of its last timestep.

    One of eps whose schedule goes on to zero SNR, like ADM's cosine, is asked no noisier than EPS_FLOOR: at the last
    timestep its x would be its error divided by alpha = 5e-5, which ADM's own sampler hides by clipping x (our choice).
    """
    return (
        max(clock.lowest_log_snr, EPS_FLOOR)
        if prediction == "eps" and clock.has_zero_terminal_snr
        else clock.lowest_log_snr
    )


def arguments_of(network: nn.Module) -> dict[str, Any]:
    """The constructor arguments that every network of this library keeps: plain numbers, strings and lists."""
    arguments = network.arguments
    assert isinstance(arguments, dict)
    return arguments


def with_guidance_input(teacher: Denoiser) -> Denoiser:
    """A copy of `teacher` with a w input whose new weights are zero: it *is* the conditional teacher, for every w."""
    network = type(teacher.network)(**arguments_of(teacher.network) | {"guidance_input": True})
    missing, unexpected = network.load_state_dict(teacher.network.state_dict(), strict=False)
    new = network.state_dict()
    assert not unexpected, "the copy lost a weight"
    assert not any(new[key].any() for key in missing), "the w input must start at zero"
    return Denoiser(network, teacher.prediction, teacher.clock)


class Frozen:
    """A teacher: its network in eval mode and without gradients, following the device of what it is given.

    Being no Module it never enters its student's state, average or optimiser.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.evaluations = denoiser.evaluations
        self._anchor = next(denoiser.parameters())

    @property
    def null(self) -> int | Tensor:
        return self.denoiser.null

    @torch.no_grad()
    def __call__(self, z: Images, log_snr: Batch, label: Condition, w: Float[Tensor, "batch"] | None) -> Prediction:
        if self._anchor.device != z.device:
            self.denoiser.to(z.device)
        return self.denoiser(z, log_snr, label, w)
