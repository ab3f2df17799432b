"""A network read as x, eps or v: the Denoise that is trained, saved and sampled."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.experts import ExpertPolicy, Experts
from fewstep.diffusion.flow_map import log_snr_of
from fewstep.diffusion.guidance import Guided, weights_of_both
from fewstep.diffusion.policy import Policy, PolicyBase
from fewstep.diffusion.prediction import (
    KINDS,
    Clipped,
    Condition,
    Denoise,
    Prediction,
    PredictionKind,
    Weights,
    interpret,
)
from fewstep.diffusion.sampler import END, invert_ddim
from fewstep.diffusion.schedule import Batch, Images, expand, network_time, sigma
from fewstep.networks.inputs import W2, Scalars, W, check_extra
from fewstep.networks.own import OwnNetwork

NOISE = 0.1  # in the last layer of a new policy, whose components would else learn the same
LEAST_STD = 1e-4  # of an expert (VDD)
EPS_FLOOR = -8.0  # log-SNR, alpha = 0.018


class Denoiser(nn.Module):
    """Denoise by a network of signature (z, time, label, w[, extra]) -> output of z's shape.

    The network keeps its constructor's arguments in `arguments`, which is how a model file describes it. `extra` is
    given to networks with extra inputs alone; see `ScalarInputs`.

    A network with `components` or `experts` gives a policy. Its prediction, like a flow map's, is the one whose DDIM
    step lands at END where the policy leads: END is an input of the denoiser, though none of the network.

    Args:
        prediction: how its output reads.
        native_schedule: the schedule it was trained with, if its time input is a timestep (over 1000) instead of
            `network_time`. At noise beyond its last timestep it is evaluated at that one and its x is kept: what every
            sampler does that starts such a network from pure noise. See `lowest_log_snr`.

    Attributes:
        evaluated: examples evaluated so far, each counted 1, 3 where a backward pass may follow, and 2 with a
            derivative by forward-mode differentiation.

    Raises:
        ValueError: `prediction` is none of x, eps, v.
    """

    evaluations = 1  # network evaluations per call and image

    def __init__(
        self, network: nn.Module, prediction: PredictionKind = "v", native_schedule: BetaSchedule | None = None
    ) -> None:
        super().__init__()
        if prediction not in KINDS:
            raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {prediction!r}")
        self.network = network
        self.prediction: PredictionKind = prediction
        self.native_schedule = native_schedule
        self.evaluated = 0

    @property
    def null(self) -> int | Tensor:
        """The null condition: the label past the last class, the embedding of the empty prompt, or a grey image."""
        empty: Tensor | None = getattr(self.network, "empty_prompt", getattr(self.network, "null_image", None))
        return int(arguments_of(self.network)["num_classes"]) if empty is None else empty

    @property
    def has_guidance_input(self) -> bool:
        """Whether w is an input of the network."""
        return bool(arguments_of(self.network)["guidance_input"])

    @property
    def extra_inputs(self) -> tuple[str, ...]:
        """The names of the scalar inputs other than time, w and a second w."""
        own = (name for name in self.networks_inputs if name != W2)
        return (*own, *((END,) if self.gives_policy else ()))

    @property
    def networks_inputs(self) -> tuple[str, ...]:
        """Those that the network itself takes beside time and w, a second w among them."""
        return tuple(arguments_of(self.network).get("extra_inputs", ()))

    @property
    def components(self) -> int:
        """Gaussians at each location of the policy that the network gives; 0 where it gives a prediction."""
        return int(arguments_of(self.network).get("components", 0))

    @property
    def experts(self) -> int:
        """Gaussians of the mixture that the network gives of the condition alone; 0 for every other network."""
        return int(arguments_of(self.network).get("experts", 0))

    @property
    def gives_policy(self) -> bool:
        """Whether one evaluation says all of a segment."""
        return bool(self.components or self.experts)

    def forward(
        self, z: Images, log_snr: Batch, label: Condition, w: Weights | None = None, *, extra: Scalars | None = None
    ) -> Prediction:
        """The prediction at z.

        Args:
            w: ignored by a network without that input; of a network with two, (batch, 2), or one for both.
            extra: values of the extra inputs, by name.

        Raises:
            ValueError: `extra` is not of the network's extra inputs.
        """
        check_extra(extra, self.extra_inputs)
        if self.gives_policy:
            assert extra is not None, "checked above"
            end = log_snr_of(extra[END].double() * torch.pi / 2)
            mixture = self.mixture(z, label, w) if self.experts else None
            given: PolicyBase = ExpertPolicy(z, log_snr, mixture) if mixture else self.policy(z, log_snr, label, w)
            landed = given.follow(end)
            return invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=end)
        prediction = self.predict(z, log_snr, label, w if self.has_guidance_input else None, extra)
        self.count(prediction.v)
        return prediction

    def time_input(self, log_snr: Batch) -> Batch:
        """The network's input of time: `network_time`, or the native schedule's timestep over 1000.

        A network of the user's own is told the log-SNR itself.
        """
        if isinstance(self.network, OwnNetwork):
            return self.known(log_snr)
        if self.native_schedule is None:
            return network_time(log_snr)
        timestep = self.native_schedule.timestep(self.known(log_snr).double())
        return timestep / 1000  # float64: 1000 times it is whole again

    def mixture(self, x: Images, label: Condition, w: Weights | None) -> Experts:
        """The mixture of experts given the condition, of a network with `experts`; of x only the shape counts.

        A deviation, on the diagonal of a factor, is softplus of its output, and at least LEAST_STD.
        """
        output = self.run(x, x.new_zeros(len(x)), label, w if self.has_guidance_input else None, None).to(x.dtype)
        self.count(output)
        dim = x[0].numel()
        logits, means, raw = output.split((1, dim, dim * (dim + 1) // 2), dim=2)
        row, column = torch.tril_indices(dim, dim, device=x.device)
        entries = torch.where(row == column, functional.softplus(raw) + LEAST_STD, raw)
        factors = x.new_zeros(*raw.shape[:2], dim, dim)
        factors[:, :, row, column] = entries
        return Experts(means, factors, logits[..., 0].log_softmax(1))

    def policy(self, z: Images, log_snr: Batch, label: Condition, w: Weights | None) -> Policy:
        """The policy for the segment that begins at z, of a network with `components`.

        Each mean is read as a prediction is; a deviation is sigma times the exponential of its output, so that 0 is
        right for standard normal data. Of log-weights and log-deviations the mean over the channels counts.
        """
        output = self.run(z, log_snr, label, w if self.has_guidance_input else None, None).to(z.dtype)
        self.count(output)
        means, *others = output.unflatten(1, (3, self.components)).unbind(1)
        log_weights, log_stds = (each.mean(2, keepdim=True) for each in others)
        each = torch.arange(len(z), device=z.device).repeat_interleave(self.components)
        x = self.read(means.flatten(0, 1), z=z[each], log_snr=log_snr[each]).x.unflatten(0, (len(z), -1))
        return Policy(
            z, log_snr, means=x, stds=expand(sigma(log_snr), log_stds) * log_stds.exp(), log_weights=log_weights
        )

    def count(self, output: Tensor) -> None:
        """Count an evaluation of each example of `output`."""
        has_tangent = unpack_dual(output).tangent is not None
        self.evaluated += len(output) * (3 if output.requires_grad else 2 if has_tangent else 1)

    def predict(
        self, z: Images, log_snr: Batch, label: Condition, w: Weights | None, extra: Scalars | None
    ) -> Prediction:
        """The network's output, read as a prediction at z."""
        return self.read(self.run(z, log_snr, label, w, extra).to(z.dtype), z=z, log_snr=log_snr)

    def run(self, z: Images, log_snr: Batch, label: Condition, w: Weights | None, extra: Scalars | None) -> Tensor:
        """The network's output."""
        if W2 in self.networks_inputs:
            assert w is not None, "a network with a second w has the first"
            w, second = weights_of_both(w)
            extra = {**(extra or {}), W2: second}
        scalars = (w, extra) if self.networks_inputs else (w,)
        if self.native_schedule is None:
            return self.network(z, self.time_input(log_snr).to(z.dtype), label, *scalars)
        return self.network(z, self.time_input(log_snr), label, *scalars)

    def known(self, log_snr: Batch) -> Batch:
        """The log-SNR at which the network is evaluated for this one."""
        if self.native_schedule is None:
            return log_snr
        return log_snr.clamp(min=lowest_log_snr(self.prediction, self.native_schedule))

    def read(self, output: Images, *, z: Images, log_snr: Batch) -> Prediction:
        """The prediction at z of an output there."""
        if self.native_schedule is None:
            return interpret(self.prediction, output, z=z, log_snr=log_snr)
        known = self.known(log_snr)
        there = interpret(self.prediction, output, z=z, log_snr=known)
        here = interpret("x", there.x, z=z, log_snr=log_snr)
        beyond = (log_snr < known).reshape(-1, *[1] * (z.ndim - 1))
        return Prediction(z=z, v=here.v.where(beyond, there.v), log_snr=log_snr)


def lowest_log_snr(prediction: PredictionKind, native_schedule: BetaSchedule) -> float:
    """The noisiest log-SNR at which a network of that native schedule is evaluated: that of its last timestep.

    One of eps whose schedule goes on to zero SNR, like ADM's cosine, is evaluated no noisier than EPS_FLOOR: at the
    last timestep its x would be its error divided by alpha = 5e-5, which ADM's own sampler hides by clipping x (our
    choice).
    """
    return (
        max(native_schedule.lowest_log_snr, EPS_FLOOR)
        if prediction == "eps" and native_schedule.has_zero_terminal_snr
        else native_schedule.lowest_log_snr
    )


def arguments_of(network: nn.Module) -> dict[str, Any]:
    """The constructor arguments that every network of this library keeps: plain numbers, strings and lists."""
    arguments = network.arguments
    assert isinstance(arguments, dict)
    return arguments


def with_inputs(denoiser: Denoiser, names: Sequence[str]) -> Denoiser:
    """A copy with more scalar inputs whose new weights are zero: it computes the same, whatever their values.

    Args:
        names: w, or others; those that the network has already stay as they are.
    """
    extra = [*dict.fromkeys([*denoiser.networks_inputs, *(name for name in names if name != W)])]
    guidance_input = denoiser.has_guidance_input or W in names
    if isinstance(denoiser.network, OwnNetwork):
        own = denoiser.network.remade(guidance_input=guidance_input, extra_inputs=extra)
        return Denoiser(own, denoiser.prediction, denoiser.native_schedule)
    inputs = {"guidance_input": guidance_input, "extra_inputs": extra}
    network = type(denoiser.network)(**arguments_of(denoiser.network) | inputs)
    missing, unexpected = network.load_state_dict(denoiser.network.state_dict(), strict=False)
    new = network.state_dict()
    assert not unexpected, "the copy lost a weight"
    assert not any(new[key].any() for key in missing), "new inputs must start at zero"
    return Denoiser(network, denoiser.prediction, denoiser.native_schedule)


def with_guidance_input(teacher: Denoiser) -> Denoiser:
    """A copy of `teacher` with a w input: at first the conditional teacher, for every w."""
    return with_inputs(teacher, (W,))


def with_components(denoiser: Denoiser, components: int) -> Denoiser:
    """A copy that gives a policy whose means are at first the denoiser's x, but for what tells them apart.

    The weights of the last layer that make a mean are the denoiser's plus NOISE times what a new layer would have,
    drawn from torch's global generator; those of the weights and deviations are zero.
    """
    arguments = arguments_of(denoiser.network)
    if "components" not in arguments:
        name = arguments.get("name", type(denoiser.network).__name__)
        raise ValueError(f"a {name} gives no policy; use a parent of one network, like a guided student")
    network = type(denoiser.network)(**arguments | {"components": components})
    new, old = network.state_dict(), denoiser.network.state_dict()
    for name, weight in old.items():
        if new[name].shape == weight.shape:
            new[name] = weight
            continue
        outputs = new[name].view(len(weight), 3, components, *weight.shape[1:]).zero_()
        noise = torch.randn_like(outputs[:, 0]) * NOISE / max(1, weight[0].numel()) ** 0.5
        outputs[:, 0] = weight[:, None] + noise
    network.load_state_dict(new)
    return Denoiser(network, denoiser.prediction, denoiser.native_schedule)


def without_inputs(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the same network without w and extra inputs: those that a student shares with its teacher."""
    return {**arguments, "guidance_input": False, "extra_inputs": []}


class Frozen:
    """A teacher: a denoiser in eval mode and without gradients, which moves to the device of its inputs.

    Being no Module it never enters its student's state, average or optimiser.

    Args:
        differentiable: let gradients pass to z; see `differentiable`.
    """

    def __init__(self, denoiser: Denoiser, *, differentiable: bool = False) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.differentiable = differentiable
        self.evaluations = denoiser.evaluations
        self._anchor = next(denoiser.parameters())

    @property
    def null(self) -> int | Tensor:
        return self.denoiser.null

    def __call__(
        self, z: Images, log_snr: Batch, label: Condition, w: Weights | None, *, extra: Scalars | None = None
    ) -> Prediction:
        if self._anchor.device != z.device:
            self.denoiser.to(z.device)
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            return self.denoiser(z, log_snr, label, w, extra=extra)


def differentiable(teacher: Denoise) -> Denoise:
    """The same teacher, guided, clipped or neither, through which gradients pass to z, and none into its weights."""
    match teacher:
        case Frozen():
            return Frozen(teacher.denoiser, differentiable=True)
        case Guided():
            return Guided(differentiable(teacher.denoise), teacher.null, teacher.interval)
        case Clipped():
            return Clipped(differentiable(teacher.denoise), teacher.low, teacher.high)
        case _:
            return teacher
