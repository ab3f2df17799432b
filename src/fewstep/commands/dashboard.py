"""fewstep dashboard: how runs and sweeps stand, by question, from local files or in W&B."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.commands.play import Port, require_pages


def dashboard(
    local: Annotated[bool, typer.Option("--local", help="A page from the files below --outputs, live.")] = False,
    outputs: Annotated[Path, typer.Option(help="Where the runs are, or a sweep's folder (--local).")] = Path("outputs"),
    port: Port = 5007,
) -> None:
    """Show how runs stand: is it training, which w, which steps, what did it cost.

    Example: fewstep dashboard --local
    """
    require_pages()
    import panel as pn

    from fewstep.pages.dashboard import EVERY_MILLISECONDS, DashboardPage
    from fewstep.pages.runs import Outputs
    from fewstep.pages.serving import serve

    if not outputs.is_dir():
        raise ValueError(f"--outputs must be a folder of runs, and {outputs} is none; python train.py makes outputs/")

    def page() -> pn.viewable.Viewable:
        made = DashboardPage(Outputs(outputs))
        pn.state.add_periodic_callback(made.refresh, period=EVERY_MILLISECONDS)
        return made.view()

    serve(page, port=port, title="fewstep dashboard", ready=lambda address: typer.echo(f"{address} (Ctrl-C ends it)"))
