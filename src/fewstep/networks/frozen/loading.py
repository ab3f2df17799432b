"""Frozen networks from local folders of safetensors, identified by the digest of their weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn

from fewstep.system.files import tensor_digest

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def require_weights(folder: Path, what: str) -> None:
    """Check that `folder` holds config.json and whole safetensors, as diffusers and transformers write them.

    Raises:
        ValueError: a file is missing, truncated, or there is only a pickle; `what` names the network in the message.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{what} is a local folder of config.json and safetensors weights, as save_pretrained writes it, and "
            f"{folder / 'config.json'} is missing; nothing is downloaded, so put the whole folder there"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        if pickles:
            raise ValueError(
                f"{what} must be safetensors, and {folder} holds {pickles[0]}, a pickle, which could run code and is "
                "never opened; take the folder's safetensors version"
            )
        raise ValueError(
            f"{what} in {folder} has no weights: a .safetensors file is missing; put it beside config.json"
        )
    for path in weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); copy it again") from error


def require_complete(info: dict[str, object], folder: Path, what: str) -> None:
    """Check that weights have filled all tensors of a network; `info` is from_pretrained's loading info.

    Raises:
        ValueError: names the first tensor that is missing or of another shape.
    """
    for kind, words in (("mismatched_keys", "has another shape than config.json says"), ("missing_keys", "is missing")):
        keys = info.get(kind)
        if keys:
            assert isinstance(keys, list | set | tuple)
            raise ValueError(
                f"the weights of {what} in {folder} do not fit its config.json: {min(map(str, keys))} {words}"
            )


def freeze(network: nn.Module) -> str:
    """Put the network in eval mode without gradients; give the digest of its weights."""
    network.eval().requires_grad_(False)
    return tensor_digest(network.state_dict())


Loaded = TypeVar("Loaded")


def load_frozen(
    open: Callable[[str | Path], Loaded], known: str, folder: str | Path | None, option: str, what: str
) -> Loaded:
    """Open the frozen network in `folder`, or in the folder `known` where none is given.

    Raises:
        ValueError: it is not there; names the command-line option that gives another folder.
    """
    if folder is None and not Path(known).is_dir():
        raise ValueError(f"{what} is needed, and is no longer in {known}; say where it lies now with {option} FOLDER")
    return open(known if folder is None else folder)


def require_digest(found: str, wanted: str, folder: Path, option: str, what: str) -> None:
    """Check that a frozen network is the one that a model was made with.

    Raises:
        ValueError: the digests differ.
    """
    if found != wanted:
        raise ValueError(
            f"{what} must be the one that the model was made with, of sha256 {wanted[:12]}, and that in {folder} has "
            f"sha256 {found[:12]}; name the right folder with {option} FOLDER"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice."""
    from transformers.utils import logging  # takes seconds to import

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
