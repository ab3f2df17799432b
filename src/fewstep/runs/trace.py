"""Traces as files and pictures: of an evaluation's models, or of one model beside its teacher."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger
from PIL import Image

from fewstep.artifacts.pictures import film, save_png
from fewstep.artifacts.trace_file import FILMS, TRACE
from fewstep.diffusion.prediction import Condition
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.evaluator import Evaluator
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.evaluation.trace import Trace, traces_of, with_several_steps
from fewstep.reports.traces import trace_picture
from fewstep.system.files import write_json
from fewstep.tracking.names import TRACE_PICTURE
from fewstep.tracking.tracker import log_picture, trackers


def write_traces(
    candidates: Sequence[Candidate],
    plan: EvaluationPlan,
    evaluator: Evaluator,
    folder: Path,
    loggers: Sequence[Logger],
    device: str,
) -> None:
    """Write trace.json and a film of each model of several steps, at w = 1 or the first of the plan, and log them.

    Nothing where no student has several steps, or for fewer than two images.
    """
    asked, count = with_several_steps(candidates), min(plan.trace_images, plan.num_images)
    if len(asked) < 2 or count < 2:
        return
    labels, w = evaluator.data.conditions(count), 1.0 if 1.0 in plan.w else plan.w[0]
    found = traces_of(
        asked,
        labels,
        w=w,
        seed=plan.seed,
        facts=evaluator.facts,
        net=evaluator.net,
        decode=evaluator.data.decode,
        device=device,
    )
    write_json(folder / TRACE, [trace.curve._asdict() for trace in found])
    films = films_of(found, labels, evaluator)
    for trace, own in zip(found, films, strict=True):
        save_png(own, folder / FILMS / f"{trace.curve.name}.png")
    if any(trackers(loggers)):
        log_picture(loggers, TRACE_PICTURE, trace_picture([trace.curve for trace in found], films), images=0)


def films_of(traces: Sequence[Trace], labels: Condition, evaluator: Evaluator) -> list[Image.Image]:
    """The predicted images of each trace, step by step; prompts have no colours."""
    classes = torch.zeros(len(labels), dtype=torch.long) if labels.is_floating_point() else labels
    return [film(trace.frames, classes, evaluator.facts.pixels) for trace in traces]
