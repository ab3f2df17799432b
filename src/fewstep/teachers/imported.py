"""Import of a foreign teacher: a model file of our own is made of it once, and is a parent like any other."""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fewstep.artifacts.model_file import KEY, ModelCard, load_model, save_model
from fewstep.data.facts import DataFacts
from fewstep.diffusion.sampling import Sampling
from fewstep.networks import Denoiser, network_class
from fewstep.system.files import atomic_write
from fewstep.teachers.adm import is_adm, read_adm
from fewstep.teachers.diffusers_folder import is_diffusers_folder, read_diffusers_folder
from fewstep.teachers.foreign import Foreign

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FROM_HUB = ("*.json", "*.safetensors", "*.txt")
PICKLES, MODEL_FILES = (".pt", ".pth"), (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
FOLLOWS = {  # our class -> what of diffusers' config follows from its other arguments
    "UNet2D": ("sample_size", "in_channels", "num_class_embeds", "num_train_timesteps"),
    "TextUNet": ("sample_size", "in_channels", "cross_attention_dim", "time_cond_proj_dim", "num_class_embeds"),
    "DiT": ("sample_size", "in_channels", "num_embeds_ada_norm"),
}
DEPTHS = ("layers_per_block", "num_layers", "transformer_layers_per_block")


@dataclass(frozen=True)
class Source:
    """A teacher that was read.

    Args:
        denoiser: its network. digest: of its files.
        has_null: whether it was trained without a condition too. conditional: whether it takes a class or a prompt.
    """

    denoiser: Denoiser
    has_null: bool
    conditional: bool
    digest: str


def is_foreign(source: str | Path) -> bool:
    """Whether teacher=`source` is no model file of ours: a diffusers folder, an ADM state dict, or a hub id."""
    path = Path(source)
    if path.is_dir():
        return is_diffusers_folder(path)
    if not path.is_file():
        return HUB_ID.fullmatch(str(source)) is not None and path.suffix not in MODEL_FILES
    if path.suffix in PICKLES:
        return True
    try:
        with safe_open(path, framework="pt") as file:
            names = dict.fromkeys(file.keys(), torch.empty(0))
            return KEY not in (file.metadata() or {}) and is_adm(names)
    except (SafetensorError, OSError):
        return False


def from_hub(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, downloaded or in the hub's cache.

    Raises:
        ValueError: it is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FROM_HUB), etag_timeout=5))
    except Exception as error:  # of several libraries: no network, no such model, no permission
        raise ValueError(
            f"teacher={name} is neither a file nor a folder here, nor a model that the hub gives "
            f"({type(error).__name__}); download it with `hf download {name} --local-dir FOLDER` and give the folder"
        ) from error


def read(source: str | Path, facts: DataFacts) -> Source:
    """The foreign teacher at `source`, as a network for data of these facts.

    Raises:
        ValueError: it cannot be read, or makes other data.
    """
    path = Path(source) if Path(source).exists() else from_hub(str(source))
    foreign = read_adm(path) if path.is_file() else read_diffusers_folder(path)
    check_shape(foreign, facts, source)
    name, arguments, prefix = described(foreign, facts, source)
    deep = [key for key in DEPTHS if isinstance(n := foreign.config.get(key), int) and n > len(foreign.tensors)]
    if deep:
        raise ValueError(f"{source} says {deep[0]}={foreign.config[deep[0]]}, more than its tensors; is it whole?")
    try:
        with torch.device("meta"):  # shapes only: a config cannot make us allocate more than the weights hold
            network = network_class(name)(**arguments)
            try_forward(network, facts)
    except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the network of teacher={source} cannot be used here: {reason}") from error
    tensors = {f"{prefix}.{key}": tensor for key, tensor in foreign.tensors.items()}
    tensors.pop("transformer.pos_embed.pos_embed", None)  # a fixed table, which some files hold
    if name == "TextUNet":
        tensors["empty_prompt"] = empty_prompt(foreign, facts, source)
    load(network, tensors, source)
    classes = num_rows(foreign)
    return Source(
        Denoiser(network, foreign.prediction, foreign.native_schedule).eval(),
        has_null=name == "TextUNet" or classes == facts.num_classes + 1,
        conditional=name == "TextUNet" or classes > 0,
        digest=foreign.digest,
    )


@torch.no_grad()
def try_forward(network: nn.Module, facts: DataFacts) -> None:
    """Call a copy without weights once, on the meta device: some bad settings of diffusers raise only there."""
    text = facts.text
    label = torch.zeros(1, dtype=torch.long) if text is None else torch.zeros(1, text.tokens, text.features)
    copied = deepcopy(network).to("meta")  # DiT's fixed table has values even in a network of shapes
    copied(torch.zeros(1, *facts.shape), torch.zeros(1, dtype=torch.float64), label, None)


def num_rows(foreign: Foreign) -> int:
    """Rows of the table of classes, the row of "no class" included; 0 if there is none.

    Raises:
        ValueError: the config says no number.
    """
    name, more = ("num_embeds_ada_norm", 1) if foreign.kind == "DiTTransformer2DModel" else ("num_class_embeds", 0)
    classes = foreign.config.get(name) or 0
    if type(classes) is not int or classes < 0:
        raise ValueError(f"a teacher's {name} must be a number of classes, and its config says {classes!r}")
    return classes + more


def check_shape(foreign: Foreign, facts: DataFacts, source: str | Path) -> None:
    """Check that a teacher makes the data set's data.

    Raises:
        ValueError: channels, size, classes, latents or prompts are not those of the data set.
    """
    config, ours = foreign.config, f"{facts.name} has {facts.shape}"
    channels, size = config.get("in_channels"), config.get("sample_size")
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(facts.shape) != 3 or channels != facts.shape[0] or (size is not None and sides != facts.shape[1:]):
        raise ValueError(
            f"teacher={source} makes {channels} channels of size {size}, and {ours}; choose the data set that it "
            "was trained on (`fewstep latents` makes latents)"
        )
    rows = num_rows(foreign)
    if foreign.kind == "UNet2DConditionModel" and not rows:
        width = config.get("cross_attention_dim")
        if facts.text is None or facts.text.features != width:
            has = f"prompts of {facts.text.features} features" if facts.text else "no prompts"
            raise ValueError(
                f"teacher={source} takes prompts of {width} features, and {facts.name} has {has}; use "
                "dataset=text with the teacher's own text encoder"
            )
    elif facts.text is not None or rows not in (0, facts.num_classes, facts.num_classes + 1):
        has = "prompts" if facts.text else f"{facts.num_classes} classes"
        raise ValueError(
            f"teacher={source} knows {rows} classes, and {facts.name} has {has}; the two must agree, or the teacher "
            "have one more, last, for no class"
        )
    vae = foreign.pipeline / "vae" if foreign.pipeline else None
    if vae is not None and vae.is_dir():
        from fewstep.networks.frozen.autoencoder import Autoencoder

        if facts.latent is None or Autoencoder.open(vae).digest != facts.latent.sha256:
            raise ValueError(
                f"teacher={source} works in the latents of its own autoencoder {vae}, and {facts.name} is not made "
                "with it; make such data with `fewstep latents`"
            )


def described(foreign: Foreign, facts: DataFacts, source: str | Path) -> tuple[str, dict[str, Any], str]:
    """Our class, its arguments, and the name under which it holds diffusers' network."""
    rows = num_rows(foreign)
    # Labels are rows of one table: a teacher without a row for "no class" has its last class in that place.
    shape = {"shape": list(facts.shape), "num_classes": max(rows - 1, 0)}
    match foreign.kind:
        case "UNet2DModel":
            name, prefix = "UNet2D", "unet"
        case "DiTTransformer2DModel":
            name, prefix = "DiT", "transformer"
        case _ if rows:
            return "UNet", shape | unet_arguments(foreign.config, source), "unet"
        case _:
            if foreign.config.get("time_cond_proj_dim") is not None:
                raise ValueError(f"teacher={source} has a w input: it is a guided student already and no teacher")
            assert facts.text is not None
            shape |= {"tokens": facts.text.tokens, "features": facts.text.features}
            name, prefix = "TextUNet", "unet"
    config = {key: value for key, value in foreign.config.items() if key not in FOLLOWS[name]}
    return name, shape | {"config": config}, prefix


def unet_arguments(config: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """The arguments of our `UNet` that make this UNet2DConditionModel of classes.

    Raises:
        ValueError: a setting that ours has otherwise.
    """
    from inspect import signature

    from fewstep.networks.backbones.unet import UNet, UNet2DConditionModel

    defaults = {name: p.default for name, p in signature(UNet2DConditionModel.__init__).parameters.items()}
    own = defaults | dict(config)
    arguments: dict[str, Any] = {
        "channels": list(own["block_out_channels"]),
        "num_blocks": own["layers_per_block"],
        "attention": [kind == "AttnDownBlock2D" for kind in own["down_block_types"]],
        "head_dim": own["attention_head_dim"],
        "norm_groups": own["norm_num_groups"],
        "dropout": own["dropout"],
    }
    size = {"shape": [own["in_channels"], 2**10, 2**10], "num_classes": int(own["num_class_embeds"]) - 1}
    with torch.device("meta"):
        made = UNet(**arguments, **size).unet.config
    for name, value in config.items():
        ours = list(made[name]) if isinstance(made.get(name), tuple) else made.get(name)
        if name != "sample_size" and name in made and ours != value:
            raise ValueError(
                f"teacher={source} is a UNet2DConditionModel of classes with {name}={value!r}, and only "
                f"{name}={ours!r} can be used here"
            )
    return arguments


def empty_prompt(foreign: Foreign, facts: DataFacts, source: str | Path) -> Tensor:
    """The embedding of "" by the teacher's own text encoder, or else by that of the data.

    Raises:
        ValueError: the data's prompts were embedded by another encoder.
    """
    from fewstep.networks.frozen.text_encoder import TextEncoder

    assert facts.text is not None
    own = foreign.pipeline is not None and (foreign.pipeline / "text_encoder").is_dir()
    encoder = TextEncoder.open(foreign.pipeline if own and foreign.pipeline else facts.text.encoder)
    if encoder.digest != facts.text.sha256:
        raise ValueError(
            f"teacher={source} has another text encoder than the one that embedded the prompts of {facts.name}; embed "
            "them with the teacher's own"
        )
    return encoder.empty_prompt.clone()


def load(network: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Load all tensors, none missing and none left over.

    Raises:
        ValueError: names the first that is missing, left over or of another shape.
    """
    wanted = network.state_dict()
    for name in [*wanted, *tensors]:
        if name not in tensors:
            raise ValueError(f"the weights of teacher={source} lack {name}; is the file whole, and of this config?")
        if name not in wanted:
            raise ValueError(f"the weights of teacher={source} hold {name}, which its config knows nothing of")
        if wanted[name].shape != tensors[name].shape:
            raise ValueError(
                f"the weights of teacher={source} do not fit its config: {name} is {tuple(tensors[name].shape)} and "
                f"should be {tuple(wanted[name].shape)}"
            )
    network.load_state_dict(tensors, assign=True)


def imported(source: str | Path, outputs: Path, facts: DataFacts) -> Path:
    """Make a model file of the foreign teacher at `source`, unless it is there already; give its path.

    It is <outputs>/<dataset>/teacher/imported-<sha8>/model.safetensors, sha8 of the teacher's own files; beside it,
    source.json says what it was.

    Raises:
        ValueError: see `read`; or it has no null condition, which guidance needs.
    """
    found = read(source, facts)
    if not found.has_null:
        what = "only with a class: it has no row for no class" if found.conditional else "only without a condition"
        raise ValueError(
            f"teacher={source} cannot be guided, because it can be called {what}; guidance needs both, so train it "
            "further with labels dropped (num_class_embeds = classes + 1) or choose another"
        )
    others = [part.sha256 for part in (facts.latent, facts.text) if part]
    digest = sha256(f"{found.digest}{facts.shape}{facts.num_classes}{others}".encode()).hexdigest()
    path = outputs / facts.name / "teacher" / f"imported-{digest[:8]}" / "model.safetensors"
    if path.is_file() and load_model(path)[1].data == facts:
        return path
    native_schedule = found.denoiser.native_schedule
    assert native_schedule is not None
    card = ModelCard(
        method="teacher",
        data=facts,
        prediction=found.denoiser.prediction,
        schedule=native_schedule,
        sampling=Sampling(),
        images=0,
        parents=(),
        native_schedule=native_schedule,
    )
    with atomic_write(path.with_name("source.json")) as temporary:
        temporary.write_text(json.dumps({"teacher": str(source), "digest": digest}, indent=1) + "\n")
    save_model(path, found.denoiser, card)
    print(f"teacher: {path} (from {source})", flush=True)
    return path
