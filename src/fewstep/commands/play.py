"""fewstep play: a model in the browser, beside the teacher it was made from."""

import errno
import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.commands.tasks import AutoencoderFolder, ModelFile, TextEncoderFolder
from fewstep.system.durations import duration

if TYPE_CHECKING:
    import gradio as gr

    from fewstep.commands.player import Drawn, Player, Request
    from fewstep.inference.model import Model

HOST = "127.0.0.1"
MOST_STEPS, MOST_NUM, MOST_SEED, MOST_W = 64, 64, 99, 8.0  # of the sliders; w for teachers, which have no range
ALL_CLASSES = "all in turn"
PROMPT = "a photograph of a temple"
CSS = "footer { display: none !important } .pixels img { image-rendering: pixelated }"


def play(
    model: ModelFile,
    teacher: Annotated[
        Path | None, typer.Option(help="Model to compare with; default: the teacher that the model file names.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page on this machine; 0: any free one.")] = 7860,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
) -> None:
    """Play with a model in the browser: sliders for w, steps and seed, the student beside its teacher.

    Only this machine can open the page; from elsewhere: ssh -L 7860:localhost:7860 MACHINE.

    Example: fewstep play outputs/digits/progressive/TIME/model-4.safetensors
    """
    if find_spec("gradio") is None:
        raise ValueError("this needs the package gradio, which is not installed: pip install 'fewstep[play]'")
    from fewstep.commands.player import Player

    player = Player(model, teacher, autoencoder=autoencoder, text_encoder=text_encoder)
    serve(page_of(player), free_port(port))


def page_of(player: "Player") -> "gr.Blocks":
    """The page: controls, the model's samples, and those of its teacher if there is one."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from fewstep.commands.player import Request

    is_text, sides = player.model.card.data.text is not None, []

    def redraw(w: float, steps: int, seed: int, num: int, wanted: str) -> Iterator[list[Any]]:
        request = Request(w, steps, seed, num, wanted if is_text else None if wanted == ALL_CLASSES else int(wanted))
        try:
            student = player.draw_model(request)
            yield [student.picture, caption(student, request), *[gr.skip()] * (len(sides) - 2)]
            if (teacher := player.draw_teacher(request)) is not None:
                faster = f", **{teacher.seconds / student.seconds:.3g}×** as fast as the teacher"
                yield [gr.skip(), caption(student, request) + faster, teacher.picture, caption(teacher, request)]
        except ValueError as error:
            raise gr.Error(str(error)) from error

    with gr.Blocks(title="fewstep play", analytics_enabled=False, fill_width=True, delete_cache=(60, 60)) as page:
        gr.Markdown(f"## fewstep play\n{description(player)}")
        with gr.Row():
            with gr.Column(min_width=280):
                controls = controls_of(player.model, list(player.by_steps))
            for title in (player.model.card.label, *(["teacher"] if player.teacher else [])):
                with gr.Column(scale=2, min_width=320):
                    gr.Markdown(f"### {title.capitalize()}")
                    picture = gr.Image(format="png", show_label=False, buttons=[], elem_classes="pixels")
                    sides += [picture, gr.Markdown(min_height=48)]
        gr.on(
            [page.load, *(control.change for control in controls)],
            redraw,
            controls,
            sides,
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def controls_of(model: "Model", steps: list[int]) -> list[Any]:
    """Controls of w, steps, seed, number of images, and class or prompt.

    Args:
        steps: those to choose from; empty: any number.
    """
    import gradio as gr

    card = model.card
    low, high = (0.0, MOST_W) if card.w_min is None or card.w_max is None else (card.w_min, card.w_max)
    is_open = card.sampling.guidance != "none" and low < high
    about_w: dict[str, Any] = {"label": "Guidance w", "info": "0 is no guidance; diffusers' scale is 1 + w"}
    if card.w_values:
        w = gr.Radio(sorted(card.w_values), value=model.default_w, **about_w)
    else:
        w = gr.Slider(low, max(high, low + 1), model.default_w, step=0.1, interactive=is_open, **about_w)
    if steps:
        count = gr.Radio(steps, value=card.num_steps if card.num_steps in steps else steps[-1], label="Steps")
    else:
        count = gr.Slider(1, MOST_STEPS, 8, step=1, label="Steps")
    seed = gr.Slider(0, MOST_SEED, 0, step=1, label="Seed")
    rows = 1 if card.data.latent or card.data.text else 4
    num = gr.Slider(1, MOST_NUM, min(MOST_NUM, rows * card.data.pixels.in_a_row), step=1, label="Images")
    if card.data.text is not None:
        wanted = gr.Textbox(PROMPT, label="Prompt")
    else:
        wanted = gr.Dropdown([ALL_CLASSES, *map(str, range(card.data.num_classes))], value=ALL_CLASSES, label="Class")
    return [w, count, seed, num, wanted]


def description(player: "Player") -> str:
    """What is played with, as Markdown."""
    card, steps = player.model.card, player.model.card.sampling.steps
    about = [
        f"{card.label} model of {card.data.name}",
        f"made for {' or '.join(map(str, steps))} step{'s' * (steps != (1,))}" if steps else "for any steps",
        *([] if card.w_max is None else [f"w in [{card.w_min:g}, {card.w_max:g}]"]),
        f"{sum(p.numel() for p in player.model.denoiser.parameters()):,} parameters",
    ]
    return f"{', '.join(about)}. {player.why_alone or 'Both sides start from the same noise.'} `{player.path}`"


def caption(drawn: "Drawn", request: "Request") -> str:
    """How a picture was drawn, as Markdown."""

    def counted(count: int, noun: str) -> str:
        return f"{count} {noun}{'s' * (count != 1)}"

    how = f"{counted(drawn.steps, 'step')}, {counted(drawn.evaluations, 'evaluation')} an image, w = {request.w:g}"
    return f"{how}<br>**{duration(drawn.seconds)}** for {counted(drawn.num, 'image')}"


def free_port(port: int) -> int:
    """`port`, or any free one for 0.

    Raises:
        ValueError: it cannot be had.
    """
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
            raise ValueError(f"--port {port} {reason}; choose another one, or 0 for any that is free") from None
        return probe.getsockname()[1]


def serve(page: "gr.Blocks", port: int) -> None:
    """Serve a page to this machine until Ctrl-C."""
    from gradio.themes import Base

    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        prevent_thread_lock=True,
        footer_links=[],
        theme=Base(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),  # the default is loaded from Google
        css=CSS,
    )
    typer.echo(f"http://{HOST}:{port}/ (Ctrl-C ends it)")
    page.block_thread()
