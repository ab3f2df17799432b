"""fewstep play: a model in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.commands.tasks import AutoencoderFolder, ModelFile, TextEncoderFolder

Port = Annotated[int, typer.Option(min=0, max=65535, help="Where the page answers on this machine, 0: any free port.")]


def play(
    model: ModelFile,
    port: Port = 5006,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
) -> None:
    """Play with a model in the browser: sliders for w, steps and seed, the student beside its teacher.

    The pictures are drawn anew while a slider moves. The page answers this machine alone; from elsewhere: ssh -L
    5006:localhost:5006 MACHINE.

    Example: fewstep play outputs/digits/progressive/TIME/model-4.safetensors
    """
    require_pages()
    from fewstep.pages.drawing import Chain
    from fewstep.pages.play import page_of
    from fewstep.pages.serving import serve

    chain = Chain(Path(model), autoencoder=autoencoder, text_encoder=text_encoder)

    serve(
        page_of(chain), port=port, title="fewstep play", ready=lambda address: typer.echo(f"{address} (Ctrl-C ends it)")
    )


def require_pages(package: str = "panel") -> None:
    """Refuse to go on without a package that the pages are made of.

    Raises:
        ValueError: says how to get it.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ValueError(f"this needs the package {package}, which is not installed: pip install 'fewstep[pages]'")
