"""Train an adapter on a model; interrupted, the same call goes on where it stopped."""

import json
from copy import deepcopy
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import inf
from pathlib import Path

import torch

from fewstep.artifacts.adapter_file import AdapterCard, save_adapter_file
from fewstep.artifacts.run_folder import DAMAGED, LAST, PREVIOUS
from fewstep.control.examples import Examples
from fewstep.control.lessons import Lesson
from fewstep.inference.model import Model
from fewstep.methods.base import Networks
from fewstep.methods.training import Training
from fewstep.networks import Frozen
from fewstep.networks.adapter import adapter_tensors, with_adapter
from fewstep.networks.low_rank import set_strength
from fewstep.system.files import sha256_of, tensor_digest
from fewstep.system.seeds import reseed, seed_for
from fewstep.training.loop import fit, quiet_lightning
from fewstep.training.module import DistillationModule
from fewstep.training.settings import TrainerSettings
from fewstep.training.students import guidance_of

WARM_UP = 0.05  # of the budget


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """How an adapter is trained.

    Args:
        rank, alpha: of its factors; it counts alpha / rank times.
        images: budget, the examples seen. batch_size, learning_rate: of a step. seed: of all random numbers.

    Raises:
        ValueError: a value outside its range.
    """

    rank: int = 4
    alpha: float = 4.0
    images: int = 32_000
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < inf:
            raise ValueError(
                f"an adapter needs a rank of at least 1 and a positive alpha, got {self.rank}, {self.alpha}"
            )
        if not (1 <= self.batch_size <= self.images and 0 < self.learning_rate < inf):
            raise ValueError(
                "an adapter needs 1 <= batch size <= budget and a positive learning rate, got "
                f"{self.batch_size}, {self.images} and {self.learning_rate}"
            )

    @property
    def training(self) -> Training:
        """As the trainer takes it."""
        return Training(
            images=self.images,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_images=int(WARM_UP * self.images),
            gradient_clip=1.0,
            ema_decay=0.0,
            weight="snr_plus_one",
        )


def require_adaptable(model: Model) -> None:
    """Refuse a model on which no adapter is trained.

    Raises:
        ValueError: an encoder, or a network with inputs beside w.
    """
    if model.card.encodes or model.denoiser.extra_inputs:
        what = "an encoder" if model.card.encodes else f"a network that takes {', '.join(model.denoiser.extra_inputs)}"
        raise ValueError(
            f"an adapter is trained on a model of z, t, condition and w, and this is {what}; use its teacher"
        )


def train_adapter(model: Model, path: Path, lesson: Lesson, plan: AdapterPlan, out: Path) -> AdapterCard:
    """Train an adapter on the model at `path` and write it to `out`; what interrupts it leaves a checkpoint beside it.

    Raises:
        ValueError: see `Lesson.method` and `fewstep.training.loop.fit`, whose errors are these.
        Stopped: a signal asked for it; the checkpoint is of that step.
    """
    base, training = model.denoiser, plan.training
    method = lesson.method(training)
    card = AdapterCard(
        kind=lesson.kind,
        about=lesson.about,
        data=model.card.data.name,
        network=type(base.network).__name__,
        base_method=model.card.label,
        base_sha256=sha256_of(path),
        rank=plan.rank,
        alpha=plan.alpha,
        eta=lesson.eta,
        images=training.num_steps * training.batch_size,
        seed=plan.seed,
    )
    parts = {f"{name} {number}": v for number, part in enumerate(lesson.parts) for name, v in part._asdict().items()}
    settings = [asdict(card), asdict(plan), tensor_digest(parts)]
    stream = f"adapter/{sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    reseed(seed_for(stream, "init"), torch.device("cpu"))
    student = with_adapter(deepcopy(base).cpu(), plan.rank, plan.alpha)
    nets = Networks(student, Frozen(base), model.card.schedule, guidance_of(model.card))
    module = DistillationModule(method=method, phase=method.phases()[0], nets=nets, training=training, stream=stream)
    data = Examples(lesson.parts, model.card.data, batch_size=plan.batch_size, stream=stream)
    folder = out.with_name(f"{out.stem}-training")
    quiet_lightning()
    fit(module, data, folder, trainer_settings(), parent_sha256=card.base_sha256, loggers=[], watchers=[])
    set_strength(student, 1.0)
    save_adapter_file(out, adapter_tensors(student), card)
    for name in (LAST, PREVIOUS, DAMAGED):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):  # else it holds something of the user's
        folder.rmdir()
    return card


def trainer_settings() -> TrainerSettings:
    """One process, on a GPU where there is one, without pictures and diagnostics."""
    return TrainerSettings(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        precision="32-true",
        compile=False,
        devices=1,
        num_nodes=1,
        strategy="auto",
        max_images=None,
        checkpoint_seconds=120,
        log_every_images=25_600,
        snapshots=0,
        snapshot_images=1,
        diagnostics=0,
        gradient_checkpointing=False,
        channels_last=False,
        toy=False,
        features="auto",
        generated_data=False,
    )
