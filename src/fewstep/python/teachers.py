"""What a student is distilled from: a model file, a model, or a network of the user's own."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fewstep.artifacts.lineage import sampling_problem
from fewstep.artifacts.model_file import ModelCard
from fewstep.data.facts import DataFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import PredictionKind
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.inference.model import Model, load
from fewstep.methods.base import Method
from fewstep.methods.readings import ends_without_signal
from fewstep.networks import Denoiser, with_guidance_input
from fewstep.networks.own import OwnNetwork

Teacher = str | Path | Model | nn.Module
"""A model file, a model, or a network of the user's own."""


def as_model(
    network: nn.Module,
    facts: DataFacts,
    *,
    prediction: PredictionKind = "v",
    guided: bool = True,
    schedule: CosineSchedule | BetaSchedule | None = None,
) -> Model:
    """A network of one's own as a model that is sampled, distilled and saved like any other. The network is copied.

    Args:
        network: forward(z, log_snr, label, w) -> x, eps or v of z's shape, where z = alpha x + sigma eps, log_snr is
            (batch,) and log alpha^2 / sigma^2, label is (batch,) of integers, and w is None, or (batch,) where a
            student has it for an input.
        facts: name, shape, classes and range of its data.
        prediction: how its output reads; v = alpha eps - sigma x.
        guided: by two evaluations, as label facts.num_classes means "no class"; else it is sampled as it is.
        schedule: of its diffusion, whose log-SNR it was trained at; the cosine schedule from 20 to -20 by default.

    Raises:
        ValueError: a forward that takes or gives something else, or one that predicts eps where no signal is left.
    """
    schedule = schedule or CosineSchedule()
    if prediction == "eps" and isinstance(schedule, CosineSchedule) and ends_without_signal(schedule):
        raise ValueError(
            "x cannot be read from eps where no signal is left; give the least and largest log-SNR that it was "
            f"trained at, like schedule=fewstep.CosineSchedule(-10.0, 10.0), got {schedule}"
        )
    own = OwnNetwork(copy.deepcopy(network), shape=facts.shape, num_classes=facts.num_classes)
    denoiser = Denoiser(own, prediction).eval()
    try_out(denoiser, facts)
    card = ModelCard(
        method="teacher",
        data=facts,
        prediction=prediction,
        schedule=schedule,
        sampling=Sampling(guidance="two_evaluations" if guided else "none"),
        images=0,
        parents=(),
    )
    return Model(denoiser, card)


@torch.no_grad()
def try_out(denoiser: Denoiser, facts: DataFacts) -> None:
    """Call a network of the user's own once.

    Raises:
        ValueError: the call fails, or gives something else than a tensor of z's shape.
    """
    assert isinstance(denoiser.network, OwnNetwork)
    name = denoiser.network.arguments["name"]
    weight = next(denoiser.parameters(), None)
    if weight is None:
        raise ValueError(f"{name} has no weights, so there is nothing for a student to start from")
    z = torch.zeros(2, *facts.shape, device=weight.device)
    labels = torch.tensor([0, facts.num_classes], device=weight.device)
    try:
        output = denoiser.network(z, z.new_zeros(2), labels, None)
    except Exception as error:  # of the user's own code
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{name}.forward(z, log_snr, label, w) must take z {tuple(z.shape)}, log_snr (2,), label (2,) of "
            f"0..{facts.num_classes}, where {facts.num_classes} means no class, and w=None, and fails: {reason}"
        ) from error
    if not isinstance(output, torch.Tensor) or output.shape != z.shape:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"{name}.forward must give a tensor of z's shape, {tuple(z.shape)}, got {got}")


def opened(teacher: Teacher, facts: DataFacts | None, prediction: PredictionKind) -> Model:
    """The teacher as a model.

    Raises:
        ValueError: a network of the user's own without `facts`, or `facts` of a model that has its own; see `as_model`.
        FileNotFoundError: there is no such file.
    """
    if isinstance(teacher, nn.Module) and not isinstance(teacher, Denoiser):
        if facts is None:
            raise ValueError(
                "a network of your own needs facts=fewstep.DataFacts(name, shape, num_classes, low, high) of its data"
            )
        return as_model(teacher, facts, prediction=prediction)
    model = teacher if isinstance(teacher, Model) else load(Path(teacher)) if isinstance(teacher, str | Path) else None
    if model is None:
        raise ValueError(
            f"a teacher must be a model file, a fewstep model or a torch module, got {type(teacher).__name__}"
        )
    if facts is not None and facts != model.card.data:
        raise ValueError(f"this teacher makes {model.card.data.title}, and facts= says {facts.title}; leave facts out")
    return model


def started_from(model: Model, method: Method) -> Model:
    """The model as a method's parent.

    Raises:
        ValueError: the method cannot start from it.
    """
    wanted, sampling = method.parent(), model.card.sampling
    problem = None if wanted is None else sampling_problem(model.card, wanted.guidance, wanted.continues)
    if wanted is None or problem is None:
        return model
    if sampling.times is None and sampling.guidance == "none" and "input" in wanted.guidance:
        return without_guidance(model)
    raise ValueError(f"{type(method).__name__} cannot start from this teacher: {problem}")


def without_guidance(model: Model) -> Model:
    """A model that is not guided as one with a w input that is made for w = 0 alone, as most methods need one."""
    card = replace(model.card, sampling=replace(model.card.sampling, guidance="input"), w_min=0.0, w_max=0.0)
    return replace(model, denoiser=with_guidance_input(model.denoiser).eval(), card=card)
