"""The `fewstep` command: use what was trained."""

import argparse
import errno
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fewstep.commands import adapt, data, tasks
from fewstep.commands.catalogue import models
from fewstep.commands.check import check
from fewstep.commands.collect import collect
from fewstep.commands.dashboard import dashboard
from fewstep.commands.export import export
from fewstep.commands.files import check_folder
from fewstep.commands.latents import latents
from fewstep.commands.methods import methods
from fewstep.commands.models import OUTPUTS, ModelFile, Outputs
from fewstep.commands.play import play
from fewstep.commands.sample import sample
from fewstep.commands.trace import trace
from fewstep.commands.upscale import upscale
from fewstep.commands.wandb_sweep import wandb_sweep
from fewstep.distributed.launch import is_silent_rank, is_worker_process
from fewstep.system.files import is_out_of_memory
from fewstep.system.limits import require_count
from fewstep.system.signals import Stopped
from fewstep.system.terminal import printable

EXIT_BAD_INPUT = 2
PROGRAM = "fewstep"
LONGEST = 2000  # characters of a line

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Sample, judge and inspect few-step guided diffusion models.\n\n"
    "Models are made by [bold]python train.py[/bold] (python train.py --help). Guidance w is the paper's: w = 0 is no "
    "guidance; diffusers' guidance_scale is 1 + w. FEWSTEP_TRACEBACK=1 shows where an error came from.",
)


app.command()(sample)


@app.command()
def evaluate(
    model: ModelFile,
    settings: data.DataSettings = None,
    out: Annotated[
        Path | None,
        typer.Option(callback=check_folder, help="Folder for quality.json and report.html; default: MODEL-quality."),
    ] = None,
    num_images: Annotated[int, typer.Option(help="Images per cell of the grid.")] = 2000,
    w: Annotated[list[float] | None, typer.Option(help="Guidance weight; repeat for several [0 1 2 4].")] = None,
    seed: tasks.Seed = 0,
    features: Annotated[
        str, typer.Option(help="Feature extractor: auto, own or a file; see trainer.features.")
    ] = "auto",
    outputs: Outputs = OUTPUTS,
) -> None:
    """Judge a model beside those it was made from: FID, inception score, precision, recall, accuracy, diversity.

    The data are found as its run had them; settings of conf/dataset change that, as root=PATH.

    Example: fewstep evaluate outputs/digits/progressive/TIME/model-4.safetensors
    """
    require_count(num_images, "--num-images", least=4)
    import fewstep
    from fewstep.evaluation.evaluator import Evaluator
    from fewstep.evaluation.plan import EvaluationPlan
    from fewstep.runs.build import REFERENCE_CACHE
    from fewstep.runs.evaluate import evaluate as evaluate_models
    from fewstep.runs.model_data import data_of_model
    from fewstep.system.threads import considerate_threads

    card = fewstep.load(model).card
    if card.encodes:
        raise ValueError("an encoder makes no samples to judge; what it is worth is in the cycle.json of its run")
    plan = EvaluationPlan(num_images=num_images, seed=seed, w=tuple(w or EvaluationPlan.w))
    folder = out or model.with_name(f"{model.stem}-quality")
    evaluator = Evaluator.of(data_of_model(model, card.data, settings or []), features, outputs / REFERENCE_CACHE)
    with considerate_threads():
        evaluate_models([model], plan, evaluator, folder, [])
    typer.echo(f"{folder / 'quality.json'}, {folder / 'report.html'}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with quality.json.")],
) -> None:
    """Write report.html again from a run's own files.

    Example: fewstep report outputs/digits/pipeline/TIME
    """
    from fewstep.reports.report import write_report

    typer.echo(write_report(run))


@app.command()
def info(
    model: ModelFile,
    outputs: Outputs = OUTPUTS,
    as_json: Annotated[bool, typer.Option("--json", hidden=True, help="As it is anyway.")] = True,
) -> None:
    """Show a model file's description as JSON: data, network, sampling, guidance, ancestors.

    Example: fewstep info outputs/digits/progressive/TIME/model-4.safetensors
    """
    import fewstep
    from fewstep.networks.denoiser import arguments_of
    from fewstep.system.files import sha256_of

    loaded = fewstep.load(model)
    network = loaded.denoiser.network
    about = asdict(loaded.card) | {
        "network": type(network).__name__,
        "arguments": arguments_of(network),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "sha256": sha256_of(model),
    }
    typer.echo(json.dumps(about, indent=2))


TASKS = (tasks.edit, tasks.inpaint, tasks.transfer, tasks.interpolate, upscale)
OF_MODELS = (*TASKS, trace, check, export, latents, play)
OF_RUNS = (methods, models, collect, wandb_sweep, dashboard)
for command in (*OF_MODELS, *OF_RUNS):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(adapt.app, name="adapt")


def run_guarded(main: Callable[[], object]) -> int:
    """Run `main`; a user's mistake becomes one line and exit status 2 (FEWSTEP_TRACEBACK=1: a traceback too)."""
    warnings.showwarning = show_warning
    argparse.ArgumentParser.error = raise_usage_error  # Hydra's parser would print its usage
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and the line is ours
    try:
        main()
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("stopped; the same command resumes the run", err=True)
        return 130
    except Stopped as stopped:
        if (line := local_error_line(stopped, str(stopped))) is not None:
            typer.echo(line, err=True)
        return stopped.status
    except Exception as error:
        if (line := local_error_line(error, f"error: {one_line(error)}")) is not None:
            if os.environ.get("FEWSTEP_TRACEBACK") or not is_user_error(error):
                traceback.print_exc()
            typer.echo(line, err=True)
        return EXIT_BAD_INPUT if is_user_error(error) else getattr(error, "status", 1)
    return 0


def show_warning(message: Warning | str, *_: object) -> None:
    """A warning in one line, of the first process alone."""
    if not is_silent_rank():
        typer.echo(f"warning: {printable(message)}", err=True)


def local_error_line(error: BaseException, line: str) -> str | None:
    """The line that this process prints of an error; identical errors of several processes print once."""
    if not is_worker_process():
        return line
    from fewstep.distributed.collectives import deduplicated_error_line

    return deduplicated_error_line(error, line)


def raise_usage_error(self: argparse.ArgumentParser, message: str) -> NoReturn:
    """Raise the message that argparse would print with its usage before it exits."""
    raise ValueError(f"{message}; `python train.py --help` shows what there is")


def is_user_error(error: BaseException) -> bool:
    """Whether the error is the user's to mend: ours (ValueError, OSError), Hydra's, Typer's, or too little memory."""
    module = type(error).__module__.partition(".")[0]
    known = isinstance(error, ValueError | OSError) or module in ("hydra", "omegaconf", "typer", "click")
    return known or raised_in(error) in ("hydra", "omegaconf") or is_out_of_memory(error)


def raised_in(error: BaseException) -> str:
    """The package in whose code an error arose."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] if frames else ""


def one_line(error: BaseException) -> str:
    """The error's own words in one line, without what would steer a terminal, and without the middle of a long one."""
    words = printable(words_of(error))
    return words if len(words) <= LONGEST else f"{words[: LONGEST // 2]} ... {words[-LONGEST // 2 :]}"


def words_of(error: BaseException) -> str:
    """The error's own words; Hydra wraps the cause in lines about where it was instantiated."""
    if type(error).__module__.startswith("hydra") and error.__cause__ is not None and is_user_error(error.__cause__):
        return words_of(error.__cause__)
    if is_out_of_memory(error):
        reason = " ".join(str(error).partition("\n")[0].split()) or "an allocation failed"
        if isinstance(error, ImportError):
            return f"memory ran out while a library was loaded ({reason}); raise its limit (`ulimit -v`, a job's --mem)"
        return f"memory ran out ({reason}); a smaller batch_size needs less, and the same command resumes the run"
    if isinstance(error, OSError) and error.strerror:
        advice = "make room" if error.errno == errno.ENOSPC else "choose another path or make this one usable"
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}; {advice} and run the same command again"
    if message := getattr(error, "format_message", None):  # Typer's
        context, text = getattr(error, "ctx", None), message().rstrip(".") or "a command is missing"
        return f"{text}; `{context.command_path if context else PROGRAM} --help` shows what there is"
    text = " ".join(str(error).partition("Config search path")[0].split())
    from_settings = {type(error).__module__.partition(".")[0], raised_in(error)} & {"hydra", "omegaconf"}
    return f"{text}; `python train.py --cfg job` shows all settings" if from_settings else text


def main() -> None:
    """Entry point of the `fewstep` command."""
    arguments = sys.argv[1:] or ["--help"]
    sys.exit(run_guarded(lambda: app(arguments, prog_name=PROGRAM, standalone_mode=False)))
