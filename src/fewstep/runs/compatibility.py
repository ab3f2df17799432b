"""Whether a model can be the parent of a method's student."""

import torch

from fewstep.artifacts.lineage import Compatibility, sampling_problem
from fewstep.artifacts.model_file import ModelCard
from fewstep.data.facts import DataFacts
from fewstep.data.labels import NONE
from fewstep.methods.base import Parent
from fewstep.networks import Denoiser
from fewstep.networks.denoiser import arguments_of, without_inputs
from fewstep.runs.build import build_network, schedule_of
from fewstep.runs.config import Settings


def compatibility_of(
    settings: Settings, parent: Parent, facts: DataFacts | None, *, named: bool = False, preferred: bool = False
) -> Compatibility:
    """Whether a model can be a method's parent: what it makes, how it is sampled, its network and its schedule.

    A student is copied as it is: where its file was named, its network need not be that of the settings. A model with
    a native schedule, foreign or of text, brings its own network and prediction, which its student copies.

    Args:
        facts: of the data, None to take the parent's.
        named: whether the user named the file. preferred: take the first of the method's kinds of parent alone; of data
            without labels, a model without guidance too.
    """
    if facts is None:
        ours = None
    else:
        with torch.device("meta"):  # what is compared is its description
            ours = build_network(settings, facts)
    has_labels = facts is None or facts.labels != NONE
    kinds = parent.guidance[:1] if preferred and has_labels else parent.accepted

    def reason(denoiser: Denoiser, card: ModelCard) -> str | None:
        if card.data.name != settings.dataset_name or (facts is not None and card.data != facts):
            return f"it makes {card.data.title}, this run {facts.title if facts else settings.dataset_name}"
        if problem := sampling_problem(card, kinds, parent.continues):
            return problem
        return network_problem(settings, denoiser, card, ours, named=named)

    return reason


def network_problem(
    settings: Settings, denoiser: Denoiser, card: ModelCard, ours: Denoiser | None, *, named: bool
) -> str | None:
    """Why a model's network or schedule is not that of the settings, or None."""
    network = denoiser.network
    is_teacher = card.sampling.is_combined and card.sampling.times is None
    native = card.native_schedule is not None
    if ours is not None and not native:
        if card.prediction != ours.prediction and is_teacher:
            return f"it predicts {card.prediction}, model.prediction is {ours.prediction}"
        same_arguments = without_inputs(arguments_of(network)) == without_inputs(arguments_of(ours.network))
        same = type(network) is type(ours.network) and same_arguments
        if not same and not (named and not is_teacher):
            hint = "" if is_teacher else "; a smaller student is taken where teacher=PATH names it"
            return f"its network is another than model= says, and a student copies its teacher's{hint}"
    schedule = schedule_of(settings, denoiser)
    if card.schedule != schedule and not (native and is_teacher):
        return f"its schedule is {card.schedule}, this run's {schedule}"
    return None
