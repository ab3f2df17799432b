"""Low-rank adapters (Hu et al. 2022): a student that differs from its teacher by few numbers and its scalar inputs.

peft puts them into the network; here they are merged, or written as the file that diffusers reads. peft takes seconds
to import, so it is imported where it is used.
"""

from copy import deepcopy
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.networks.denoiser import Denoiser, arguments_of, without_inputs
from fewstep.networks.own import OwnNetwork
from fewstep.system.files import atomic_write
from fewstep.system.stored import reason_of

ADAPTERS = ("lora",)
ADAPTED = (nn.Linear, nn.Conv2d)


def check_adapter(adapter: str | None, rank: int, alpha: float) -> None:
    """Check an adapter's settings.

    Raises:
        ValueError: an unknown kind, a rank that is no whole number of at least 1, an alpha not above 0.
    """
    if adapter is not None and adapter not in ADAPTERS:
        raise ValueError(f"stage.adapter must be null or one of {', '.join(ADAPTERS)}, got {adapter!r}")
    if type(rank) is not int or rank < 1 or not 0 < alpha < inf:
        raise ValueError(
            f"stage.adapter_rank must be a whole number of at least 1 and stage.adapter_alpha positive, got {rank} and "
            f"{alpha}; adapter_alpha = adapter_rank is the plain sum"
        )


def with_adapter(denoiser: Denoiser, rank: int, alpha: float) -> Denoiser:
    """Replace each linear and convolutional weight W of the denoiser by W + (alpha / rank) B A, in place.

    A is random and B zero (Hu et al. 2022, section 4.1), so that it computes what it did. The projections of w and
    extra inputs are left as they are: they are trained whole, see `trained_parameters`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, module in denoiser.network.named_modules() if isinstance(module, ADAPTED)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), denoiser.network)  # pyright: ignore[reportArgumentType]
    return denoiser


def guidance_weights(network: nn.Module) -> set[str]:
    """The names of the weights that project w and the extra inputs; of a network of the user's own none are known."""
    if isinstance(network, OwnNetwork):
        return set()
    with torch.device("meta"):
        plain = type(network)(**without_inputs(arguments_of(network))).state_dict()
    return {name for name, _ in network.named_parameters() if not is_adapters(name) and without_base(name) not in plain}


def trained_parameters(denoiser: Denoiser) -> list[nn.Parameter]:
    """The parameters that are trained: all, or of an adapted network the adapter and the projections of its inputs."""
    named = dict(denoiser.named_parameters())
    if not is_adapted(denoiser):
        return list(named.values())
    new = {f"network.{name}" for name in guidance_weights(denoiser.network)}
    return [parameter for name, parameter in named.items() if is_adapters(name) or name in new]


def is_adapted(denoiser: Denoiser) -> bool:
    """Whether there is an adapter in the network."""
    return any(is_adapters(name) for name, _ in denoiser.named_parameters())


def is_adapters(name: str) -> bool:
    """Whether a weight of that name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def without_base(name: str) -> str:
    """The name that a weight had before its layer was adapted."""
    return name.replace(".base_layer.", ".")


def merged(denoiser: Denoiser) -> Denoiser:
    """A copy whose adapter is added to the weights it adapts: an ordinary network of the same class."""
    from peft.tuners.lora import LoraLayer

    own = deepcopy(denoiser)
    for name, module in list(own.network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            parent, _, child = name.rpartition(".")
            setattr(own.network.get_submodule(parent), child, module.get_base_layer())
    if hasattr(own.network, "peft_config"):
        del own.network.peft_config
    return own


def adapter_tensors(denoiser: Denoiser) -> dict[str, Tensor]:
    """The adapter under the names that diffusers reads, `unet.....lora_A.weight`, alpha / rank multiplied into B.

    Readers of a file without alpha take alpha = rank, so it needs no second number.
    """
    tensors = {}
    for name, parameter in denoiser.network.named_parameters():
        if is_adapters(name):
            module_name, _, half = name.removesuffix(".default.weight").rpartition(".")
            module: Any = denoiser.network.get_submodule(module_name)
            scale = module.scaling["default"] if half == "lora_B" else 1.0
            tensors[f"{module_name}.{half}.weight"] = (parameter.detach() * scale).cpu().contiguous()
    return tensors


def save_adapter(path: Path, denoiser: Denoiser, base_sha256: str, older: Path | None = None) -> None:
    """Write the adapter to `path`, and to `guidance_file(path)` the projections of w and extra inputs.

    No LoRA file has a place for those.

    Args:
        base_sha256: of the model file whose weights the adapter is added to, kept in the metadata.
        older: the adapter that was merged into those weights. Where there is such a file, both become one adapter of
            the sum of their ranks, for the weights that the older one was for: a chain's adapter fits its
            first teacher.
    """
    tensors = adapter_tensors(denoiser)
    if older is not None and older.is_file():
        try:
            with safe_open(older, framework="pt") as file:
                base_sha256 = file.metadata()["base_sha256"]
                for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                    both = [file.get_tensor(name), tensors[name]]
                    tensors[name] = torch.cat(both, dim=0 if ".lora_A." in name else 1)
        except (SafetensorError, LookupError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{older} is damaged or not the adapter of the model beside it ({reason_of(error)}); move it away and "
                "run the same command again"
            ) from error
    own = dict(denoiser.network.named_parameters())
    w_input = {name: own[name].detach().cpu().contiguous() for name in sorted(guidance_weights(denoiser.network))}
    for file, content in {path: tensors, guidance_file(path): w_input}.items():
        if content:
            with atomic_write(file) as temporary:
                save_file(content, temporary, metadata={"base_sha256": base_sha256})


def guidance_file(adapter: Path) -> Path:
    """The path of the w input that belongs to the adapter at that path."""
    return adapter.with_name(f"{adapter.stem}-w{adapter.suffix}")


def adapter_file(model: Path) -> Path:
    """The path of the adapter that was merged into a model file: adapter.safetensors, or adapter-N of model-N."""
    return model.with_name("adapter" + model.name.removeprefix("model"))
