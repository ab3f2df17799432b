"""fewstep sample: draw images."""

from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands import adapt, requests, tasks
from fewstep.commands.base import BaseFile, BaseLevel, BaseSteps, BaseWeight, opened_base
from fewstep.commands.models import OUTPUTS, ModelFile, Outputs
from fewstep.system.limits import MOST_IMAGES, MOST_SHOWN, require_count

if TYPE_CHECKING:
    from fewstep import Base, Model

SecondWeight = Annotated[
    float | None,
    typer.Option(help="Guidance weight of the style, of a model with one for class and style; default: --w."),
]
Style = Annotated[
    int | None, typer.Option(help="Style of every image, for data with styles; default: any, or all in turn.")
]


def sample(
    model: ModelFile,
    out: tasks.Out,
    steps: tasks.Steps = None,
    w: tasks.Weight = None,
    w2: SecondWeight = None,
    label: Annotated[int | None, typer.Option(help="Class of every image; default: all classes in turn.")] = None,
    style: Style = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What a model of text shall make; repeat for several, taken in turn.")
    ] = None,
    num: Annotated[int, typer.Option(help="Number of images.")] = 64,
    seed: tasks.Seed = 0,
    sampler: Annotated[
        str | None,
        typer.Option(help="deterministic, stochastic, ancestral or renoise; default: the model's own."),
    ] = None,
    base: BaseFile = None,
    base_steps: BaseSteps = None,
    base_w: BaseWeight = None,
    base_level: BaseLevel = None,
    adapter: adapt.Adapters = None,
    autoencoder: tasks.AutoencoderFolder = None,
    text_encoder: tasks.TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Draw images; with --base, diversity distillation: the first steps by another model, the rest by this one.

    Example: fewstep sample outputs/digits/progressive/TIME/model-4.safetensors --w 2 --label 3 --out threes.png
    """
    as_arrays = out.suffix.lower() == ".npz"
    require_count(num, "--num" if as_arrays else "--num of a picture", most=MOST_IMAGES if as_arrays else MOST_SHOWN)
    import time

    import fewstep
    from fewstep.commands.images import save_batches, save_images

    loaded = fewstep.load(model, autoencoder=autoencoder, text_encoder=text_encoder)
    label = requests.label_of(loaded, label, style)
    requested = requests.requested_conditions(loaded, label, prompt or [], num)
    if adapter:
        loaded = fewstep.with_adapters(loaded, [adapt.with_strength(each, 1.0) for each in adapter])
    labels = loaded.condition(requested)
    w = requests.chosen_w(loaded, w)
    first = opened_base(base, base_steps, base_w, base_level)
    start = time.perf_counter()
    prompts = [str(each) for each in requested] if prompt else None
    if as_arrays:
        batches = loaded.batches(labels, steps=steps, w=w, w2=w2, seed=seed, sampler=sampler, base=first)
        save_batches(batches, num, loaded.card.data.pixels, out, labels=prompts or labels.tolist())
        seconds = time.perf_counter() - start
    else:
        x = loaded.sample(labels, steps=steps, w=w, w2=w2, seed=seed, sampler=sampler, base=first)
        seconds = time.perf_counter() - start
        save_images(x, labels, loaded.card.data.pixels, out, prompts=prompts)
    words = f"{steps_in_words(loaded, steps, first)}, {requests.guidance_words(loaded, w, w2)}"
    typer.echo(f"{out}: {num} images, {words}, {num / seconds:,.0f} images/s")


def steps_in_words(model: "Model", steps: int | None, base: "Base | None") -> str:
    """The steps of samples and what each costs; with a base those of both parts."""
    used = model.default_steps if steps is None else steps
    words = f"{used - (base.level if base else 0)} steps of {model.evaluations_per_step} evaluation(s)"
    if base is None:
        return words
    own = f"{base.steps} step(s) of the base, {base.first_steps.evaluations} evaluation(s) at w = {base.w:g}"
    return f"{own}, then {words}"
