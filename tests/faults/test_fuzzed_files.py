"""Model files and checkpoints changed at random are refused in one line or read unchanged; nothing in them is run.

FEWSTEP_FUZZ=5000 tries more than the 150 of every kind that are tried by default.
"""

import errno
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.data.facts import DataFacts
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.training.checkpointing import (
    AtomicCheckpoints,
    append_checksum,
    checkpoint_to_resume,
    has_valid_checksum,
    read_checkpoint,
)

pytestmark = [pytest.mark.usefixtures("unchecked")]
FUZZ = fuzz(150)
FACTS = DataFacts(name="digits", shape=(1, 8, 8), num_classes=10, low=-1.0, high=1.0)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WHERE = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "zero", "twice"]), WHERE, st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """The bytes after random damage."""
    made = bytearray(content)
    for kind, where, value in changes:
        at = int(where * len(made))
        match kind:
            case "flip" if made:
                made[at] ^= 1 << value % 8
            case "cut":
                del made[at:]
            case "insert":
                made[at:at] = bytes([value])
            case "zero":
                made[at : at + value] = bytes(len(made[at : at + value]))
            case "twice":
                made[at:at] = made[at : at + value]
    return bytes(made)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    network = ResidualMLP(shape=(1, 8, 8), num_classes=10, width=8, num_blocks=1, embedding_dim=4, guidance_input=True)
    card = ModelCard(
        method="guidance", data=FACTS, prediction="v", schedule=CosineSchedule(), sampling=Sampling(guidance="input"),
        w_min=0.0, w_max=4.0, images=1000, parents=(),
    )  # fmt: skip
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(file, Denoiser(network), card)
    return file.read_bytes()


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """The line in which a file is refused, None if it is read."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return None


def is_one_line(message: str | None, path: Path) -> bool:
    return message is None or (str(path) in message and "\n" not in message)


@FUZZ
@given(CHANGES)
def test_a_model_file_changed_at_random_is_refused(tmp_path, model, changes):
    """Even one bit: its checksum covers the weights and the card."""
    path = tmp_path / "model.safetensors"
    content = changed(model, changes)
    path.write_bytes(content)
    message = refusal(load_model, path)
    assert is_one_line(message, path)
    assert message or same_model(content, model)


def same_model(ours: bytes, theirs: bytes) -> bool:
    """Whether only filling differs: what the header says is the same, and so are the weights."""
    (first, own), (second, other) = map(parts, (ours, theirs))
    return first == second and own == other


def parts(content: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_card(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    header, rest = parts(content)
    card = json.loads(header["__metadata__"]["fewstep"])
    card.pop("checksum")  # as an attacker would: without it nothing is compared
    change(card)
    header["__metadata__"]["fewstep"] = json.dumps(card)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + rest


def places(card: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in the JSON."""
    if isinstance(card, dict):
        return [p for key, inner in card.items() for p in [(*prefix, key), *places(inner, (*prefix, key))]]
    return []


@FUZZ
@given(st.data(), JSON)
@example(None, None)
def test_a_card_with_any_value_in_any_place_is_never_a_traceback(tmp_path, model, data, value):
    card = json.loads(parts(model)[0]["__metadata__"]["fewstep"])
    paths = places(card)
    place = paths[0] if data is None else data.draw(st.sampled_from(paths))

    def change(made: dict[str, Any]) -> None:
        for key in place[:-1]:
            made = made[key]
        made[place[-1]] = value

    if place == ("checksum",):
        return
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_card(model, change))
    assert is_one_line(refusal(load_model, path), path)


# Checkpoints --------------------------------------------------------------------------------------------------------


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    state = {"weight": torch.arange(30.0).reshape(5, 6), "step": torch.tensor(3)}
    AtomicCheckpoints().save_checkpoint({"state_dict": state, "global_step": 3, "origin": "0/teacher from None"}, path)
    return path


def test_any_zip_reader_and_torch_itself_read_a_checkpoint(checkpoint):
    assert has_valid_checksum(checkpoint)
    with zipfile.ZipFile(checkpoint) as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"fewstep sha256 ")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3
    assert read_checkpoint(checkpoint)["global_step"] == 3


@FUZZ
@given(CHANGES)
@example([("flip", 0.5, 0)])
@example([("cut", 0.5, 0)])
@example([("cut", 0.0, 0)])
def test_a_checkpoint_changed_at_random_is_refused(checkpoint, changes):
    this = test_a_checkpoint_changed_at_random_is_refused
    whole = this.whole = checkpoint.read_bytes() if has_valid_checksum(checkpoint) else this.whole
    content = changed(whole, changes)
    checkpoint.write_bytes(content)
    if content == whole:
        assert read_checkpoint(checkpoint)["global_step"] == 3
        return
    with pytest.raises(ValueError, match="is damaged or not a checkpoint") as refused:
        read_checkpoint(checkpoint)
    assert str(checkpoint) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_treated_as_damaged(checkpoint, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(type(error)):
        checkpoint_to_resume(checkpoint, "0/teacher from None")
    assert checkpoint.exists()


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize("with_checksum", [False, True])
def test_code_in_a_checkpoint_is_not_run_even_if_it_with_a_valid_checksum(tmp_path, kind, with_checksum):
    trace, path = tmp_path / "it-ran", tmp_path / "last.ckpt"
    buffer = io.BytesIO()
    match kind:
        case "pickle":
            buffer.write(pickle.dumps({"global_step": Bomb(trace)}))
        case _:
            torch.save({"global_step": Bomb(trace)}, buffer, _use_new_zipfile_serialization=kind == "torch")
    path.write_bytes(buffer.getvalue())
    if with_checksum:
        append_checksum(path)
    with pytest.raises(ValueError, match="is damaged or not a checkpoint") as refused:
        checkpoint_to_resume(path, "0/teacher from None")
    assert not trace.exists()
    assert "\n" not in str(refused.value)


@FUZZ
@given(CHANGES)
def test_the_pickle_in_a_checkpoint_with_a_valid_checksum_changed_at_random_is_never_run(tmp_path, changes):
    """As an attacker would make it: the checksum is right, the content is not."""
    trace, path = tmp_path / "it-ran", tmp_path / "made.ckpt"
    buffer = io.BytesIO()
    torch.save({"hook": Bomb(trace), "weight": torch.ones(3)}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as made:
        for name in whole.namelist():
            content = whole.read(name)
            made.writestr(name, changed(content, changes) if name.endswith("data.pkl") else content)
    append_checksum(path)
    assert has_valid_checksum(path)
    assert is_one_line(refusal(read_checkpoint, path), path)
    assert not trace.exists()
