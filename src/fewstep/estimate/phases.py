"""A phase as a run would train it: its networks, from a parent of which only the shapes are known, and its cost."""

from dataclasses import dataclass

import torch

from fewstep.artifacts.model_file import ModelCard
from fewstep.data.facts import DataFacts
from fewstep.diagnostics.probe import NUM_EXAMPLES, NUM_SAMPLES
from fewstep.diagnostics.steps import NUM_COMPARED, path_grid
from fewstep.diffusion.sampling import Sampling
from fewstep.inference.model import Model
from fewstep.methods.base import Networks, Parent, Phase
from fewstep.methods.training import Training
from fewstep.networks import Denoiser
from fewstep.networks.denoiser import arguments_of
from fewstep.runs.build import (
    build_exact_teacher,
    build_fresh_student,
    build_network,
    build_student,
    build_teacher,
    schedule_of,
)
from fewstep.runs.config import Settings
from fewstep.runs.train import SNAPSHOT_STEPS, Job
from fewstep.training.module import DistillationModule
from fewstep.training.students import clip_bounds, inherited_guidance

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
        denoiser, guidance = fresh_copy(parent.denoiser), inherited_guidance(parent.card, phase)
        teacher = build_teacher(settings, method, phase, denoiser, parent.card.sampling, job.facts)
    own = method.guidance(guidance)
    student = build_student(settings, method, phase, denoiser, own, is_first=is_first, stream=STREAM)
    nets = Networks(student, teacher, schedule_of(settings, student), own, clip_bounds(method, job.facts))
    nets = method.networks(nets, STREAM)
    return DistillationModule(method=method, phase=phase, nets=nets, training=training, stream=STREAM)


@dataclass(frozen=True)
class Watching:
    """What is evaluated besides training: images of all snapshots, images of one, and records of diagnostics.

    Nothing without data; encoders have no snapshots.
    """

    images: int
    at_once: int
    records: int

    @classmethod
    def of(cls, job: Job, phase: Phase, training: Training) -> "Watching":
        trainer, most = job.settings.trainer, training.num_steps
        if job.evaluator is None:
            return cls(0, 0, 0)
        snapshots = min(trainer.snapshots, most) if phase.sampling.direction == "decode" else 0
        records = min(trainer.diagnostics, most) + 1 if trainer.diagnostics else 0
        return cls(snapshots * trainer.snapshot_images, trainer.snapshot_images if snapshots else 0, records)

    def sampled(self, sampling: Sampling) -> int:
        """Network evaluations for all snapshots."""
        return self.images * (len(sampling.times) if sampling.times else SNAPSHOT_STEPS) * sampling.evaluations

    def probed(self, sampling: Sampling, evaluations: float) -> float:
        """Network evaluations for all records; `evaluations` of an example by the student and for its target."""
        steps = len(path_grid(sampling).jump_ends)
        return self.records * ((NUM_EXAMPLES + steps * NUM_COMPARED) * evaluations + steps * NUM_SAMPLES)
