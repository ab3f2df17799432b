"""The student and the teacher of a phase, built from its parent, and what the student's model file says of itself."""

import copy
from collections.abc import Sequence

import torch

from fewstep.artifacts.model_file import Ancestor, ModelCard
from fewstep.data.facts import DataFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.guidance import log_snr_interval
from fewstep.diffusion.prediction import Clipped, Denoise
from fewstep.diffusion.sampler import END
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.distributed.collectives import world_size
from fewstep.methods.base import Method, Phase
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.readings import check_student_at_noise, check_teacher_at_noise
from fewstep.methods.student_settings import StudentSettings
from fewstep.networks import Denoiser, Frozen, with_guidance_input
from fewstep.networks.adapter import with_adapter
from fewstep.networks.denoiser import with_components, with_inputs
from fewstep.networks.inputs import W2
from fewstep.networks.memory import checkpoint_gradients, to_channels_last
from fewstep.networks.smaller import smaller_student
from fewstep.system.seeds import seed_for
from fewstep.training.module import DistillationModule

AnySchedule = CosineSchedule | BetaSchedule


def student_of(
    method: Method,
    phase: Phase,
    parent: Denoiser,
    guidance: GuidanceRange | None,
    schedule: AnySchedule,
    *,
    is_first: bool,
    stream: str,
    init: Sequence[str | int],
    gradient_checkpointing: bool = False,
    channels_last: bool = False,
) -> Denoiser:
    """A student that starts as its parent, changed as the method's `StudentSettings` say.

    Args:
        guidance: the weights that it is trained at.
        schedule: of a student without a native one.
        is_first: whether it is the method's first phase, whose student may be smaller than its parent.
        stream: names the random numbers of new weights. init: those of a smaller student.
        gradient_checkpointing, channels_last: see `fewstep.networks.memory`.

    Raises:
        ValueError: a student that cannot be built, or read where the method evaluates it.
    """
    student = copy.deepcopy(parent)
    if phase.sampling.guidance == "input" and not student.has_guidance_input:
        student = with_guidance_input(parent)
    if guidance is not None and guidance.second is not None:
        student = with_inputs(student, (W2,))
    if phase.sampling.sampler == "flow_map":
        student = with_inputs(student, (END,))
    if phase.components:
        torch.manual_seed(seed_for(stream, "policy"))
        student = with_components(student, phase.components)
    if isinstance(method, StudentSettings):
        if method.student is not None and is_first:
            torch.manual_seed(seed_for(*init))
            student = smaller_student(student, method.student)
        # Of another reading it starts with its parent's weights but not as its parent: it has more to learn.
        student = Denoiser(student.network, method.prediction or student.prediction, student.native_schedule)
    if student.native_schedule is None and isinstance(schedule, CosineSchedule):
        check_student_at_noise(method, phase, student.prediction, schedule)
    if gradient_checkpointing:
        checkpoint_gradients(student.network)
    if channels_last:
        to_channels_last(student.network)
    if isinstance(method, StudentSettings) and method.adapter is not None:
        torch.manual_seed(seed_for(stream, "adapter"))
        student = with_adapter(student, method.adapter_rank, method.adapter_alpha)
    return student


def teacher_of(
    method: Method, phase: Phase, parent: Denoiser, sampling: Sampling, schedule: AnySchedule, facts: DataFacts
) -> Denoise:
    """The frozen parent as the method's teacher; guided by several evaluations where its student shall need but one.

    Args:
        sampling: of the parent. schedule: of the student.

    Raises:
        ValueError: it cannot be read where the method evaluates it, or held inside a range that is not known.
    """
    if parent.native_schedule is None and isinstance(schedule, CosineSchedule):
        check_teacher_at_noise(method, phase, parent.prediction, schedule)
    teacher: Denoise = Frozen(parent)
    if not phase.sampling.is_combined:
        interval = log_snr_interval(schedule, method.interval)
        teacher = sampling.guided(teacher, parent.null, interval, facts.styles)
    return clip_teacher(method, teacher, facts)


def clip_teacher(method: Method, teacher: Denoise, facts: DataFacts) -> Denoise:
    """The teacher, its predicted x held inside the data's range where the method asks for it.

    Raises:
        ValueError: the range is not known.
    """
    bounds = clip_bounds(method, facts)
    return teacher if bounds is None else Clipped(teacher, *bounds)


def clip_bounds(method: Method, facts: DataFacts) -> tuple[float, float] | None:
    """The data's range where the method's targets are held inside it.

    Raises:
        ValueError: the range is not known.
    """
    if not (isinstance(method, StudentSettings) and method.clip_target):
        return None
    if facts.latent is not None:
        raise ValueError(f"stage.clip_target needs data of a known range, and latents have none: {facts}; use false")
    return facts.low, facts.high


def inherited_guidance(card: ModelCard, phase: Phase) -> GuidanceRange | None:
    """The weights that a phase's student has from its parent: of a model without guidance w = 0, where it takes w."""
    if phase.sampling.guidance == "input" and card.sampling.guidance == "none":
        return GuidanceRange(0.0, 0.0)
    return guidance_of(card)


def guidance_of(card: ModelCard) -> GuidanceRange | None:
    """The weights that a model was made for."""
    if card.w_min is None or card.w_max is None:
        return None
    second = None if card.w2_min is None or card.w2_max is None else GuidanceRange(card.w2_min, card.w2_max)
    return GuidanceRange(card.w_min, card.w_max, card.w_draw, card.w_values, second)


def student_card(
    module: DistillationModule,
    *,
    name: str,
    facts: DataFacts,
    images: int,
    parent: ModelCard | None,
    ancestors: tuple[Ancestor, ...],
) -> ModelCard:
    """What the phase's model file says of itself.

    Args:
        name: of the stage. images: that it was trained on.
    """
    guidance, interval = module.nets.guidance, module.method.interval or (parent and parent.guidance_interval)
    model, schedule = module.nets.model, module.nets.schedule
    assert isinstance(schedule, CosineSchedule | BetaSchedule), "no other is described in a file"
    return ModelCard(
        method=name,
        data=facts,
        prediction=model.prediction,
        schedule=schedule,
        native_schedule=model.native_schedule,
        sampling=module.phase.sampling,
        w_min=guidance.w_min if guidance else None,
        w_max=guidance.w_max if guidance else None,
        w_draw=guidance.w_draw if guidance else "uniform",
        w_values=tuple(guidance.w_values) if guidance and guidance.w_values else None,
        w2_min=guidance.second.w_min if guidance and guidance.second else None,
        w2_max=guidance.second.w_max if guidance and guidance.second else None,
        guidance_interval=None if interval is None else (interval[0], interval[1]),
        images=images,
        evaluations=module.evaluations * world_size(),
        parents=ancestors,
    )
