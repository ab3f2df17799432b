"""The bare network as ONNX: (z, time, label, w) -> output, for runtimes without torch."""

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.export.folder import difference_of, example_conditions
from fewstep.inference.model import Model
from fewstep.system.seeds import starting_noise

FILE = "model.onnx"
LARGE = 1 << 30  # bytes of weights that go into a file beside it: one file of ONNX ends at 2 GiB
TRACED, CHECKED = 2, 3  # images: the comparison has another number of them than the trace


class Bare(nn.Module):
    """A network called without w where it has no such input: ONNX drops an input that nothing uses, silently."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None = None) -> Tensor:
        return self.network(z, time, label, w)


def write(folder: Path, model: Model) -> float:
    """Write model.onnx, of any batch size; give its largest difference to the network.

    Raises:
        ValueError: the packages that write and read ONNX are not installed.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}; get it with `pip install fewstep[onnx]`")
    import onnxruntime

    network = Bare(model.denoiser.network).eval()
    example, other = inputs_of(model, TRACED), inputs_of(model, CHECKED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(example.values()),
            folder / FILE,
            input_names=list(example),
            output_names=["output"],
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in example),
            dynamo=True,
            external_data=sum(weight.nbytes for weight in network.parameters()) > LARGE,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    (output,) = session.run(["output"], {name: value.numpy() for name, value in other.items()})
    with torch.no_grad():
        return difference_of(network(*other.values()), torch.as_tensor(output))


def inputs_of(model: Model, count: int) -> dict[str, Tensor]:
    """Inputs of the network by name: z, the network's time in (0, 1), label or embedding, and w if any."""
    data = model.card.data
    inputs = {"z": starting_noise(0, 0, count, data.shape), "time": (torch.arange(count) + 0.5) / count}
    inputs["label"] = example_conditions(model, count)
    return inputs | ({"w": torch.arange(count) * 0.5} if model.denoiser.has_guidance_input else {})
