"""Phases of several methods on the exact mixture, and students of it that are perfect, or wrong in one known way.

(PYTEST_DONT_REWRITE: imported by the tests beside it.)
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.data.mixture import MixtureData
from fewstep.diagnostics.probe import Probe, Starts
from fewstep.diagnostics.steps import Paths
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Condition, Denoise, Prediction, interpret
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.methods import (
    DMD2,
    Consistency,
    Encoder,
    Guidance,
    GuidanceRange,
    Method,
    Networks,
    Progressive,
    Teacher,
    Tract,
    Training,
)
from fewstep.methods.training import RoleTraining
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.system.seeds import fresh_noise, starting_noise
from fewstep.training.module import DistillationModule

SCHEDULE = CosineSchedule()
DATA = MixtureData(num_classes=3, dim=2, std=0.1, num_reference=10, batch_size=256, stream="probe")
MIXTURE = DATA.exact
assert MIXTURE is not None
EXACT = Guided(MIXTURE.denoise, 3)
TRAINING = Training(
    images=640,
    batch_size=32,
    learning_rate=3e-3,
    warmup_images=64,
    gradient_clip=1.0,
    ema_decay=0.0,
    weight="truncated_snr",
)
RANGE = GuidanceRange(0.0, 4.0)


def network(*, guidance_input: bool = True) -> Denoiser:
    made = ResidualMLP(
        shape=(2,), num_classes=3, width=16, num_blocks=1, embedding_dim=8, guidance_input=guidance_input
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return Denoiser(made)


def module_of(method: Method, student: Denoiser | None = None, teacher: Denoise | None = EXACT) -> DistillationModule:
    """The first phase of a method."""
    phase, stream = method.phases()[0], f"0/{method.name}"
    nets = Networks(student or network(), teacher, SCHEDULE, method.guidance(RANGE))
    return DistillationModule(
        method=method, phase=phase, nets=method.networks(nets, stream), training=method.training, stream=stream
    )


def guidance(student: Denoiser | None = None, training: Training = TRAINING) -> DistillationModule:
    return module_of(Guidance(name="guidance", training=training, w_min=0.0, w_max=4.0), student)


def rung(num_steps: int, sampler: str = "deterministic", student: Denoiser | None = None) -> DistillationModule:
    method = Progressive(
        name="progressive",
        training=TRAINING,
        ladder=[2 * num_steps, num_steps],
        few_steps=0,
        few_steps_factor=1.0,
        sampler=sampler,
    )
    return module_of(method, student)


def encoder(num_steps: int) -> DistillationModule:
    method = Encoder(
        name="encoder",
        training=TRAINING,
        ladder=[2 * num_steps, num_steps],
        few_steps=0,
        few_steps_factor=1.0,
        w_min=0.0,
        w_max=4.0,
    )
    return module_of(method)


def teacher() -> DistillationModule:
    torch.manual_seed(0)
    student = Denoiser(ResidualMLP(shape=(2,), num_classes=3, width=16, num_blocks=1, embedding_dim=8))
    return module_of(Teacher(name="teacher", training=TRAINING, label_dropout=0.1), student, None)


def tract() -> DistillationModule:
    return module_of(Tract(name="tract", training=TRAINING, time_schedule=[16, 4]))


def consistency() -> DistillationModule:
    return module_of(Consistency(name="consistency", training=TRAINING, num_levels=8, levels=[1.0, 0.5]))


def consistency_training() -> DistillationModule:
    method = Consistency(name="consistency", training=TRAINING, num_levels=8, levels=[1.0, 0.5]).without_teacher()
    return module_of(method, network(guidance_input=False), None)


def dmd2(gan_weight: float = 0.0, student: Denoiser | None = None, fake_updates: int = 2) -> DistillationModule:
    """A method without a target: two roles and no data, or three and data where there is a critic."""
    roles = {"fake": RoleTraining(3e-3, gradient_clip=0.5), "critic": RoleTraining(3e-3)}
    method = DMD2(
        name="dmd2",
        training=replace(TRAINING, roles=roles),
        levels=[1.0, 0.75, 0.5, 0.25],
        fake_updates=fake_updates,
        gan_weight=gan_weight,
    )
    return module_of(method, student)


def probe_of(module: DistillationModule) -> Probe:
    x, label = DATA.batch(0)
    null = 3 if module.phase.sampling.guidance == "two_evaluations" else None
    examples, times = Batch(x.double(), label), module.method.times(module.phase)
    return Probe.of(examples, times, module.nets.guidance, null, torch.Generator().manual_seed(0))


def starts_of(module: DistillationModule) -> Starts:
    noise = lambda count: starting_noise(0, 0, count, (2,)).double()  # noqa: E731
    return Starts.of(DATA.conditions, 3, module.nets.guidance, noise)


def paths_of(module: DistillationModule, rows: int = 64, starts: Starts | None = None) -> Paths:
    return Paths(module, starts or starts_of(module), lambda start, count: fresh_noise(0, start, count, (2,)), rows)


def perfect(module: DistillationModule) -> Denoise:
    """Predicts the method's target, at any time."""

    def denoise(z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None) -> Prediction:
        noised, t = Prediction(z, z, log_snr), SCHEDULE.time(log_snr)
        target = module.method.target(noised, t=t, label=label, w=w, nets=module.nets, phase=module.phase)
        assert target is not None
        return target

    return denoise


def spoilt(denoise: Denoise, where: Callable[[Tensor, Tensor | None], Tensor], by: float = 0.5) -> Denoise:
    """`denoise`, `by` added to its v where (t, w) says so."""

    def wrong(z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None) -> Prediction:
        right = denoise(z, log_snr, label, w)
        return Prediction(z, right.v + by * where(SCHEDULE.time(log_snr), w).to(z)[:, None], log_snr)

    return wrong


class Replaced(Denoiser):
    """A student that predicts what `denoise` does; it has a weight, which changes nothing."""

    def __init__(self, denoise: Denoise) -> None:
        network = nn.Linear(1, 1)
        network.arguments = {"num_classes": 3, "guidance_input": True}
        super().__init__(network)
        self.denoise = denoise

    def forward(self, z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None = None) -> Prediction:
        prediction = self.denoise(z, log_snr, label, w)
        return Prediction(z, prediction.v + 0 * self.network.weight.sum(), log_snr)


def times(denoise: Denoise, gain: float) -> Denoise:
    """`denoise`, its x multiplied."""

    def louder(z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None) -> Prediction:
        return interpret("x", gain * denoise(z, log_snr, label, w).x, z=z, log_snr=log_snr)

    return louder
