"""The candidates of a grid: the teacher is guided in the interval of its student."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.artifacts.model_file import Ancestor, ModelCard
from fewstep.data.facts import DataFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.inference.model import Model
from fewstep.networks import Denoiser
from fewstep.networks.backbones.mlp import ResidualMLP
from fewstep.runs.candidates import candidates_of, labels_of, with_hybrids

FACTS = DataFacts(name="points", shape=(2,), num_classes=3, low=-2.0, high=2.0)
PLAN = EvaluationPlan(num_images=4, w=(1.0,), baselines=())


def model(method: str, schedule: CosineSchedule | BetaSchedule, interval: tuple[float, float] | None) -> Model:
    student = method == "guidance"
    w = (0.0, 4.0) if student else (None, None)
    card = ModelCard(
        method=method,
        data=FACTS,
        prediction="v",
        schedule=schedule,
        sampling=Sampling(guidance="input" if student else "two_evaluations"),
        w_min=w[0],
        w_max=w[1],
        images=0,
        parents=(),
        native_schedule=BetaSchedule(),
        guidance_interval=interval,
    )
    network = ResidualMLP(shape=[2], num_classes=3, width=8, num_blocks=1, embedding_dim=4, guidance_input=student)
    return Model(Denoiser(network, "v", BetaSchedule()), card)


def test_a_teacher_is_guided_in_the_times_of_its_students_schedule() -> None:
    """A student with zero_terminal_snr=true lives on another schedule than its foreign teacher."""
    models = {
        Path("teacher"): model("teacher", BetaSchedule(), None),
        Path("guided"): model("guidance", CosineSchedule(), (0.25, 0.75)),
    }
    teacher = candidates_of(models, PLAN, None)[0]
    assert teacher.model == "teacher"
    assert isinstance(teacher.denoise, Guided)
    highest, lowest = CosineSchedule().log_snr(torch.tensor([0.25, 0.75])).tolist()
    assert teacher.denoise.interval == (lowest, highest)


def test_a_methods_student_of_any_steps_is_told_from_the_guided_one_it_was_made_from() -> None:
    """Whatever the order of the files; two runs of one method have their runs' names."""
    guided, own = model("guidance", CosineSchedule(), None), model("guidance", CosineSchedule(), None)
    ancestor = Ancestor(method="guidance", path="../guided/model", sha256="0")
    own = replace(own, card=replace(own.card, method="refine", parents=(ancestor,)))
    files = {Path("refine/model"): own, Path("guided/model"): guided}
    assert labels_of(files) == {Path("refine/model"): "refine", Path("guided/model"): "guided"}
    again = {Path("one/model"): guided, Path("two/model"): guided}
    assert labels_of(again) == {Path("one/model"): "guided one", Path("two/model"): "guided two"}


def test_hybrids_stand_behind_students_of_two_steps_or_more() -> None:
    """The base's evaluations count, the student's first step does not; at w = 0 the teacher needs one a step."""
    models = {
        Path("teacher"): model("teacher", CosineSchedule(), None),
        Path("guided"): model("guidance", CosineSchedule(), None),
    }
    teacher, guided = candidates_of(models, replace(PLAN, teacher_steps=(64,), guided_steps=(4,)), None)
    student = replace(guided, model="tract", sampling=Sampling.uniform(4, guidance="input"), steps=(4,))
    levels = Sampling("renoise", (1.0, 0.75, 0.5, 0.25), "input")
    renoising = replace(guided, model="lcm", sampling=levels, steps=(4, 2, 1))
    one = replace(guided, model="pid", sampling=Sampling.uniform(1, guidance="input"), steps=(1,))
    plan = replace(PLAN, base_steps=3)
    found = with_hybrids([teacher, guided, student, renoising, one], plan)
    assert [(each.name, each.steps) for each in found if each.first] == [("tract + base", (4,)), ("lcm + base", (4, 2))]
    assert [each.name for each in found if not each.first] == ["teacher", "guided", "tract", "lcm", "pid"]
    hybrid = found[5]
    assert (hybrid.nfe(4), hybrid.nfe(2), student.nfe(4), teacher.nfe(64)) == (6, 4, 4, 128)
    strong = with_hybrids([teacher, student], replace(plan, base_w=1.0))[2]
    assert strong.nfe(4) == 9
    assert strong.sampler_name == "base + ddim"
    with pytest.raises(ValueError, match=r"stage\.base_steps=3 needs a teacher"):
        with_hybrids([student, renoising], plan)
