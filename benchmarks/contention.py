"""What does a busy neighbour cost a training, and what the ways to bear it?

    python benchmarks/contention.py --out benchmarks/results/contention.json

Training steps of the digits network, each measurement a process of its own, in turns: alone on the machine, beside a
process that keeps one core busy, and beside one that comes when training has begun. `train.py` chooses the threads by
the load at its start and watches for contention (`fewstep.system.threads`); beside it stand what OpenMP does by itself,
threads that never spin, and one thread. The first seconds, in which the watch sees how things are, are not counted.
"""

# ruff: noqa: E402 - the load is that during the imports
from fewstep.system.load import LoadOfOthers

LOAD = LoadOfOthers()

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from measure import report

from fewstep.networks import Denoiser
from fewstep.system.threads import OWN_POLICY, choose_threads, considerate_threads

CONF = Path(__file__).parents[1] / "conf"
WATCHED = "as train.py"
POLICIES: dict[str, dict[str, str]] = {
    WATCHED: {},
    "OpenMP's own": {},
    "never spinning": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
QUIET, BUSY, LATER = "quiet", "busy", "busy later"
BATCH, WARM_UP_SECONDS = 256, 2.0
COLUMNS = ["policy", QUIET, BUSY, LATER]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each policy, quiet and busy.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a measurement.")] = 3.0,
    policy: Annotated[str | None, typer.Option(hidden=True, help="Measure one here, and print images/s.")] = None,
    later: Annotated[bool, typer.Option(hidden=True, help="With a neighbour once it has begun.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure images/s of training under each policy, on a quiet machine and beside a busy process."""
    if policy is not None:
        typer.echo(images_per_second(seconds, watched=policy == WATCHED, later=later))
        return
    rates: dict[str, dict[str, list[float]]] = {name: {QUIET: [], BUSY: [], LATER: []} for name in POLICIES}
    for _ in range(rounds):
        for name, own in POLICIES.items():
            for arm, found in rates[name].items():
                with busy_neighbour() if arm == BUSY else nullcontext():
                    found.append(rate_of(name, own, seconds, later=arm == LATER))
    best = median(rates["OpenMP's own"][QUIET])
    rows: list[dict[str, Any]] = [
        {"policy": name}
        | {arm: f"{median(each):,.0f} ({median(each) / best:.0%})" for arm, each in found.items()}
        | {"rounds": found}
        for name, found in rates.items()
    ]
    title = "contention: images/s of training, digits network, median (share of what OpenMP does on a quiet machine)"
    report(title, rows, COLUMNS, out)


def rate_of(policy: str, own: Mapping[str, str], seconds: float, *, later: bool) -> float:
    """Images/s of a process under the policy."""
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", *OWN_POLICY)}
    command = [sys.executable, __file__, "--policy", policy, "--seconds", str(seconds), *(["--later"] if later else [])]
    return float(
        subprocess.run(command, env={**clean, **own}, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def images_per_second(seconds: float, *, watched: bool, later: bool) -> float:
    """The rate of training steps (loss, gradient, AdamW) in this process."""
    torch.manual_seed(0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["model=digits"])
    shape = (1, 8, 8)
    given = {"shape": [*shape], "num_classes": 10, "guidance_input": True}
    network = instantiate(config.model.network, _convert_="all", **given)
    denoiser = Denoiser(network, config.model.prediction)
    z, log_snr, w = torch.randn(BATCH, *shape), torch.randn(BATCH, dtype=torch.float64), torch.rand(BATCH)
    label, optimizer = torch.arange(BATCH) % 10, torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def steps(duration: float) -> float:
        done, start = 0, perf_counter()
        while (spent := perf_counter() - start) < duration:
            optimizer.zero_grad()
            denoiser(z, log_snr, label, w).v.square().mean().backward()
            optimizer.step()
            done += 1
        return done * BATCH / spent

    if watched:
        choose_threads(LOAD.cores())
    with considerate_threads() if watched else nullcontext():
        steps(WARM_UP_SECONDS)
        with busy_neighbour() if later else nullcontext():
            if later:
                steps(WARM_UP_SECONDS)
            return steps(seconds)


if __name__ == "__main__":
    typer.run(main)
