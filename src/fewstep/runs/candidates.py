"""The candidates of an evaluation: models with their samplers, steps and labels, baselines, and hybrids."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from fewstep.diffusion.guidance import log_snr_interval
from fewstep.diffusion.hybrid import FirstSteps
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.sampling import Sampling
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.grid import guided_exactly
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.inference.model import Model
from fewstep.networks import Frozen
from fewstep.system.files import tensor_digest


def candidates_of(
    models: dict[Path, Model],
    plan: EvaluationPlan,
    exact: GaussianMixture | None,
    device: str = "cpu",
    digests: Mapping[Path, str] = MappingProxyType({}),
) -> list[Candidate]:
    """Each model with the steps and the sampler it is judged at; the exact teacher where the chain has no trained one.

    A teacher is guided in the interval that its student was made for; models of any number of steps have the baselines
    too. Encoders make no samples and are left out.

    Args:
        digests: of the models' files, where samples of those of any number of steps shall be kept.
    """
    cards = [model.card for model in models.values()]
    own = next((card for card in cards if card.guidance_interval), cards[0])  # in the times of that student's schedule
    interval = log_snr_interval(own.schedule, own.guidance_interval)
    candidates, labels = [], labels_of(models)
    if exact is not None and not any(card.label == "teacher" for card in cards):
        guided = guided_exactly(exact, plan.no_guidance, interval)
        sampling = Sampling(guidance="three_evaluations" if plan.w2 else "two_evaluations")
        teacher = Candidate("teacher", guided, guided.evaluations, cards[0].schedule, plan.teacher_steps, sampling)
        digest = f"{tensor_digest(exact.tensors)} {interval} {cards[0].schedule}"
        teacher = replace(teacher, digest=digest)
        candidates += with_baselines(teacher, plan)
    for path, model in models.items():
        card = model.card
        if card.encodes:
            continue
        model.to(device)
        for name, grid, most in (("w", plan.w, card.w_max), ("w2", plan.w2, card.w2_max)):
            if most and grid and max(grid) > most:  # of one made for w = 0 alone no other is evaluated
                warnings.warn(
                    f"the grid's {name} goes to {max(grid):g}, and a student was made for {name} to {most:g}",
                    stacklevel=3,
                )
        own_candidates = candidates_of_model(model, labels[path], plan, interval)
        if card.sampling.times is None and path in digests:
            own_candidates = [replace(each, digest=f"{digests[path]} {interval}") for each in own_candidates]
        candidates += own_candidates
    return with_hybrids(candidates, plan)


def labels_of(models: dict[Path, Model]) -> dict[Path, str]:
    """What each model is called in tables: its card's label.

    Of several methods with one label and the same step counts, like a guided student and a method's own student of any
    number of steps made from it, the one with the fewest ancestors keeps it and the others have their method's name;
    several runs of one method have their run's name too.
    """

    def alike(labels: dict[Path, str], path: Path) -> list[Model]:
        own = labels[path], models[path].card.sampling.steps
        return [model for each, model in models.items() if (labels[each], model.card.sampling.steps) == own]

    labels = {path: model.card.label for path, model in models.items()}
    oldest = {path: min(alike(labels, path), key=lambda model: len(model.card.parents)) for path in models}
    by_method = {
        path: labels[path] if model.card.method == oldest[path].card.method else model.card.method
        for path, model in models.items()
    }
    return {
        path: f"{label} {path.parent.name}" if len(alike(by_method, path)) > 1 else label
        for path, label in by_method.items()
    }


def candidates_of_model(
    model: Model, label: str, plan: EvaluationPlan, interval: tuple[float, float] | None
) -> list[Candidate]:
    """One model, at the step counts that it was made for, or at the plan's with the baselines beside it."""
    card, sampling = model.card, model.card.sampling
    weights = (plan.no_guidance,) if sampling.guidance == "none" or card.w_max == 0 else None
    if sampling.times is not None:
        steps = tuple(sorted(sampling.steps, reverse=True))
        return [Candidate(label, model.denoise, sampling.evaluations, card.schedule, steps, sampling, None, weights)]
    is_teacher = sampling.is_combined
    denoise = sampling.guided(Frozen(model.denoiser), model.denoiser.null, interval, card.data.styles)
    steps = plan.teacher_steps if is_teacher else plan.guided_steps
    own = Candidate(label, denoise, sampling.evaluations, card.schedule, tuple(steps), sampling, None, weights)
    return with_baselines(own, plan)


def with_baselines(candidate: Candidate, plan: EvaluationPlan) -> list[Candidate]:
    """A model that was made for no number of steps: with its own sampler, and with each baseline."""
    others = (replace(candidate, steps=tuple(plan.baseline_steps), solver=solver) for solver in plan.baselines)
    return [candidate, *others]


def with_hybrids(candidates: Sequence[Candidate], plan: EvaluationPlan) -> list[Candidate]:
    """The candidates, and behind each few-step student itself after the first steps of the first of them, the teacher.

    A student of one step has no step left for itself, and no hybrid.

    Raises:
        ValueError: hybrids are wanted, and the first is no model of any number of steps.
    """
    if not plan.base_steps:
        return [*candidates]
    base = candidates[0]
    if base.sampling.times is not None:
        raise ValueError(
            f"stage.base_steps={plan.base_steps} needs a teacher to take the first steps, and {base.model} was made "
            "from none; use stage.base_steps=0"
        )
    first, found = FirstSteps(base.denoise, plan.base_steps, plan.base_w), list[Candidate]()
    for candidate in candidates:
        found.append(candidate)
        steps = tuple(number for number in candidate.steps if number > first.level)
        if candidate.sampling.times is not None and steps:
            found.append(replace(candidate, steps=steps, first=first))
    return found
