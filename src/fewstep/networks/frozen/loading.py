"""Frozen networks from local folders of safetensors, identified by the digest of their weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

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


@contextmanager
def readable(folder: Path, what: str) -> Iterator[None]:
    """Turn the errors of reading `what` from `folder` into one line.

    Raises:
        ValueError: of any error: each library has its own kinds for a config or weights that do not fit.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} in {folder} cannot be read: {' '.join(str(error).split())[:300]}") from error


def load_frozen(kind: Any, folder: Path, what: str) -> tuple[Any, str]:
    """The float32 network of class `kind` in `folder`, in eval mode without gradients, and its weights' digest.

    Raises:
        ValueError: a file is missing or damaged, or the weights are a pickle or do not fit; see `require_weights`.
    """
    require_weights(folder, what)
    with readable(folder, what), quiet():
        network, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    require_complete(info, folder, what)
    network.float().eval().requires_grad_(False)
    return network, tensor_digest(network.state_dict())


def open_same(
    open: Callable[[str | Path], Any], known: str, sha256: str, folder: str | Path | None, option: str, what: str
) -> Any:
    """Open the frozen network that a model was made with, in `folder`, or where none is given in the folder `known`.

    Args:
        open: gives an object with `folder` and `digest`, the digest of its weights.
        sha256: the digest of its weights. option: on the command line, that gives another folder.

    Raises:
        ValueError: it is not there, or has other weights.
    """
    if folder is None and not Path(known).is_dir():
        raise ValueError(f"{what} is needed, and is no longer in {known}; say where it lies now with {option} FOLDER")
    found = open(known if folder is None else folder)
    if found.digest != sha256:
        raise ValueError(
            f"{what} must be the one that the model was made with, of sha256 {sha256[:12]}, and that in {found.folder} "
            f"has sha256 {found.digest[:12]}; name the right folder with {option} FOLDER"
        )
    return found


@contextmanager
def quiet(logging: Any = None) -> Iterator[None]:
    """Silence the progress bars and advice of transformers, or of diffusers by its `diffusers.utils.logging`."""
    if logging is None:
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
