"""fewstep export: a model in formats that open without fewstep."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.commands.models import OUTPUTS, ModelFile, Outputs
from fewstep.commands.tasks import AutoencoderFolder, TextEncoderFolder
from fewstep.export import UNKNOWN_LICENCE


def export(
    model: ModelFile,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty.")],
    format: Annotated[
        str, typer.Option(help="diffusers (a pipeline), safetensors (fewstep's own file) or onnx (the bare network).")
    ] = "diffusers",
    half: Annotated[bool, typer.Option("--half", help="Round the weights to float16.")] = False,
    licence: Annotated[str, typer.Option(help="Licence of the parent, for the model card.")] = UNKNOWN_LICENCE,
    autoencoder: AutoencoderFolder = None,
    text_encoder: TextEncoderFolder = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Write a model as a folder that diffusers or ONNX opens; its samples are compared with the model's first.

    A text student opens in StableDiffusionPipeline, or in LatentConsistencyModelPipeline where it renoises; others
    through the short pipeline.py in the folder. There guidance_scale = 1 + w.

    Example: fewstep export outputs/digits/progressive/TIME/model-4.safetensors digits-4 --format onnx
    """
    from fewstep.export.folder import export as write

    encoders = {"autoencoder": autoencoder, "text_encoder": text_encoder}
    difference = write(model, folder, format=format, half=half, licence=licence, **encoders)
    typer.echo(f"{folder}: {format}, re-opened and compared: largest difference {difference:.1e}, relative")
