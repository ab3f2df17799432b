"""Students of the exact mixture that are perfect, or wrong in one known way.

(PYTEST_DONT_REWRITE: imported by the tests beside it.)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.data.batches import Batch
from fewstep.data.mixture import MixtureData
from fewstep.diagnostics.probe import Probe, Starts
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Condition, Denoise, Prediction, interpret
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.methods import EncoderStage, GuidanceRange, GuidanceStage, ProgressiveStage, Stage, TeacherStage, Training
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.system.seeds import starting_noise

SCHEDULE = CosineSchedule()
DATA = MixtureData(num_classes=3, dim=2, std=0.1, num_reference=10, batch_size=256, stream="probe")
MIXTURE = DATA.exact
assert MIXTURE is not None
EXACT = Guided(MIXTURE.denoise, 3)
PLAN = {
    "images": 640,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "warmup_images": 64,
    "gradient_clip": 1.0,
    "ema_decay": 0.0,
    "weight": "truncated_snr",
}


def network() -> Denoiser:
    made = ResidualMLP(shape=(2,), num_classes=3, width=16, num_blocks=1, embedding_dim=8, guidance_input=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return Denoiser(made)


def guidance_stage(student: Denoiser | None = None, **plan: float) -> GuidanceStage:
    return GuidanceStage(
        student=student or network(),
        teacher=EXACT,
        schedule=SCHEDULE,
        training=Training(**PLAN | plan),
        stream="0/guidance",
        w_min=0.0,
        w_max=4.0,
    )


def rung(num_steps: int, sampler: str = "deterministic", student: Denoiser | None = None) -> ProgressiveStage:
    return ProgressiveStage(
        student=student or network(),
        teacher=EXACT,
        schedule=SCHEDULE,
        training=Training(**PLAN),
        stream=f"0/progressive/{num_steps}",
        num_steps=num_steps,
        w_min=0.0,
        w_max=4.0,
        sampler=sampler,
    )


def encoder(num_steps: int) -> EncoderStage:
    return EncoderStage(
        student=network(),
        teacher=EXACT,
        schedule=SCHEDULE,
        training=Training(**PLAN),
        stream=f"0/encoder/{num_steps}",
        num_steps=num_steps,
        w_min=0.0,
        w_max=4.0,
    )


def teacher_stage() -> TeacherStage:
    torch.manual_seed(0)
    return TeacherStage(
        student=Denoiser(ResidualMLP(shape=(2,), num_classes=3, width=16, num_blocks=1, embedding_dim=8)),
        schedule=SCHEDULE,
        training=Training(**PLAN),
        stream="0/teacher",
        label_dropout=0.1,
    )


def probe_of(stage: Stage) -> Probe:
    x, label = DATA.batch(0)
    guidance: GuidanceRange | None = getattr(stage, "guidance", None)
    return Probe.of(Batch(x.double(), label), stage.times, guidance, 3, torch.Generator().manual_seed(0))


def starts_of(stage: Stage) -> Starts:
    guidance: GuidanceRange | None = getattr(stage, "guidance", None)
    return Starts.of(DATA.conditions, 3, guidance, lambda count: starting_noise(0, 0, count, (2,)).double())


def perfect(stage: Stage) -> Denoise:
    """Says what the stage teaches, at any time."""

    def denoise(z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None) -> Prediction:
        return stage.target(Prediction(z, z, log_snr), SCHEDULE.time(log_snr), label, w)

    return denoise


def spoilt(denoise: Denoise, where: Callable[[Tensor, Tensor | None], Tensor], by: float = 0.5) -> Denoise:
    """`denoise`, `by` added to its v where (t, w) says so."""

    def wrong(z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None) -> Prediction:
        said = denoise(z, log_snr, label, w)
        return Prediction(z, said.v + by * where(SCHEDULE.time(log_snr), w).to(z)[:, None], log_snr)

    return wrong


class Says(Denoiser):
    """A student that says what `denoise` says; it has a weight, which changes nothing."""

    def __init__(self, denoise: Denoise) -> None:
        network = nn.Linear(1, 1)
        network.arguments = {"num_classes": 3, "guidance_input": True}
        super().__init__(network)
        self.denoise = denoise

    def forward(self, z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None = None) -> Prediction:
        said = self.denoise(z, log_snr, label, w)
        return Prediction(z, said.v + 0 * self.network.weight.sum(), log_snr)


def times(denoise: Denoise, gain: float) -> Denoise:
    """`denoise`, its x multiplied."""

    def louder(z: Tensor, log_snr: Tensor, label: Condition, w: Tensor | None) -> Prediction:
        return interpret("x", gain * denoise(z, log_snr, label, w).x, z=z, log_snr=log_snr)

    return louder
