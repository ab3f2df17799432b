"""fewstep trace: when a model decides what its image shows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands import requests, tasks
from fewstep.commands.base import opened_model
from fewstep.commands.files import check_file
from fewstep.commands.models import OUTPUTS, ModelFile, Outputs
from fewstep.system.limits import MOST_SHOWN, require_count

if TYPE_CHECKING:
    from fewstep.diffusion.mixture import GaussianMixture
    from fewstep.evaluation.candidate import Candidate
    from fewstep.inference.model import Model


def check_png(out: Path) -> Path:
    """Refuse a file to write that is no .png."""
    return check_file(out, ".png")


def trace(
    model: ModelFile,
    out: Annotated[Path, typer.Option(callback=check_png, help="FILE.png: filmstrips, and charts below them.")],
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="TEACHER", help="The model beside it; default: the teacher that it was made from."),
    ] = None,
    steps: tasks.Steps = None,
    teacher_steps: Annotated[int, typer.Option(help="Steps of the teacher.")] = 64,
    w: tasks.Weight = None,
    label: Annotated[int | None, typer.Option(help="Class of every image; default: all classes in turn.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What a model of text shall make; repeat for several, taken in turn.")
    ] = None,
    num: Annotated[int, typer.Option(help="Number of images, 2 or more.")] = 6,
    seed: tasks.Seed = 0,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Draw the image that a model predicts at every step, teacher beside student, and its distance to the final one.

    Example: fewstep trace outputs/digits/progressive/TIME/model-4.safetensors --w 2 --out trace.png
    """
    require_count(num, "--num", least=2, most=MOST_SHOWN)  # the distance of two images is the unit of the chart
    import torch

    import fewstep
    from fewstep.artifacts.pictures import film, save_png, shown_steps
    from fewstep.evaluation.extractors import build_feature_extractor
    from fewstep.evaluation.trace import traces_of
    from fewstep.reports.traces import trace_picture
    from fewstep.runs.build import REFERENCE_CACHE
    from fewstep.runs.model_data import data_of_model

    loaded = fewstep.load(model)
    facts, w = loaded.card.data, requests.chosen_w(loaded, w)
    steps = loaded.default_steps if steps is None else steps
    loaded.check_request(steps, w)
    requested = requests.requested_conditions(loaded, label, prompt or [], num)
    condition = loaded.condition(requested)
    try:
        data = data_of_model(model, facts, [])
    except (ValueError, OSError):
        data = None  # most feature extractors do without
    exact = None if data is None else data.exact
    asked = beside_teacher(model, loaded, teacher, steps, teacher_steps, exact)
    net = build_feature_extractor(facts.pixels, mixture=exact, data=data, folder=outputs / REFERENCE_CACHE)
    found = traces_of(asked, condition, w=w, seed=seed, facts=facts, net=net, decode=loaded.decode)
    classes = torch.zeros(num, dtype=torch.long) if condition.is_floating_point() else condition
    curves = [own.curve for own in found]
    save_png(trace_picture(curves, [film(own.frames, classes, facts.pixels) for own in found]), out)
    for curve in curves:
        typer.echo(f"{curve.name}, w = {curve.w:g}")
        for step in shown_steps(len(curve.times)):
            t, rmse, features = curve.times[step], curve.rmse[step], curve.features[step]
            typer.echo(f"  t = {t:.3f}: RMSE {rmse:.3f}, feature distance {features:.3f}")
    typer.echo(f"{out}: {num} images at every step; distances are to the final image, 1: to another one in features")


def beside_teacher(
    path: Path,
    model: "Model",
    teacher: Path | None,
    steps: int,
    teacher_steps: int,
    exact: "GaussianMixture | None",
) -> list[tuple["Candidate", int]]:
    """The teacher and the model, each with its steps; the model alone where it is a teacher itself.

    Raises:
        ValueError: there is no teacher, or it makes other data, or an ancestor is gone or changed.
    """
    from fewstep.evaluation.plan import EvaluationPlan
    from fewstep.runs.candidates import candidates_of, candidates_of_model
    from fewstep.runs.evaluate import with_ancestors

    plan = EvaluationPlan(teacher_steps=(teacher_steps,), guided_steps=(steps,), baselines=())
    own = candidates_of_model(model, model.card.label, plan, None)[0]
    if teacher is None and model.card.sampling.is_combined:
        return [(own, steps)]
    models = with_ancestors([path]) if teacher is None else {teacher: opened_model(teacher, "--teacher")}
    if other := next((each for each in models.values() if each.card.data != model.card.data), None):
        raise ValueError(f"the teacher must make {model.card.data.name} too, and makes {other.card.data.name}")
    first = candidates_of(models, plan, exact)[0]
    if first.sampling.times is not None:
        raise ValueError(f"{path} has no teacher of any number of steps: name one with --teacher")
    return [(first, teacher_steps), (own, steps)]
