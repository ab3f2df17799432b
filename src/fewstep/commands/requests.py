"""What was typed to be sampled: classes, styles, prompts and guidance weights."""

from typing import TYPE_CHECKING

from fewstep.system.limits import require_seed

if TYPE_CHECKING:
    from fewstep.inference.model import Model


def check_seed(seed: int) -> int:
    """The seed that was typed; raises a ValueError for one that is none."""
    return require_seed(seed, "--seed")


def one_of(label: int | None, prompt: str | None) -> int | str | None:
    """The label or the prompt, whichever was typed; raises a ValueError for both."""
    if label is not None and prompt is not None:
        raise ValueError(f"--label and --prompt exclude each other, got {label} and {prompt!r}")
    return label if prompt is None else prompt


def requested_conditions(model: "Model", label: int | None, prompts: list[str], num: int) -> list[int] | list[str]:
    """`num` classes or prompts, in turn; refuses a label and prompts, and neither for a model of text."""
    if prompts and one_of(label, prompts[0]):
        return [prompts[number % len(prompts)] for number in range(num)]
    if model.card.data.text is not None and label is None:
        raise ValueError("this model takes prompts: give --prompt 'a photograph of a temple'")
    model.require_no_images()
    # No class of a model that takes states is one, and `Model.condition` says so.
    return [number % max(1, model.card.data.num_conditions) if label is None else label for number in range(num)]


def chosen_w(model: "Model", w: float | None) -> float:
    """The guidance weight that was typed, or the model's default; refused for a model without guidance."""
    if w is not None and model.card.sampling.guidance == "none":
        raise ValueError(f"this model was made without guidance and takes no w, got --w {w:g}; leave it out")
    return model.default_w if w is None else w


def label_of(model: "Model", label: int | None, style: int | None) -> int | None:
    """The label of the class and the style that were typed; None where no class was.

    Raises:
        ValueError: a style without a class, or see `styled_label`.
    """
    if label is not None:
        return styled_label(model, label, style)
    if style is not None:
        raise ValueError(f"--style needs --label NUMBER, the class, got style {style} alone")
    return None


def styled_label(model: "Model", number: int, style: int | None = None) -> int:
    """The label of a class and a style, of any style where none is given; the class itself for data without styles.

    Raises:
        ValueError: a style for data without styles, or a class or a style that there is not.
    """
    data, styles = model.card.data, model.card.data.styles
    if styles is None:
        if style is not None:
            raise ValueError(f"--style is of data with styles, and {data.name} has none, got {style}")
        return number
    if not 0 <= number < styles.num_classes:
        raise ValueError(f"the class must be in 0..{styles.num_classes - 1} for {data.name}, got {number}")
    if style is not None and not 0 <= style < styles.num_styles:
        raise ValueError(f"the style must be in 0..{styles.num_styles - 1} for {data.name}, got {style}")
    return number + styles.num_classes * (styles.num_styles if style is None else style)


def guidance_words(model: "Model", w: float, w2: float | None = None) -> str:
    """The guidance of samples, in both conventions."""
    if model.card.has_two_weights:
        second = w if w2 is None else w2
        return f"w = {w:g} of the class and {second:g} of the style (scales {1 + w:g} and {1 + second:g})"
    return "no guidance" if model.card.sampling.guidance == "none" else f"w = {w:g} (guidance_scale {1 + w:g})"
