"""fewstep check: what a teacher is, before anything is distilled from it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.commands.data import DataSettings
from fewstep.system.limits import require_count

if TYPE_CHECKING:
    from fewstep.teachers.checking import Findings


def check(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="A model file of ours, a diffusers folder, a hub id, an ADM .pt.")
    ],
    settings: DataSettings = None,
    dataset: Annotated[
        str | None, typer.Option(help="NAME of the data it was trained on; a model of ours says it itself.")
    ] = None,
    num: Annotated[int, typer.Option(help="Examples of the data that it is checked on.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
) -> None:
    """Find out how a teacher's output reads (x, eps or v), and whether its null condition works.

    Also where its schedule ends. Exit status 2 if it should not be distilled as it is.

    Example: fewstep check FOLDER --dataset cifar10
    """
    require_count(num, "--num", least=16)  # fewer examples say too little
    from fewstep.artifacts.model_file import load_model
    from fewstep.artifacts.quality_file import TEACHER
    from fewstep.networks import Frozen
    from fewstep.runs.build import data_of
    from fewstep.teachers.checking import examine
    from fewstep.teachers.imported import is_foreign, read

    denoiser, card = (None, None) if is_foreign(teacher) else load_model(Path(teacher))
    if card is not None and card.label != TEACHER:
        raise ValueError(
            f"{teacher} is a {card.label} model, and only teachers are checked; `fewstep evaluate` judges it"
        )
    if dataset is None and card is None:
        raise ValueError(f"say on which data {teacher} was trained: --dataset NAME, one of conf/dataset")
    data = data_of(dataset or (card.data.name if card else ""), settings or [], batch_size=num)
    if card is not None and card.data != data.facts:
        raise ValueError(
            f"{teacher} makes {card.data.name} {card.data.shape}, and {data.facts.name} is {data.facts.shape}"
        )
    has_null, conditional = True, True
    if denoiser is None or card is None:
        source = read(teacher, data.facts)
        denoiser, has_null, conditional = source.denoiser, source.has_null, source.conditional
    schedule = denoiser.native_schedule or (card.schedule if card else None)
    assert schedule is not None
    x, label = data.batch(0)
    found = examine(Frozen(denoiser), x.float(), label, schedule=schedule, has_null=has_null)
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=1))
    else:
        show(teacher, found, conditional)
    if found.problems:
        raise ValueError(f"{teacher} should not be distilled as it is: {'; '.join(found.problems)}")


def as_dict(found: "Findings") -> dict[str, object]:
    """The findings as plain JSON."""
    levels = [
        asdict(level) | {"unconditional": level.unconditional and level.unconditional[found.reads_as]}
        for level in found.levels
    ]
    return asdict(found) | {
        "levels": levels,
        "denoises": found.denoises,
        "null_works": found.null_works,
        "has_zero_terminal_snr": found.has_zero_terminal_snr,
        "problems": found.problems,
    }


def show(teacher: str, found: "Findings", conditional: bool) -> None:
    """The findings as a table and the sentences that follow from it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{teacher}: mean squared error of the predicted x", title_justify="left")
    for column in ("log-SNR", "linear guess", "read as x", "as eps", "as v", "without condition"):
        table.add_column(column, justify="right")
    for level in found.levels:
        free = "-" if level.unconditional is None else f"{level.unconditional[found.reads_as]:.3g}"
        reads = [f"{level.readings[kind]:.3g}" for kind in ("x", "eps", "v")]
        table.add_row(f"{level.log_snr:g}", f"{level.linear:.3g}", *reads, free)
    Console(soft_wrap=True).print(table)
    if found.denoises:
        worse = ", ".join(f"{kind} {rate:.3g} times" for kind, rate in found.worse.items() if kind != found.reads_as)
        verdict = "as it says" if found.reads_as == found.says else f"but it says {found.says}"
        typer.echo(f"reading: denoises as {found.reads_as}, {verdict}; worse are {worse}")
    else:
        typer.echo(f"reading: none denoises; {found.reads_as} comes nearest")
    none = "none (it is called only with a class)" if conditional else "none (it is unconditional)"
    null = "works" if found.null_works else "does not work" if found.denoises else "not known"
    typer.echo(f"null condition: {null if found.has_null else none}")
    ends = f"alpha = {found.terminal_alpha:.3g}, above zero SNR; students live on it, or on cosine with "
    typer.echo(f"schedule: ends with {'zero SNR' if found.has_zero_terminal_snr else ends + 'zero_terminal_snr=true'}")
