"""Every method with small settings, as one phase ready to train; and networks that are exact on a mixture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import lightning
import torch
from torch import Tensor, nn

from fewstep.data.batch import Pairs
from fewstep.data.batches import Batch, Data
from fewstep.data.facts import DataFacts
from fewstep.data.mixture import MixtureData
from fewstep.data.noise import NoiseData
from fewstep.data.pairs import TrialPairs
from fewstep.diffusion.prediction import Denoise, Prediction, PredictionKind, interpret
from fewstep.diffusion.sampler import END, invert_ddim
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule, alpha, angle, append_zero, expand, sigma
from fewstep.diffusion.styles import Styles
from fewstep.methods import (
    ADD,
    DDIL,
    DMD2,
    DPDMD,
    LADD,
    O2MKD,
    PID,
    RDD,
    SFDDM,
    VDD,
    Boot,
    Consistency,
    ContinuousConsistency,
    EasyConsistency,
    EMMixture,
    Encoder,
    FlowMap,
    FreeFlow,
    Guidance,
    GuidanceRange,
    ImprovedConsistency,
    KnowledgeDistillation,
    LatentConsistency,
    MeanFlow,
    Method,
    Networks,
    PiFlow,
    Progressive,
    Reflow,
    SiD,
    SingleFold,
    Teacher,
    Tract,
    Training,
    TwoGuidances,
    base,
)
from fewstep.methods.consistency import ConsistencyTraining
from fewstep.methods.meanflow import MeanFlowTraining
from fewstep.networks import Denoiser, Frozen, ResidualMLP, with_guidance_input
from fewstep.networks.denoiser import with_components, with_inputs
from fewstep.networks.inputs import W2
from fewstep.system.validation import build
from fewstep.training.module import DistillationModule
from fewstep.training.settings import TrainerSettings

SCHEDULE = CosineSchedule()
NUM_CLASSES = NULL = 3
STYLES = Styles(num_classes=1, num_styles=2)  # as many labels: 0 and 1 of each style, 2 of any
FACTS = DataFacts(name="mixture", shape=(2,), num_classes=NUM_CLASSES, low=-1.5, high=1.5)
WEIGHTS_0_TO_4 = GuidanceRange(0.0, 4.0)
PLAN: dict[str, Any] = {
    "images": 640,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "warmup_images": 64,
    "gradient_clip": 1.0,
    "ema_decay": 0.5,
    "weight": "snr_plus_one",
}
ROLES = {
    role: {"learning_rate": 2e-3}
    for role in ("fake", "critic", "projection", "attention", "weighting", "head", "gates")
}

# Where hinge does not reach its corners, a critic's last bias has no gradient, and an interruption nothing to lose.
SOFTPLUS = {"weight": 0.1, "form": "softplus"}
LEVELS = {"levels": [1.0, 0.75, 0.5, 0.25]}
EXPERTS = {"experts": 3, "width": 8, "num_blocks": 1}
LADDER = {"ladder": [8, 4, 2], "few_steps": 2, "few_steps_factor": 2.0}
# The first steps are those of data, student, data, student, teacher.
STATES = {"states": {"data": 0.3, "teacher": 0.3, "student": 0.4, "warmup": 0.0}}
SMALL: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "teacher": (Teacher, {"label_dropout": 0.1}),
    "guidance": (Guidance, {"w_min": 0.0, "w_max": 4.0}),
    "guidance with features": (Guidance, {"w_min": 0.0, "w_max": 4.0, "feature_matching": 0.5}),
    "two_guidances": (TwoGuidances, {"w_min": 0.0, "w_max": 4.0, "w2_min": 0.0, "w2_max": 2.0}),
    "progressive": (Progressive, LADDER),
    "progressive, stochastic": (Progressive, LADDER | {"sampler": "stochastic"}),
    "progressive, two students": (Progressive, LADDER | {"variant": "two_student"}),
    "rdd": (RDD, LADDER | {"queue": 64, "contrasts": 16, "enqueued": 8}),
    "encoder": (Encoder, LADDER | {"w_min": 0.0, "w_max": 0.5}),
    "tract": (Tract, {"time_schedule": [8, 2, 1]}),
    "consistency": (Consistency, LEVELS | {"num_levels": 8}),
    "consistency with self-teacher": (
        Consistency,
        LEVELS | {"num_levels": 8, "self_teacher_decay": 0.9, "metric": "pseudo_huber"},
    ),
    "consistency training": (ConsistencyTraining, LEVELS | {"num_levels": 8}),
    "knowledge_distillation": (KnowledgeDistillation, {"num_pairs": 64, "teacher_steps": 4}),
    "reflow": (Reflow, {"num_pairs": 64, "teacher_steps": 4, "steps": [2, 1]}),
    "single_fold": (SingleFold, {"num_steps": 2, "fold": 4}),
    "sfddm": (SFDDM, {"num_steps": 4, "features": 0.0}),
    "sfddm with features": (SFDDM, {"num_steps": 4, "features": 1.0}),
    "lcm": (LatentConsistency, LEVELS | {"num_levels": 8}),
    "ect": (EasyConsistency, LEVELS | {"stages": 8}),
    "ect along data": (EasyConsistency, LEVELS | {"hop": "data", "stages": 8}),
    "ict": (ImprovedConsistency, LEVELS | {"first_levels": 4, "most_levels": 16}),
    "scm": (ContinuousConsistency, LEVELS | {"tangent_warmup_images": 64}),
    "meanflow": (MeanFlow, {"num_steps": 4, "power": 1.0}),
    "meanflow from data": (MeanFlowTraining, {"num_steps": 4, "w_min": 0.0, "w_max": 4.0}),
    "flow_map": (FlowMap, {"num_steps": 4, "tangent_warmup_images": 64}),
    "boot": (Boot, {"num_levels": 8}),
    "pid": (PID, {"num_levels": 20}),
    "pi_flow": (PiFlow, {"num_steps": 2, "components": 3}),
    "freeflow": (FreeFlow, {"correction": 1.0}),
    "freeflow without correction": (FreeFlow, {"correction": 0.0}),
    "o2mkd": (O2MKD, {"num_networks": 2}),
    "o2mkd by label": (O2MKD, {"num_networks": 2, "split": "label"}),
    "vdd": (VDD, EXPERTS),
    "em_mixture": (EMMixture, EXPERTS),
    "dmd2": (DMD2, LEVELS | {"fake_updates": 3}),
    "ddil": (DDIL, LADDER | STATES),
    "ddil, stochastic": (DDIL, LADDER | STATES | {"sampler": "stochastic"}),
    "lcm at other states": (
        LatentConsistency,
        LEVELS | {"num_levels": 8, "states": {"data": 0.2, "teacher": 0.5, "student": 0.3, "warmup": 0.0}},
    ),
    "dmd2 at other states": (DMD2, LEVELS | STATES | {"fake_updates": 3}),
    "add": (ADD, LEVELS | {"judge": SOFTPLUS | {"r1": 0.1}}),
    "ladd": (LADD, LEVELS | {"num_pairs": 64, "teacher_steps": 4, "judge": SOFTPLUS}),
    "progressive with judge": (Progressive, LADDER | {"judge": SOFTPLUS}),
    "consistency with judge": (
        Consistency,
        LEVELS | {"num_levels": 8, "judge": {"weight": 0.1, "real": "data", "form": "softplus"}},
    ),
    "knowledge_distillation with judge": (
        KnowledgeDistillation,
        {"num_pairs": 64, "teacher_steps": 4, "judge": SOFTPLUS},
    ),
    "dmd2 with critic": (DMD2, LEVELS | {"fake_updates": 3, "gan_weight": 0.1}),
    "dmd2 of another divergence": (DMD2, LEVELS | {"fake_updates": 3, "gan_weight": 0.1, "divergence": "js"}),
    "dmd2, decoupled": (DMD2, LEVELS | {"fake_updates": 3, "guidance_t_max": 0.6}),
    "dmd2, level by level": (DMD2, LEVELS | {"fake_updates": 3, "gan_weight": 0.1, "fake_sees_level": True}),
    "dp_dmd": (DPDMD, LEVELS | {"fake_updates": 3, "teacher_steps": 2}),
    "sid": (SiD, LEVELS | {"fake_updates": 3}),
}


def training(**changes: Any) -> Training:
    return build(Training, PLAN | changes, "stage.training")


def small(name: str, plan: dict[str, Any] | None = None, **changes: Any) -> Method:
    """The method of that name in SMALL.

    Args:
        plan: settings of its training that differ from PLAN. changes: its own settings that differ.
    """
    kind, settings = SMALL[name]
    given = {"name": name, "training": training(**{"roles": ROLES, **(plan or {})}), **settings, **changes}
    return build(kind, given, "stage")


# Networks -----------------------------------------------------------------------------------------------------------


def network(seed: int = 0, *, guidance_input: bool = False, prediction: PredictionKind = "v") -> Denoiser:
    """A small network with random weights everywhere."""
    made = ResidualMLP(
        shape=(2,), num_classes=NUM_CLASSES, width=16, num_blocks=1, embedding_dim=8, guidance_input=guidance_input
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return Denoiser(made, prediction)


def parent_of(method: Method, seed: int = 0) -> Denoiser | None:
    """A small network that can be the method's parent."""
    parent = method.parent()
    return None if parent is None else network(seed, guidance_input=parent.guidance[0] == "input")


def teacher_of(method: Method, parent: Denoiser | None) -> Denoise | None:
    """The frozen parent, guided where the method needs it so."""
    if parent is None:
        return None
    guided = not parent.has_guidance_input and method.phases()[0].sampling.guidance == "input"
    return guided_for(method, Frozen(parent)) if guided else Frozen(parent)


def guided_for(method: Method, denoise: Denoise) -> Denoise:
    """A teacher's denoiser, guided as the method wants it, by two evaluations where it does not say."""
    parent = method.parent()
    sampling = (parent and parent.teacher) or Sampling()
    return sampling.guided(denoise, NULL, styles=STYLES)


def module(
    method: Method,
    student: Denoiser | None = None,
    teacher: Denoise | None = None,
    *,
    number: int = 0,
    parent: GuidanceRange | None = WEIGHTS_0_TO_4,
    stream: str = "0/small",
) -> DistillationModule:
    """A phase of a method as a LightningModule.

    Args:
        student, teacher: small random networks by default. number: of the phase. parent: the parent's guidance range.
    """
    phase = method.phases()[number]
    if student is None:
        denoiser = parent_of(method)
        teacher, student = teacher_of(method, deepcopy(denoiser)), denoiser or network()
        if phase.sampling.guidance == "input" and not student.has_guidance_input:
            student = with_guidance_input(student)
        guidance = method.guidance(parent)
        if guidance is not None and guidance.second is not None:
            student = with_inputs(student, (W2,))
        if phase.sampling.sampler == "flow_map":
            student = with_inputs(student, (END,))
        if phase.components:
            torch.manual_seed(0)
            student = with_components(student, phase.components)
    nets = method.networks(Networks(student, teacher, SCHEDULE, method.guidance(parent)), stream)
    return DistillationModule(method=method, phase=phase, nets=nets, training=method.training, stream=stream)


# One step and one fit -----------------------------------------------------------------------------------------------


def batch(count: int = 32, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(7)
    return Batch(torch.randn(count, 2, generator=generator).to(dtype) / 2, torch.arange(count) % NUM_CLASSES)


def batch_for(method: Method, count: int = 32) -> Batch | Pairs:
    """What a training step of the method is given: `batch`, and where it trains on pairs noise and weights with it."""
    given, generator = batch(count), torch.Generator().manual_seed(8)
    if method.inputs != "pairs":
        return given
    return Pairs(*given, torch.randn(count, 2, generator=generator), 4 * torch.rand(count, generator=generator))


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """Modules without a trainer believe to be at that optimiser step."""
    with patch.object(DistillationModule, "global_step", step):
        yield


def loss(module: DistillationModule, given: Batch | None = None) -> float:
    """The loss of a step, all roles together."""
    return float(module.training_step(batch() if given is None else given, 0).detach())


@dataclass(frozen=True)
class Regressed:
    """What the loss of a `Regression` compares."""

    prediction: Prediction
    target: Prediction
    t: Tensor
    w: Tensor | None


def regression(module: DistillationModule, given: Batch | None = None) -> Regressed:
    """What a step compares."""
    seen: list[Regressed] = []

    def spy(prediction: Prediction, target: Prediction, *others: Any, **named: Any) -> Any:
        seen.append(Regressed(prediction, target, named["t"], named["w"]))
        return regress(prediction, target, *others, **named)

    regress = base.regress
    with patch.object(base, "regress", spy):
        module.training_step(batch() if given is None else given, 0)
    return seen[0]


def data_for(module: DistillationModule, batch_size: int | None = None) -> Data:
    """Batches for a fit: of the mixture, or of noise or pairs where the method needs no data."""
    size = batch_size or module.training_plan.batch_size
    if module.method.inputs != "data":
        kind = TrialPairs if module.method.inputs == "pairs" else NoiseData
        return kind(FACTS, batch_size=size, stream=module.stream)
    return MixtureData(num_classes=3, dim=2, std=0.1, num_reference=10, batch_size=size, stream=module.stream)


def fit(
    module: DistillationModule,
    *callbacks: lightning.Callback,
    batch_size: int | None = None,
    data: Data | None = None,
    max_steps: int | None = None,
    resume: str | None = None,
) -> lightning.Trainer:
    """Train a phase to its budget or to `max_steps`, going on from the checkpoint `resume`."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=max_steps or module.training_plan.num_steps,
        max_epochs=-1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data or data_for(module, batch_size), ckpt_path=resume, weights_only=True)
    return trainer


TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "precision": "32-true",
    "compile": False,
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "max_images": None,
    "checkpoint_seconds": 300,
    "log_every_images": 1000,
    "snapshots": 0,
    "snapshot_images": 1,
    "diagnostics": 0,
    "gradient_checkpointing": False,
    "channels_last": False,
    "toy": False,
    "features": "own",
    "generated_data": False,
}


def trainer_settings(**changes: Any) -> TrainerSettings:
    return build(TrainerSettings, TRAINER | changes, "trainer")


# Exact networks -----------------------------------------------------------------------------------------------------


class Nothing(nn.Module):
    """Stands where a denoiser has its network; one weight is added to the prediction."""

    def __init__(self, *, guidance_input: bool, off: float) -> None:
        super().__init__()
        self.arguments = {"guidance_input": guidance_input, "num_classes": NUM_CLASSES, "shape": [2]}
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))


class Exact(Denoiser):
    """A denoiser whose one DDIM step goes where the probability flow of `denoise` does; `off` is added to v.

    Args:
        landing: time at which a step begins -> time at which it ends; None for `denoise` itself.
    """

    def __init__(
        self,
        denoise: Denoise,
        landing: Callable[[Tensor], Tensor] | None = None,
        *,
        guidance_input: bool = True,
        off: float = 0.0,
    ) -> None:
        super().__init__(Nothing(guidance_input=guidance_input, off=off))
        self.denoise, self.landing = denoise, landing

    def predict(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any) -> Prediction:
        v = self.denoise(z, log_snr, label, w).v
        if self.landing is not None:
            there = SCHEDULE.log_snr(self.landing(SCHEDULE.time(log_snr)))
            landed = flow(self.denoise, z, log_snr=log_snr, log_snr_next=there, label=label, w=w)
            moved = invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=there).v
            v = torch.where(expand((there - log_snr).abs(), z) < 1e-6, v, moved)
        return Prediction(z=z, v=v + self.network.off, log_snr=log_snr)


@torch.no_grad()
def flow(
    denoise: Denoise,
    z: Tensor,
    *,
    log_snr: Tensor,
    log_snr_next: Tensor,
    label: Tensor,
    w: Tensor | None,
    num_steps: int = 50,
) -> Tensor:
    """`fewstep.diffusion.sampler.integrate` with times of its own for each example."""
    phi, end = angle(log_snr.double()), angle(log_snr_next.double())
    h = (end - phi) / num_steps

    def velocity(z: Tensor, phi: Tensor) -> Tensor:
        return denoise(z, -2 * phi.tan().log(), label, w).v

    def moved(z: Tensor, share: Tensor, v: Tensor) -> Tensor:
        return z + expand(share, z) * v

    for _ in range(num_steps):
        k1 = velocity(z, phi)
        k2 = velocity(moved(z, h / 2, k1), phi + h / 2)
        k3 = velocity(moved(z, h / 2, k2), phi + h / 2)
        k4 = velocity(moved(z, h, k3), phi + h)
        z, phi = moved(z, h / 6, k1 + 2 * k2 + 2 * k3 + k4), phi + h
    return z


def landing_of(sampling: Sampling) -> Callable[[Tensor], Tensor] | None:
    """Where a student goes from a time, as its card says it; None for one that follows the flow itself."""
    if sampling.times is None:
        return None
    knots = append_zero(sampling.grid())

    def landing(t: Tensor) -> Tensor:
        if sampling.sampler == "renoise":
            return torch.zeros_like(t)
        if sampling.direction == "encode":
            above = knots[None] > t[:, None] + 1e-9
            return torch.where(above, knots[None], 2.0).amin(1)
        below = (knots[None] < t[:, None] - 1e-9).double() * knots[None]
        steps = 2 if sampling.sampler == "stochastic" else 1
        return below.topk(steps, dim=1).values[:, -1]

    return landing


def chain_landing(num_steps: int, chain: str) -> Callable[[Tensor], Tensor]:
    """Where the student of `num_steps` uniform steps of a chain goes: deterministic, stochastic or encoder."""
    step = 1 / num_steps
    return {
        "deterministic": lambda t: t - step,
        "stochastic": lambda t: (t - 2 * step).clamp(min=0),
        "encoder": lambda t: t + step,
    }[chain]


def gaussian_flow(z: Tensor, label: Tensor, log_snr: Tensor, log_snr_next: Tensor) -> Tensor:
    """Where the probability flow takes z: of N(0, 0.4^2) with a class and of N(0, 0.7^2) without."""
    std = torch.where(label == NULL, 0.7, 0.4).double()
    now, then = (((alpha(at) * std) ** 2 + sigma(at) ** 2).sqrt() for at in (log_snr, log_snr_next))
    return expand(then / now, z) * z


class Perfect(nn.Module):
    """The perfect network of `num_steps` steps of a chain on these Gaussians; `kind` is how its output reads."""

    def __init__(self, num_steps: int, chain: str = "deterministic", kind: PredictionKind = "v", off: float = 0.0):
        super().__init__()
        self.arguments = {"guidance_input": True, "num_classes": NULL}
        self.landing, self.kind = chain_landing(num_steps, chain), kind
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        log_snr = -2 * (time * torch.pi / 2).tan().log()
        there = SCHEDULE.log_snr(self.landing(SCHEDULE.time(log_snr)))
        landed = gaussian_flow(z, label, log_snr, there)
        made = invert_ddim(z=z, z_next=landed, log_snr=log_snr, log_snr_next=there)
        return getattr(made, self.kind).nan_to_num() + self.off  # at t = 0 there is no jump to invert


def gaussian(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None = None) -> Prediction:
    """The exact denoiser of the Gaussians of `gaussian_flow`."""
    std = torch.where(label == NULL, 0.7, 0.4).double()
    a, s = alpha(log_snr), sigma(log_snr)
    x = expand(a * std**2 / ((a * std).square() + s.square()), z) * z
    return interpret("x", x, z=z, log_snr=log_snr)


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Copies of all weights, by name."""
    return ((name, value.detach().clone()) for name, value in module.state_dict().items())
