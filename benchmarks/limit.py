"""How much of the machine do the networks use? Their operations a second over those of its best matrix product.

The peak is measured here, in the run itself, not taken from a data sheet. Operations of a network are counted by
torch's FlopCounterMode: matrix products, convolutions and attention, a multiplication and an addition being two.
Training is a loss, its gradient and a fused AdamW step, whose own operations are not counted. On a GPU: bf16 autocast,
torch.compile, channels last, the paper's ImageNet-64 U-Net and the networks of latents; on a CPU: float32, and networks
it can bear.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from measure import report
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.networks import Denoiser
from fewstep.networks.memory import to_channels_last

CONF = Path(__file__).parents[1] / "conf"
SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}
COLUMNS = ["network", "parameters", "batch", "mode", "images/s", "TFLOP/s", "of the peak %"]


@dataclass(frozen=True)
class Case:
    """A network of conf/model, for images of `shape`, with settings of its own, and the batch to try it with."""

    name: str
    model: str
    shape: tuple[int, ...]
    batch: int
    num_classes: int = 1000
    settings: Sequence[str] = ()


CASES = {
    "cpu": (
        Case("digits, 8 x 8", "digits", (1, 8, 8), 1024, 10),
        Case("digits, width 1024", "digits", (1, 8, 8), 1024, 10, ("model.network.width=1024",)),
        Case("patches U-Net, 32 x 32", "patches", (3, 32, 32), 64, 2),
        Case(
            "ImageNet-64 U-Net, half as wide",
            "imagenet64",
            (3, 64, 64),
            2,
            settings=("model.network.config.block_out_channels=[96,192,288,384]",),
        ),
    ),
    "cuda": (
        Case("ImageNet-64 U-Net", "imagenet64", (3, 64, 64), 64),
        Case("latent-256 U-Net", "imagenet256", (4, 32, 32), 128),
        Case("latent-256 DiT-XL/2", "dit", (4, 32, 32), 128),
    ),
}


def main(
    seconds: Annotated[float, typer.Option(help="Time for each row of the table.")] = 5.0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure the matrix-product peak, and what share of it each network reaches, forward and in training."""
    torch.set_num_threads(threads or torch.get_num_threads())
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    before = peak(device)
    rows = [row for case in CASES[device] for row in measure(case, device, seconds)]
    best = max(before, peak(device))  # on a busy machine the second look may be the better one
    for row in rows:
        row["of the peak %"] = round(100 * row["TFLOP/s"] / (best / 1e12), 1)
        row["TFLOP/s"] = float(f"{row['TFLOP/s']:.3g}")
    kind = "bf16" if device == "cuda" else "float32"
    report(f"limit: share of the matrix-product peak, {best / 1e12:.3g} TFLOP/s of {kind}", rows, COLUMNS, out)


def peak(device: str) -> float:
    """Operations a second of the best square matrix product."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    best = 0.0
    for size in SIZES[device]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * size**3 / fastest(lambda a=a, b=b: a @ b, device, 1.0))
    return best


def fastest(call: Callable[[], object], device: str, seconds: float) -> float:
    """The shortest time of a call, after three to warm up: what the machine can do when nothing else disturbs it."""
    for _ in range(3):
        call()
    times: list[float] = []
    began = perf_counter()
    while perf_counter() - began < seconds or len(times) < 5:
        wait_for(device)
        start = perf_counter()
        call()
        wait_for(device)
        times.append(perf_counter() - start)
    return min(times)


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(case: Case, device: str, seconds: float) -> list[dict[str, Any]]:
    """A row for sampling and one for training."""
    torch.manual_seed(0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"model={case.model}", *case.settings])
    network = instantiate(
        config.model.network,
        _convert_="all",
        shape=list(case.shape),
        num_classes=case.num_classes,
        guidance_input=True,
    )
    denoiser = Denoiser(network, config.model.prediction).to(device)
    if device == "cuda":
        to_channels_last(network)
    z = torch.randn(case.batch, *case.shape, device=device)
    log_snr, w = torch.randn(case.batch, device=device, dtype=torch.float64), torch.rand(case.batch, device=device)
    label = torch.arange(case.batch, device=device) % case.num_classes
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def forward() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return denoiser(z, log_snr, label, w).v

    @torch.no_grad()
    def sampling() -> Tensor:
        return forward()

    def training() -> None:
        optimizer.zero_grad()
        forward().square().mean().backward()
        optimizer.step()

    rows = []
    for mode, call in (("forward", sampling), ("training", training)):
        network.train(mode == "training")
        with FlopCounterMode(display=False) as counter:
            call()
        if device == "cuda" and mode == "forward":
            network.compile()
        rate = 1 / fastest(call, device, seconds)
        rows.append(
            {
                "network": case.name,
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "batch": case.batch,
                "mode": mode,
                "images/s": round(case.batch * rate, 1),
                "TFLOP/s": counter.get_total_flops() * rate / 1e12,
                "operations of an image": counter.get_total_flops() // case.batch,
                "settings": OmegaConf.to_container(config.model.network),
            }
        )
    return rows


if __name__ == "__main__":
    typer.run(main)
