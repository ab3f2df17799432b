"""Model files: what goes in comes out, nothing else is read, and nothing in one is ever executed."""

import io
import json
import os
import pickle
import stat
import struct
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fewstep
from fewstep.artifacts.model_file import Ancestor, ModelCard, checksum, load_model, save_model
from fewstep.artifacts.run_folder import CONFIG, PRODUCTS, prepare
from fewstep.data.facts import DataFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.sampler import encode
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.inference.model import Model
from fewstep.networks import Denoiser, ResidualMLP, UNet
from fewstep.system.files import atomic_write, sha256_of, write_json
from fewstep.system.seeds import starting_noise

FACTS = DataFacts(name="digits", shape=(1, 8, 8), num_classes=10, low=-1.0, high=1.0)


def denoiser(*, guidance_input: bool = True, seed: int = 0) -> Denoiser:
    network = ResidualMLP(
        shape=(1, 8, 8), num_classes=10, width=8, num_blocks=1, embedding_dim=4, guidance_input=guidance_input
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return Denoiser(network).eval()


SCHEDULE = CosineSchedule(-15.0, 18.0)
TEACHER = Sampling(guidance="two_evaluations")
GUIDED = Sampling(guidance="input")
THREE_STEPS, FOUR_STEPS, FIVE_STEPS = (Sampling.uniform(steps, guidance="input") for steps in (3, 4, 5))


def card(sampling: Sampling = GUIDED, method: str = "guidance", parents: tuple[Ancestor, ...] = ()) -> ModelCard:
    takes_w = sampling.guidance == "input"
    return ModelCard(
        method=method,
        data=FACTS,
        prediction="v",
        schedule=SCHEDULE,
        sampling=sampling,
        w_min=0.0 if takes_w else None,
        w_max=4.0 if takes_w else None,
        images=1000,
        parents=parents,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_model(file, denoiser(), card())
    return file


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ValueError, match=str(path)) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Round trip ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "its_card"),
    [
        (denoiser(guidance_input=False), card(TEACHER, "teacher")),
        (denoiser(), card(parents=(Ancestor("teacher", "../teacher/model.safetensors", "5e" * 32),))),
        (denoiser(), card(FOUR_STEPS, "progressive")),
        (
            Denoiser(
                UNet(
                    shape=(1, 8, 8),
                    num_classes=10,
                    channels=(8, 16),
                    num_blocks=1,
                    attention=(False, True),
                    head_dim=8,
                    norm_groups=4,
                )
            ).eval(),
            card(TEACHER, "teacher"),
        ),
    ],
    ids=["teacher", "guided", "progressive", "unet"],
)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, made: Denoiser, its_card: ModelCard) -> None:
    file = tmp_path / "model.safetensors"
    save_model(file, made, its_card)
    back, card_back = load_model(file)
    assert card_back == its_card
    assert type(back.network) is type(made.network)
    assert back.network.arguments == made.network.arguments
    assert not back.training
    old, new = made.state_dict(), back.state_dict()
    assert list(old) == list(new)
    assert all(torch.equal(old[key], new[key]) and old[key].dtype == new[key].dtype for key in old)
    question = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 10]), torch.ones(2)
    assert torch.equal(back(*question).v, made(*question).v)
    again = file.with_name("again.safetensors")
    save_model(again, back, card_back)
    assert sha256_of(again) == sha256_of(file)


# Pickles ------------------------------------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def pickled(bomb: Bomb, kind: str) -> bytes:
    buffer = io.BytesIO()
    match kind:
        case "torch zip":
            torch.save({"state_dict": bomb}, buffer)
        case "torch legacy":
            torch.save({"state_dict": bomb}, buffer, _use_new_zipfile_serialization=False)
        case _:
            buffer.write(pickle.dumps(bomb, protocol=int(kind[-1])))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", *(f"protocol {n}" for n in range(6))])
def test_a_pickle_is_refused_unopened(tmp_path: Path, kind: str) -> None:
    trace, file = tmp_path / "it-ran", tmp_path / "model.safetensors"
    content = pickled(Bomb(trace), kind)
    file.write_bytes(content)
    message = refusal(file)
    assert not trace.exists()
    if kind not in ("protocol 0", "protocol 1"):  # these have no mark of their own
        assert "is a pickle, which could run code and is never opened" in message
    file.write_bytes(content[:8] + b"{" + content[9:])
    refusal(file)
    assert not trace.exists()


@pytest.mark.parametrize("mark", [b"\x80\x04", b"PK"])
def test_a_model_whose_length_looks_like_a_pickle_opens(tmp_path: Path, mark: bytes) -> None:
    """A header of 1,152 or 19,280 bytes begins with the bytes of a pickle of protocol 4 or of a zip file."""
    file = tmp_path / "model.safetensors"

    def write(filling: int) -> int:
        parents = (Ancestor("teacher", "x" * filling, "5e" * 32),)
        save_model(file, denoiser(), card(parents=parents))
        return int.from_bytes(file.read_bytes()[:8], "little")

    goal = int.from_bytes(mark, "little")
    while goal < write(0):
        goal += 2**16
    assert write(goal - write(0)) == goal
    assert file.read_bytes()[:2] == mark
    load_model(file)


# Damage and strangers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated, damaged or no safetensors file" in refusal(path)


@pytest.mark.parametrize("position", [0, 3, 7, 8, 9, 20])
def test_a_flipped_bit_in_the_header_is_refused(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("content", [b"", b"{", b"<html>not found</html>", bytes(1000), b"\xff" * 1000])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "truncated, damaged or no safetensors file" in refusal(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_others_are_refused(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    assert "is safetensors but not made by fewstep" in refusal(path)


@pytest.mark.parametrize("name", ["nothing.safetensors", "."])
def test_a_missing_file_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="a model must be a file, and there is none at"):
        fewstep.load(tmp_path / name)


def described(path: Path, change: Callable[[dict[str, Any]], object] | str) -> Path:
    """The file with its description changed, or replaced by a text."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header["__metadata__"]["fewstep"])
    if not isinstance(change, str):
        change(description)
        change = json.dumps(description)
    header["__metadata__"]["fewstep"] = change
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
    return path


def test_rewriting_the_description_itself_does_no_harm(path: Path) -> None:
    card = load_model(path)[1]
    assert load_model(described(path, lambda d: None))[1] == card


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[" * 100_000])
def test_a_description_that_is_no_json_is_refused(path: Path, text: str) -> None:
    assert "its description is not JSON" in refusal(described(path, text))


@pytest.mark.parametrize("text", ["[]", "3", '"teacher"', "null"])
def test_a_description_that_is_no_object_is_refused(path: Path, text: str) -> None:
    assert "its description is no JSON object" in refusal(described(path, text))


KEYS = [
    *("format", "network", "arguments", "data", "schedule", "parents"),
    *("method", "prediction", "w_min", "w_max", "sampling", "images"),
]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_refused(path: Path, key: str) -> None:
    assert key in refusal(described(path, lambda d: d.pop(key)))


@pytest.mark.parametrize("key", ["shape", "low", "name"])
def test_a_missing_fact_is_refused(path: Path, key: str) -> None:
    assert key in refusal(described(path, lambda d: d["data"].pop(key)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("where", "value", "rule"),
    [
        (
            "network",
            "os.system",
            "TextUNet, TextMLP, DiT, Routed, MixtureOfExperts, got 'os.system'",
        ),
        ("network", ["ResidualMLP"], "one of ResidualMLP, UNet"),
        ("network", "UNet", "channels|unexpected keyword"),
        ("format", 3, "another version of fewstep"),
        ("prediction", "score", "one of x, eps, v, got 'score'"),
        ("sampling.guidance", "outside", "one of two_evaluations, three_evaluations, input, none"),
        ("sampling.guidance", "two_evaluations", "others have none"),
        ("sampling.sampler", "euler", "one of deterministic, stochastic"),
        ("sampling.direction", "sideways", "one of decode, encode"),
        ("w_min", -1.0, "0 <= w_min <= w_max"),
        ("w_min", "a", "its card.w_min must be a number or null, got 'a'"),
        ("w_max", None, "0 <= w_min <= w_max"),
        ("sampling.times", [], "at least one of them"),
        ("sampling.times", [0.5, 1.0], "strictly decrease"),
        ("schedule", {"log_snr_min": 20.0, "log_snr_max": -20.0}, "log_snr_min < log_snr_max"),
        ("schedule", 3, "mapping"),
        ("native_schedule", {"kind": "linear", "levels": 1000}, "its native_schedule.levels is no setting"),
        ("parents", [{"method": "teacher"}], "path"),
        ("data.shape", [2], "does not make"),
        ("data.num_classes", 7, "does not make"),
        ("data.low", 1.0, "low < high"),
        ("arguments.width", 16, "loading state_dict"),
        ("arguments.width", 10**9, "loading state_dict"),  # 8 exabytes, were they allocated
        ("arguments.width", 10**30, "Overflow"),
        ("arguments.num_blocks", 2, "loading state_dict"),
        ("arguments.num_blocks", 10**9, "more than the"),
        ("arguments.guidance_input", False, "loading state_dict"),
        ("arguments.shape", [1, 8, 9], "does not make"),
        ("arguments.extra", 1, "extra"),
        ("arguments.extra_inputs", None, "its network.extra_inputs must be a list of texts, got None"),
        ("arguments.num_blocks", float("inf"), "infinity"),
        ("w_values", "0, 1", "its card.w_values must be a list of numbers, like [1] or null, got '0, 1'"),
        ("w_values", 1.5, "its card.w_values must be a list of numbers, like [1] or null, got 1.5"),
        ("w_max", float("nan"), "its card.w_max must be finite, got nan"),
        ("w_max", float("inf"), "its card.w_max must be finite, got inf"),
        ("images", True, "its card.images must be a whole number from 0 to 2^63 - 1, got True"),
        ("data.name", 3, "its data.name must be text, got 3"),
        ("data.text", 0, "its data.text must be a group of settings or null, got 0"),
        (
            "guidance_interval",
            [0.1],
            "its card.guidance_interval must be a list of numbers, like [1] or null, got [0.1]",
        ),
        ("parents", [{"method": "teacher", "path": 3, "sha256": ""}], "its parents.path must be text, got 3"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(path: Path, where: str, value: Any, rule: str) -> None:
    def change(description: dict[str, Any]) -> None:
        *outer, last = where.split(".")
        for key in outer:
            description = description[key]
        description[last] = value

    message = refusal(described(path, change))
    assert any(part in message for part in rule.split("|")), message
    assert message.endswith("make it again or ask its maker")


# Format 1 -----------------------------------------------------------------------------------------------------------

CLOCK = {
    "kind": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "num_timesteps": 1000,
    "rescale_zero_snr": False,
    "betas": None,
    "log_snr_min": -20.0,
    "log_snr_max": 20.0,
}
OLDER = {"role": "teacher", "path": "../teacher/model.safetensors", "sha256": "5e" * 32}
TAKES_W = {"w_min": 0.0, "w_max": 4.0}


def description_1(role: str, **own: Any) -> dict[str, Any]:
    """A description of format 1 for `denoiser()`, a teacher's but for the keys given."""
    own = {"w_min": None, "w_max": None, "num_steps": None, "sampling": "deterministic"} | own
    return {
        "role": role,
        "data": {
            "name": "digits",
            "shape": [1, 8, 8],
            "num_classes": 10,
            "low": -1.0,
            "high": 1.0,
            "latent": None,
            "text": None,
        },
        "prediction": "v",
        "schedule": {"name": "CosineSchedule", "log_snr_min": -15.0, "log_snr_max": 18.0},
        "images": 1000,
        "parents": [] if role == "teacher" else [OLDER],
        "clock": CLOCK,
        "w_draw": "uniform",
        "w_values": None,
        "guidance_interval": None,
        "format": 1,
        "network": "ResidualMLP",
        "arguments": {
            "shape": [1, 8, 8],
            "num_classes": 10,
            "width": 8,
            "num_blocks": 1,
            "embedding_dim": 4,
            "dropout": 0.0,
            "guidance_input": own["w_min"] is not None,
        },
        **own,
    }


def write_format_1(file: Path, description: dict[str, Any]) -> Path:
    """A model file as format 1 had it, with its checksum."""
    network = denoiser(guidance_input=description["arguments"]["guidance_input"]).network
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    described = description | {"checksum": checksum(description, tensors)}
    save_file(tensors, file, metadata={"fewstep": json.dumps(described)})
    return file


def generated(file: Path) -> Tensor:
    """Its samples, in 4 steps if it was made for any number; of an encoder its codes."""
    model, labels = fewstep.load(file), [0, 3, 9]
    if not model.card.encodes:
        steps = None if model.card.num_steps else 4
        return model.sample(labels, steps=steps, w=2.0, seed=5)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition, w = torch.tensor(labels), torch.full((3,), 2.0)
    return encode(model.denoise, x, schedule=SCHEDULE, times=model.card.sampling.grid(), label=condition, w=w)


@pytest.mark.parametrize(
    ("role", "own", "method", "sampling"),
    [
        ("teacher", {}, "teacher", TEACHER),
        ("guided", TAKES_W, "guidance", GUIDED),
        ("progressive", TAKES_W | {"num_steps": 4}, "progressive", FOUR_STEPS),
        (
            "progressive",
            TAKES_W | {"num_steps": 3, "sampling": "stochastic"},
            "progressive",
            Sampling.uniform(3, sampler="stochastic", guidance="input"),
        ),
        ("progressive", {"num_steps": 4}, "progressive", Sampling.uniform(4, guidance="two_evaluations")),
        (
            "encoder",
            TAKES_W | {"num_steps": 4},
            "encoder",
            Sampling.uniform(4, guidance="input", direction="encode"),
        ),
    ],
    ids=["teacher", "guided", "deterministic", "stochastic", "two students", "encoder"],
)
def test_a_file_of_format_1_is_sampled_as_the_same_weights_of_format_2(
    tmp_path: Path, role: str, own: dict[str, Any], method: str, sampling: Sampling
) -> None:
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    write_format_1(old, description_1(role, **own))
    older = Ancestor("teacher", OLDER["path"], OLDER["sha256"])
    clock = BetaSchedule("linear", beta_start=0.0001, beta_end=0.02)
    expected = card(sampling, method, () if role == "teacher" else (older,))
    expected = replace(expected, native_schedule=clock)
    made = denoiser(guidance_input="w_min" in own)
    save_model(new, Denoiser(made.network, "v", clock), expected)
    assert load_model(old)[1] == expected
    assert torch.equal(generated(old), generated(new))
    assert generated(old).std() > 0.1
    save_model(old, *load_model(old))  # what is read and written again is of format 2
    assert sha256_of(old) == sha256_of(new)


def test_a_file_of_format_1_from_before_checksums_samplers_and_clocks(tmp_path: Path) -> None:
    file = write_format_1(tmp_path / "old.safetensors", description_1("progressive", **TAKES_W, num_steps=4))
    absent = ("checksum", "sampling", "clock", "w_draw", "w_values", "guidance_interval")
    described(file, lambda description: [description.pop(key) for key in absent])
    assert load_model(file)[1] == card(
        FOUR_STEPS, "progressive", (Ancestor("teacher", OLDER["path"], OLDER["sha256"]),)
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("role", "judge", "its role must be one of teacher, guided, progressive, encoder, got 'judge'"),
        ("role", ["guided"], "its role must be one of"),
        ("role", "teacher", "a teacher takes no w"),
        ("num_steps", 0, "steps must be null or 1 to 100000, got 0"),
        ("num_steps", True, "steps must be null or 1 to 100000, got True"),
        ("num_steps", 2.0, "steps must be null or 1 to 100000, got 2.0"),
        ("num_steps", 10**12, "steps must be null or 1 to 100000, got 1000000000000"),  # 8 terabytes of times
        ("sampling", "ancestral", "its sampling must be deterministic or stochastic, got 'ancestral'"),
        ("sampling", None, "its sampling must be deterministic or stochastic, got None"),
        ("sampling", "stochastic", "its checksum is not that of what it holds"),
        ("w_min", None, "a model of role guided takes w, and its w_min is null"),
        ("w_min", -1.0, "0 <= w_min <= w_max"),
        ("w_max", None, "0 <= w_min <= w_max"),
        ("clock", 3, "its native_schedule must be a mapping, got 3"),
        ("clock", {"kind": "linear", "levels": 1000}, "its native_schedule.levels is no setting"),
        ("parents", [{"role": "judge", "path": "a", "sha256": "b"}], "its role must be one of"),
        ("parents", [{"path": "a", "sha256": "b"}], "role"),
        ("parents", ["teacher"], "not a mapping"),
        ("parents", None, "not iterable"),
        ("format", 3, "another version of fewstep"),
        ("format", 2, "its sampling must be a mapping, got 'deterministic'"),
        ("images", 1001, "its checksum is not that of what it holds"),
    ],
)
def test_a_damaged_description_of_format_1_is_refused(tmp_path: Path, key: str, value: Any, rule: str) -> None:
    file = write_format_1(tmp_path / "old.safetensors", description_1("guided", **TAKES_W))
    message = refusal(described(file, lambda description: description.update({key: value})))
    assert any(part in message for part in rule.split("|")), message
    assert message.endswith("make it again or ask its maker")


@pytest.mark.parametrize(
    "key", ["role", "num_steps", "w_min", "w_max", "parents", "data", "prediction", "schedule", "images", "network"]
)
def test_a_missing_key_of_format_1_is_refused(tmp_path: Path, key: str) -> None:
    file = write_format_1(tmp_path / "old.safetensors", description_1("guided", **TAKES_W))
    assert key in refusal(described(file, lambda description: description.pop(key)))


@pytest.mark.parametrize("role", ["guided", "encoder"])
def test_a_student_of_format_1_without_w_is_refused(tmp_path: Path, role: str) -> None:
    """It would be taken for a teacher, guided by two evaluations."""
    file = write_format_1(tmp_path / "old.safetensors", description_1(role, num_steps=4))
    assert "takes w" in refusal(file)


# Writing ------------------------------------------------------------------------------------------------------------


def cut_while_writing(file: Path) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text("half of the n")
        assert temporary.parent.parent == file.parent  # on the same disk
        assert file.read_text() == "old"
        raise RuntimeError("cut")


def test_atomic_leaves_the_old_file_when_the_body_fails(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "model"
    with atomic_write(file) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError, match="cut"):
        cut_while_writing(file)
    assert file.read_text() == "old"
    assert [p.name for p in file.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_model_is_readable_for_whom_the_user_says(tmp_path: Path, umask: int, mode: int) -> None:
    """The library writes files that only their writer can read; on a cluster others shall distil the teacher."""
    before = os.umask(umask)
    try:
        save_model(tmp_path / "model.safetensors", denoiser(), card())
        write_json(tmp_path / "figures.json", {})
    finally:
        os.umask(before)
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {
        "model.safetensors": mode,
        "figures.json": mode,
    }


def test_a_folder_has_the_modes_of_a_new_one_and_links_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    outside.chmod(0o600)
    with atomic_write(tmp_path / "made") as temporary:
        temporary.mkdir(mode=0o700)
        (temporary / "file").touch(mode=0o600)
        (temporary / "link").symlink_to(outside)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "made", tmp_path / "made" / "file", outside)}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {"made": 0o777 & ~umask, "file": 0o666 & ~umask, "outside": 0o600}


def test_where_permissions_cannot_be_changed_files_are_written(tmp_path: Path, monkeypatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    save_model(tmp_path / "model.safetensors", denoiser(), card())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_another_process_of_this_number_left_is_no_part_of_what_is_written(tmp_path: Path) -> None:
    left = tmp_path / f".made.{os.getpid()}.tmp"
    for old in (left / "content" / "old", left):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.write_text("old")
        with atomic_write(tmp_path / "made") as temporary:
            temporary.mkdir()
            (temporary / "new").write_text("new")
        assert [p.name for p in tmp_path.rglob("*")] == ["made", "new"]


def test_what_a_kill_leaves_of_an_unfinished_file_is_found(tmp_path: Path) -> None:
    """safetensors 0.8 writes a temporary file, of a name of its own, beside the one that it is asked for."""
    writing = atomic_write(tmp_path / "model.safetensors")
    temporary = writing.__enter__()  # never left, as SIGKILL has it
    temporary.with_name(".tmpAb12Cd").write_text("half")
    temporary.write_text("half")
    assert [p.name for p in tmp_path.iterdir() if not p.match(".*.tmp")] == []
    assert [*tmp_path.rglob("*.safetensors")] == []
    prepare(tmp_path, "", ("model.safetensors",))
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, PRODUCTS]


def test_no_file_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "birds.png").mkdir()
    (tmp_path / "birds.png" / "mine.txt").write_text("mine")
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "birds.png") as temporary:
        temporary.write_text("a picture")
    assert [p.name for p in tmp_path.rglob("*")] == ["birds.png", "mine.txt"]


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "model.safetensors"
    broken = denoiser()
    broken.network.arguments["width"] = object()  # no JSON
    with pytest.raises(TypeError):
        save_model(blocked, broken, card())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_model(tmp_path / "file" / "model.safetensors", denoiser(), card())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Sampling -----------------------------------------------------------------------------------------------------------


def model(sampling: Sampling = GUIDED) -> Model:
    return Model(denoiser(guidance_input=sampling.guidance == "input"), card(sampling))


@pytest.mark.parametrize("sampling", [TEACHER, GUIDED, THREE_STEPS], ids=["teacher", "guided", "three steps"])
def test_image_i_does_not_depend_on_the_batch_size(sampling: Sampling) -> None:
    labels = [0, 1, 2, 3, 9, 5, 5]
    whole, cut = (model(sampling).sample(labels, steps=3, w=2.0, seed=5, batch_size=size) for size in (500, 3))
    assert whole.shape == (7, 1, 8, 8)
    torch.testing.assert_close(whole, cut, rtol=0, atol=1e-6)
    fewer = model(sampling).sample(labels[:2], steps=3, w=2.0, seed=5)
    torch.testing.assert_close(whole[:2], fewer, rtol=0, atol=1e-6)


def test_noise_is_a_function_of_seed_and_number() -> None:
    noise = starting_noise(3, 0, 9, (2, 2))
    assert torch.equal(noise[4:7], starting_noise(3, 4, 3, (2, 2)))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, starting_noise(4, 0, 9, (2, 2)))
    assert starting_noise(0, 0, 4000, (4,)).std().item() == pytest.approx(1, abs=0.02)


def test_samples_depend_on_seed_label_and_w_and_stay_in_range() -> None:
    student = model()

    def draw(label: int = 1, seed: int = 0, w: float = 1.0) -> Tensor:
        return student.sample([label] * 4, steps=4, w=w, seed=seed)

    first = draw()
    assert torch.equal(first, draw())
    assert not torch.equal(first, draw(label=2))
    assert not torch.equal(first, draw(seed=1))
    assert not torch.equal(first, draw(w=3.0))
    assert first.min() >= FACTS.low
    assert first.max() <= FACTS.high


@pytest.mark.parametrize(("sampling", "rows"), [(TEACHER, 2), (GUIDED, 1), (FIVE_STEPS, 1)])
def test_evaluations_are_counted_as_they_are_made(sampling: Sampling, rows: int) -> None:
    sampled, seen = model(sampling), []
    sampled.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    sampled.sample([0, 1, 2], steps=5)
    assert seen == [3 * rows] * 5
    assert sampled.evaluations_per_step == rows


def test_the_default_steps_are_those_it_was_made_for() -> None:
    assert model(FOUR_STEPS).default_steps == 4
    assert model(GUIDED).default_steps == 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(FOUR_STEPS).sample([0], w=4.0)
        model(GUIDED).sample([0], steps=2, w=0.0)
        model(TEACHER).sample([0], steps=2, w=9.0)


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"steps": 8}, "made for 4 steps, not 8: expect worse images"),
        ({"w": 4.5}, r"made for w in \[0, 4\], not 4.5: expect worse images"),
    ],
)
def test_what_a_student_was_not_made_for_is_warned_of_and_done(options: dict[str, Any], warning: str) -> None:
    with pytest.warns(UserWarning, match=warning):
        assert len(model(FOUR_STEPS).sample([0, 1], **options)) == 2


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"wanted": [0, 10]}, r"labels must be whole numbers in 0..9 for digits, .* at least one, got \[0, 10\]"),
        ({"wanted": [-1]}, r"labels must be whole numbers in 0..9 .* got \[-1\]"),
        ({"wanted": []}, r"labels must be .* at least one, got \[\]"),
        ({"wanted": [10**20]}, r"labels must be whole numbers in 0..9 for digits, .* got \[1000"),
        ({"steps": 0}, "steps must be at least 1 .* got 0"),
        ({"steps": 10**12}, "steps must be .* at most 100,000, .* got 1000000000000"),
        ({"w": -0.5}, "w must be finite and at least 0 .* got -0.5"),
        ({"w": 1e5}, "w must be .* at most 10000, got 100000.0"),
        ({"w": float("inf")}, "w must be finite and at least 0 .* got inf"),
        ({"w": float("nan")}, "w must be finite and at least 0 .* got nan"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        model().sample(**{"wanted": [0]} | options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"steps": "4"}, "steps must be .* a whole number, got '4'"),
        ({"steps": 2.5}, "steps must be .* a whole number, got 2.5"),
        ({"w": "2"}, "w must be finite and at least 0 .* got '2'"),
        ({"seed": 1.5}, "seed must be a whole number .* got 1.5"),
    ],
)
def test_numbers_of_another_type_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        model().sample([0], **options)


def test_sampling_leaves_the_global_random_state_alone() -> None:
    student = model()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    student.sample([0], steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_loaded_model_samples_as_before(path: Path) -> None:
    before = Model(deepcopy(denoiser()), card()).sample([0, 5], steps=3, w=1.5, seed=2)
    assert torch.equal(fewstep.load(path).sample([0, 5], steps=3, w=1.5, seed=2), before)
