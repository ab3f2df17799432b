"""Commands on data sets: fewstep data check."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at data sets before anything is trained on them.")
COLUMNS, SHOWN = 8, 64


def check_settings(settings: list[str] | None) -> list[str] | None:
    """Settings of a data set as they were typed; raises a ValueError where one is not KEY=VALUE."""
    for setting in settings or []:
        if "=" not in setting:
            raise ValueError(f"settings must be KEY=VALUE, like size=32, got {setting!r}")
    return settings


DataSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", callback=check_settings, help="Settings of conf/dataset/NAME.yaml, as size=32."
    ),
]


@app.callback()
def data() -> None:
    """Look at data sets before anything is trained on them."""


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in dataset=NAME: one of conf/dataset.")],
    settings: DataSettings = None,
    root: Annotated[Path | None, typer.Option(help="Where the files are; default: data/NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG with a grid of examples; default: NAME.png.")] = None,
) -> None:
    """Verify files, counts, shapes, checksums and the balance of the classes; write a picture of 64 training examples.

    Example: fewstep data check imagefolder size=32 --root ~/birds --out birds.png
    """
    picture_file = out or Path(f"{name}.png")
    if picture_file.suffix != ".png":
        raise ValueError(f"--out must end in .png, got {picture_file}")
    from fewstep.artifacts.pictures import picture, save_png
    from fewstep.evaluation.images import evaluation_tensor
    from fewstep.runs.build import data_of

    opened = data_of(name, [*(settings or []), *([f"root={root}"] if root else [])], batch_size=SHOWN)
    for line in opened.check():
        typer.echo(line)
    x, labels = opened.preview()
    facts = opened.facts.pixels
    save_png(picture(evaluation_tensor(x, facts), labels, facts, COLUMNS), picture_file)
    typer.echo(f"{picture_file}: {len(x)} training examples")
