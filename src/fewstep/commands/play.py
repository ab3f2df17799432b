"""fewstep play: a model in the browser, beside the teacher it was made from."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.commands.loopback import middleware
from fewstep.commands.models import OUTPUTS, ModelFile, Outputs
from fewstep.commands.tasks import AutoencoderFolder, TextEncoderFolder

if TYPE_CHECKING:
    import gradio as gr

    from fewstep.commands.player import Player

ALL_CLASSES = "all in turn"


def play(
    model: ModelFile,
    teacher: Annotated[
        Path | None, typer.Option(help="Model to compare with; default: the teacher that the model file names.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page on this machine; 0: any free one.")] = 7860,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Play with a model in the browser: sliders for w, steps and seed, the student beside its teacher.

    Only this machine can open the page; from elsewhere: ssh -L 7860:localhost:7860 MACHINE.

    Example: fewstep play outputs/digits/progressive/TIME/model-4.safetensors
    """
    if find_spec("gradio") is None:
        raise ValueError("this needs the package gradio, which is not installed: pip install 'fewstep[play]'")
    from gradio.themes import Base

    from fewstep.commands.player import Player

    page = page_of(Player(model, teacher, autoencoder, text_encoder))
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port or None,
            share=False,
            quiet=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            footer_links=[],
            theme=Base(font=["sans-serif"], font_mono=["monospace"]),  # the default theme loads fonts from Google
            css=".pixels img { image-rendering: pixelated }",
            app_kwargs={"middleware": middleware()},
        )
    except OSError as error:
        raise ValueError(f"--port {port} is in use or not allowed; choose another, or 0 for any free one") from error
    typer.echo(f"{address} (Ctrl-C ends it)")
    page.block_thread()


def page_of(player: "Player") -> "gr.Blocks":
    """The page: controls, the model's samples, and those of its teacher if there is one."""
    import gradio as gr

    from fewstep.commands.player import draw

    card, teacher = player.model.card, player.teacher

    def redraw(w: float, steps: int, seed: int, num: int, typed: str) -> Iterator[dict[Any, Any]]:
        wanted = typed if card.data.text else None if typed == ALL_CLASSES else int(typed)
        try:
            own = draw(player.student(steps), w, steps, seed, num, wanted)
            yield {pictures[0]: own.picture, captions[0]: own.caption}
            if teacher is not None:
                other = draw(teacher, w, teacher.default_steps, seed, num, wanted)
                faster = f", **{other.seconds / own.seconds:.3g}×** as fast as the teacher"
                yield {captions[0]: own.caption + faster, pictures[1]: other.picture, captions[1]: other.caption}
        except ValueError as error:
            raise gr.Error(str(error)) from error

    parameters = sum(parameter.numel() for parameter in player.model.denoiser.parameters())
    about = f"{card.label} model of {card.data.name}, {parameters:,} parameters. {player.why_alone}`{player.path}`"
    pictures, captions = [], []
    with gr.Blocks(title="fewstep play", analytics_enabled=False, fill_width=True, delete_cache=(60, 60)) as page:
        gr.Markdown(f"## fewstep play\n{about}")
        with gr.Row():
            with gr.Column(min_width=280):
                controls = controls_of(player)
            for title in (card.label, *(["teacher"] if teacher else [])):
                with gr.Column(scale=2, min_width=320):
                    gr.Markdown(f"### {title.capitalize()}")
                    pictures.append(gr.Image(format="png", show_label=False, buttons=[], elem_classes="pixels"))
                    captions.append(gr.Markdown(min_height=48))
        moved, shown = [page.load, *(control.change for control in controls)], [*pictures, *captions]
        gr.on(moved, redraw, controls, shown, trigger_mode="always_last", show_progress="hidden")
    return page


def controls_of(player: "Player") -> list[Any]:
    """Controls of w, steps, seed, number of images, and class or prompt."""
    import gradio as gr

    card, data, steps, default_w = player.model.card, player.model.card.data, [*player.by_steps], player.model.default_w
    low, high = (0.0, 8.0) if card.w_min is None or card.w_max is None else (card.w_min, card.w_max)
    is_open = card.sampling.guidance != "none" and low < high
    about_w: dict[str, Any] = {"label": "Guidance w", "info": "0 is no guidance; diffusers' scale is 1 + w"}
    num = 1 if data.latent or data.text else 4
    return [
        gr.Radio(sorted(card.w_values), value=default_w, **about_w)
        if card.w_values
        else gr.Slider(low, max(high, low + 1), default_w, step=0.1, interactive=is_open, **about_w),
        gr.Radio(steps, value=card.num_steps if card.num_steps in steps else steps[-1], label="Steps")
        if steps
        else gr.Slider(1, 64, 8, step=1, label="Steps"),
        gr.Slider(0, 99, 0, step=1, label="Seed"),
        gr.Slider(1, 64, min(64, num * data.pixels.in_a_row), step=1, label="Images"),
        gr.Textbox("a photograph of a temple", label="Prompt")
        if data.text
        else gr.Dropdown([ALL_CLASSES, *map(str, range(data.num_classes))], value=ALL_CLASSES, label="Class"),
    ]
