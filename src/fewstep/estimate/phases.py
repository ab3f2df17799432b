"""A phase as a run would train it: its networks, from a parent of which only the shapes are known, and its cost."""

from dataclasses import dataclass

import torch

from fewstep.artifacts.model_file import ModelCard
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.data.noise import NoiseData
from fewstep.diagnostics.probe import NUM_EXAMPLES, NUM_SAMPLES
from fewstep.diagnostics.steps import NUM_COMPARED, path_grid
from fewstep.diffusion.sampling import Sampling
from fewstep.inference.model import Model
from fewstep.methods.base import Networks, Parent, Phase
from fewstep.methods.training import Training
from fewstep.networks import Denoiser
from fewstep.networks.denoiser import arguments_of
from fewstep.runs.build import (
    build_data,
    build_exact_teacher,
    build_fresh_student,
    build_network,
    build_student,
    build_teacher,
    guidance_of,
    schedule_of,
)
from fewstep.runs.config import Settings
from fewstep.runs.train import SNAPSHOT_STEPS, Job
from fewstep.training.module import DistillationModule

STREAM = "plan"
LARGEST_W = 1000.0  # of a parent that is not there yet: more than any student asks for


def fresh_copy(denoiser: Denoiser) -> Denoiser:
    """The same network with new weights, on torch's default device."""
    network = type(denoiser.network)(**arguments_of(denoiser.network))
    return Denoiser(network, denoiser.prediction, denoiser.native_schedule)


def shape_of(denoiser: Denoiser, card: ModelCard) -> Model:
    """A model without its weights, on which neither memory nor time depends."""
    with torch.device("meta"):
        return Model(fresh_copy(denoiser), card)


def fresh_parent(settings: Settings, facts: DataFacts, wanted: Parent) -> Model:
    """A parent of the kind that a method needs first, with the network of the settings."""
    sampling = Sampling(guidance=wanted.guidance[0])
    with torch.device("meta"):
        denoiser = build_network(settings, facts, guidance_input=sampling.guidance == "input")
    card = ModelCard(
        method="fresh",
        data=facts,
        prediction=denoiser.prediction,
        schedule=schedule_of(settings, denoiser),
        native_schedule=denoiser.native_schedule,
        sampling=sampling,
        w_min=0.0 if denoiser.has_guidance_input else None,
        w_max=LARGEST_W if denoiser.has_guidance_input else None,
        images=0,
        parents=(),
    )
    return Model(denoiser, card)


def build_module(
    job: Job, phase: Phase, parent: Model | None, training: Training, *, is_first: bool
) -> DistillationModule:
    """What trains the phase; the weights of its parent are new ones."""
    settings, method, guidance = job.settings, job.method, None
    if parent is None:
        assert job.source is not None, "a network from nothing has data to train on"
        wants_w = phase.sampling.guidance == "input" and method.parent() is not None
        denoiser = build_fresh_student(settings, job.source, guidance_input=wants_w)
        teacher = None if method.parent() is None else build_exact_teacher(settings, method, job.source)
    else:
        denoiser, guidance = fresh_copy(parent.denoiser), guidance_of(parent.card)
        teacher = build_teacher(settings, method, phase, denoiser, parent.card.sampling, job.facts)
    student = build_student(settings, method, phase, denoiser, is_first=is_first, stream=STREAM)
    nets = Networks(student, teacher, schedule_of(settings, student), method.guidance(guidance))
    nets = method.networks(nets, STREAM)
    return DistillationModule(method=method, phase=phase, nets=nets, training=training, stream=STREAM)


def training_data(job: Job, batch_size: int) -> Data:
    """The batches of a phase."""
    if job.method.inputs == "noise":
        return NoiseData(job.facts, batch_size=batch_size, stream=STREAM)
    return build_data(job.settings, batch_size, STREAM)


@dataclass(frozen=True)
class Watching:
    """What snapshots and diagnostics evaluate in a phase.

    Attributes:
        images: of all snapshots; at_once: of one. steps: of their sampler.
        records: of diagnostics. path: steps of the samples that each follows.
    """

    images: int = 0
    at_once: int = 0
    steps: int = 0
    records: int = 0
    path: int = 0

    @classmethod
    def of(cls, job: Job, phase: Phase, training: Training) -> "Watching":
        """Nothing without data; encoders have no snapshots."""
        trainer, sampling, most = job.settings.trainer, phase.sampling, training.num_steps
        if job.evaluator is None:
            return cls()
        snapshots = min(trainer.snapshots, most) if sampling.direction == "decode" else 0
        return cls(
            images=snapshots * trainer.snapshot_images,
            at_once=trainer.snapshot_images if snapshots else 0,
            steps=len(sampling.times) if sampling.times else SNAPSHOT_STEPS,
            records=min(trainer.diagnostics, most) + 1 if trainer.diagnostics else 0,
            path=len(path_grid(sampling).jump_ends),
        )

    def probed(self, evaluations: float) -> float:
        """Network evaluations for all records; `evaluations` of an example by the student and for its target."""
        compared = NUM_EXAMPLES + self.path * NUM_COMPARED
        return self.records * (compared * evaluations + self.path * NUM_SAMPLES)
