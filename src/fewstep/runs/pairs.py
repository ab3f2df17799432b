"""The pairs of a phase that trains on them: how many its budget pays for, and their making by the phase's teacher."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.data.noise import require_classes
from fewstep.data.pairs import Conditions, PairData, PairStore, bytes_per_pair, whole_shards
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import Images, uniform_times
from fewstep.methods.from_pairs import FromPairs
from fewstep.training.module import DistillationModule

FOLDER = "pairs"  # below the run's
SHARE = 0.5  # of a budget in network evaluations: the most that making pairs takes


@dataclass(frozen=True)
class Making:
    """What is made before a phase: so many pairs, which cost so many network evaluations."""

    num_pairs: int = 0
    evaluations: int = 0

    @classmethod
    def of(cls, module: DistillationModule, facts: DataFacts, max_images: int | None) -> "Making":
        """As many pairs as the method wants, its budget pays for and `max_images` allows.

        Raises:
            ValueError: conditions are prompts, or have two guidance weights.
        """
        method, phase = module.method, module.phase
        if not isinstance(method, FromPairs):
            return cls()
        if facts.degraded is None:
            require_classes(facts)
        if module.nets.guidance is not None and module.nets.guidance.second is not None:
            raise ValueError(
                f"stage={method.name} makes pairs at one guidance weight, and this student has one for its class and "
                "one for its style; use a method that trains on data, like stage=progressive"
            )
        assert phase.teacher_steps is not None, "a sample takes the teacher some steps"
        per_pair = phase.teacher_steps * evaluations_per_call(module, facts)
        most, budget = min(method.num_pairs, max_images or method.num_pairs), method.training.evaluations
        if budget is not None and per_pair:
            share = SHARE * budget * phase.budget / sum(each.budget for each in method.phases())
            most = max(1, min(most, int(share / per_pair)))
        most = whole_shards(most)
        return cls(most, most * per_pair)

    def bytes(self, facts: DataFacts) -> int:
        """On disk."""
        return self.num_pairs * bytes_per_pair(facts)


def evaluations_per_call(module: DistillationModule, facts: DataFacts) -> int:
    """Network evaluations of the teacher for one example; a closed form has none."""
    teacher, before = module.nets.teacher, module.evaluated
    assert teacher is not None, "a student has a teacher"
    z = torch.zeros(1, *facts.shape)
    label = torch.zeros(1, dtype=torch.long) if facts.degraded is None else z
    teacher(z, z.new_zeros(1), label, z.new_zeros(1))
    return module.evaluated - before


def open_pairs(
    module: DistillationModule,
    making: Making,
    *,
    facts: DataFacts,
    conditions: Conditions | None,
    teacher: str,
    seed: int,
    folder: Path,
    batch_size: int,
    device: str,
) -> PairData:
    """The pairs of a phase as its training batches; the teacher makes what is missing.

    Args:
        conditions: of each shard, where they are degraded images.
        teacher: what identifies it, the digest of its file. seed: of the run. folder: of the run.

    Raises:
        ValueError: conditions are prompts, or the store is of another teacher or damaged.
    """
    method, nets, phase = module.method, module.nets, module.phase
    assert isinstance(method, FromPairs), "a method of pairs says how many"
    guidance = nets.guidance
    origin: dict[str, Any] = {
        "teacher": teacher,
        "teacher_steps": phase.teacher_steps,
        "clip_target": method.clip_target,
        "schedule": repr(nets.schedule),
        "w": guidance and {name: value for name, value in asdict(guidance).items() if name != "second"},
    }
    root = folder / FOLDER if method.store is None else Path(method.store)
    store = PairStore(
        root / str(phase.num_steps),
        facts,
        making.num_pairs,
        f"{seed}/{phase.num_steps}",
        torch.zeros_like if guidance is None else guidance.quantile,
        origin,
        conditions,
    )
    data = PairData(store, batch_size=batch_size, stream=module.stream)
    store.fill(partial(samples, module), device)
    return data


def samples(module: DistillationModule, noise: Images, label: Tensor, w: Tensor) -> Images:
    """The teacher's samples, by its steps of DDIM."""
    nets, steps = module.nets, module.phase.teacher_steps
    assert steps is not None, "a sample takes the teacher some steps"
    return sample(nets.frozen_teacher, noise, schedule=nets.schedule, times=uniform_times(steps), label=label, w=w)
