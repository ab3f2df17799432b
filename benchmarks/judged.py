"""Students of `python train.py sweeps=methods` of one seed, judged beside their teacher from any noise."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewstep.artifacts.lineage import models_in_folder
from fewstep.artifacts.quality_file import QualityRow
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.grid import quality_grid
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.evaluation.protocol import Protocol
from fewstep.runs.build import data_of
from fewstep.runs.candidates import candidates_of
from fewstep.runs.evaluate import protocol_of, with_ancestors
from fewstep.system.files import sha256_of

TEACHER_STEPS, STEPS = 64, (4, 2, 1)
WEIGHTS = (0.0, 1.0, 2.0, 4.0)


class Students:
    """The students of some methods with one seed of training.

    Raises:
        SystemExit: the sweep has none of that seed.
    """

    def __init__(self, sweep: Path, dataset: str, methods: Sequence[str], seed: int) -> None:
        self.data = data_of(dataset, [], batch_size=1)
        self.evaluator = Evaluator.of(self.data)
        folders = [sweep / dataset / method / f"seed={seed},method={method}" for method in methods]
        files = [path for folder in folders for path in models_in_folder(folder)]
        if not files:
            raise SystemExit(f"{sweep} has no students of seed {seed}")
        self.models = with_ancestors(files)
        self.digests = {path: sha256_of(path) for path in self.models}

    def candidates(self, plan: EvaluationPlan) -> tuple[Candidate, list[Candidate]]:
        """The teacher, and those with a number of steps among STEPS."""
        teacher, *others = candidates_of(self.models, plan, self.evaluator.exact, digests=self.digests)
        chosen = [replace(each, steps=tuple(n for n in each.steps if n in STEPS)) for each in others]
        return teacher, [each for each in chosen if each.steps]

    def protocol(self, plan: EvaluationPlan, teacher: Candidate) -> Protocol:
        return protocol_of(self.evaluator, plan, teacher)

    def judge(self, candidates: Sequence[Candidate], plan: EvaluationPlan, samples: Path) -> list[QualityRow]:
        """Their rows, the first one being the teacher. samples: folder where those of teachers are kept."""
        rows = []
        for row in quality_grid(
            candidates,
            plan,
            facts=self.evaluator.facts,
            net=self.evaluator.net,
            reference_statistics=self.evaluator.reference_statistics,
            protocol=self.protocol(plan, candidates[0]),
            labels=self.data.conditions(plan.num_images),
            exact=self.evaluator.exact,
            folder=samples,
        ):
            print(f"noise {plan.seed}: {row.name}, {row.steps} steps, w = {row.w:g}", flush=True)
            rows.append(row)
        return rows
