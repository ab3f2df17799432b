"""The store of pairs: what an interruption leaves, damage, another teacher, several processes; and its batches."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.data import pairs
from fewstep.data.facts import DataFacts, TextFacts
from fewstep.data.pairs import PairData, PairStore, bytes_per_pair, whole_shards
from fewstep.distributed import collectives

FACTS = DataFacts(name="mixture", shape=(2,), num_classes=3, low=-1.5, high=1.5)
SHARDS = 5


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SHARD", 8)
    monkeypatch.setattr(pairs, "AT_ONCE", 3)


def store(folder: Path, **changes: Any) -> PairStore:
    made = PairStore(folder, FACTS, 8 * SHARDS, "0", lambda share: 4 * share, {"teacher": "abc"})
    return replace(made, **changes)


def teacher(noise: Tensor, label: Tensor, w: Tensor) -> Tensor:
    """Of each pair by itself."""
    return (noise * (1 + w[:, None]) + label[:, None]).tanh()


def breaking_after(calls: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A teacher of so many calls, then a kill."""
    left = [calls]

    def make(noise: Tensor, label: Tensor, w: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return teacher(noise, label, w)

    return make


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_interrupted_store_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Killed within the third shard: two are kept as they are, and nothing half is left."""
    store(tmp_path / "whole").fill(teacher, "cpu")
    half = store(tmp_path / "half")
    with pytest.raises(KeyboardInterrupt):
        half.fill(breaking_after(7), "cpu")
    assert [*content(half.folder)] == ["shard-00000.safetensors", "shard-00001.safetensors", "store.json"]
    times = [half.path(number).stat().st_mtime_ns for number in (0, 1)]
    half.fill(breaking_after(3 * 3), "cpu")  # no more than what was missing
    assert [half.path(number).stat().st_mtime_ns for number in (0, 1)] == times
    assert content(half.folder) == content(tmp_path / "whole")
    half.fill(breaking_after(0), "cpu")  # all is there


def test_a_pair_is_a_sample_of_its_noise_label_and_weight(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.fill(teacher, "cpu")
    everything = [made.read(number) for number in range(SHARDS)]
    for each in everything:
        torch.testing.assert_close(each.x, teacher(each.noise, each.label, each.w), rtol=0, atol=2.5e-4)  # float16
    noise = torch.cat([each.noise for each in everything])
    assert len(noise.unique(dim=0)) == 8 * SHARDS
    assert {int(label) for each in everything for label in each.label} == {0, 1, 2}
    assert 0 <= min(float(each.w.min()) for each in everything) < 1
    assert 3 < max(float(each.w.max()) for each in everything) < 4
    largest = sum(path.stat().st_size for path in tmp_path.glob("shard*")) / (8 * SHARDS)
    assert bytes_per_pair(FACTS) < largest  # and a header


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another shard", "another label", "empty"])
def test_a_damaged_shard_is_named_and_made_again_once_deleted(tmp_path: Path, damage: str) -> None:
    made = store(tmp_path)
    made.fill(teacher, "cpu")
    before, path = content(tmp_path), made.path(2)
    whole = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(whole[:-5])
        case "flipped":
            path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        case "another shard":
            path.write_bytes(made.path(3).read_bytes())
        case "another label":
            tensors = load_file(path)
            save_file(tensors | {"label": (tensors["label"] + 1) % 3}, path)
        case _:
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors is damaged") as caught:
        store(tmp_path).fill(breaking_after(0), "cpu")
    assert "delete it, and the same command makes it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    path.unlink()
    made.fill(teacher, "cpu")
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"origin": {"teacher": "xyz"}}, "teacher 'abc', not 'xyz'"),
        ({"origin": {"teacher": "abc", "teacher_steps": 4}}, "teacher_steps None, not 4"),
        ({"seed": "1"}, "seed '0', not '1'"),
        ({"num_pairs": 16}, "num_pairs 40, not 16"),
        ({"facts": replace(FACTS, num_classes=4)}, "num_classes 3, not 4"),
    ],
)
def test_a_store_of_another_teacher_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    store(tmp_path).fill(teacher, "cpu")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="holds pairs of another teacher or of other settings") as caught:
        store(tmp_path, **changes).fill(teacher, "cpu")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before
    with pytest.raises(ValueError, match="damaged or of another store"):  # nor does a shard pass for another's
        store(tmp_path, **changes).read(0)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"teacher'])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    store(tmp_path).fill(teacher, "cpu")
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(ValueError, match=r"store\.json is damaged|of another teacher"):
        store(tmp_path).fill(teacher, "cpu")


@pytest.mark.parametrize("wrong", [float("nan"), 1e6])
def test_samples_that_cannot_be_kept_are_refused(tmp_path: Path, wrong: float) -> None:
    with pytest.raises(ValueError, match="must be finite and within float16"):
        store(tmp_path).fill(lambda noise, label, w: noise * wrong, "cpu")
    assert not [*tmp_path.glob("shard*")]


def test_two_processes_share_the_shards_and_make_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "one").fill(teacher, "cpu")
    two = store(tmp_path / "two")
    for place in (collectives, pairs):
        monkeypatch.setattr(place, "world_size", lambda: 2)
    missing = two.missing()
    monkeypatch.setattr(pairs, "on_main_process", lambda function: missing)  # found once, before either begins
    found: list[list[str]] = []
    for rank in (0, 1):
        monkeypatch.setattr(pairs, "rank", lambda rank=rank: rank)
        two.fill(teacher, "cpu")
        found.append([*content(two.folder)])
    assert [len(names) - 1 for names in found] == [3, SHARDS]  # and store.json
    assert content(two.folder) == content(tmp_path / "one")


# Batches --------------------------------------------------------------------------------------------------------------


def data(folder: Path, batch_size: int, **changes: Any) -> PairData:
    made = PairData(store(folder, **changes), batch_size=batch_size, stream="0/own")
    made.store.fill(teacher, "cpu")
    return made


@pytest.mark.parametrize("batch_size", [4, 8, 10, 40])
def test_every_epoch_has_every_pair_once_in_an_order_of_its_own(tmp_path: Path, batch_size: int) -> None:
    own, steps = data(tmp_path, batch_size), 40 // batch_size
    epochs = [[own.pairs(epoch * steps + step) for step in range(steps)] for epoch in (0, 1)]
    noise = [torch.cat([each.noise for each in epoch]) for epoch in epochs]
    assert len(noise[0].unique(dim=0)) == 40
    assert torch.equal(*(each.unique(dim=0) for each in noise))
    assert not torch.equal(*noise)
    for each in (one for epoch in epochs for one in epoch):
        torch.testing.assert_close(each.x, teacher(each.noise, each.label, each.w), rtol=0, atol=2.5e-4)


def test_a_batch_depends_on_stream_and_step_alone(tmp_path: Path) -> None:
    one, other = data(tmp_path, 6), data(tmp_path, 6)
    ahead = [other.pairs(step) for step in (9, 3, 20)][1]
    assert all(torch.equal(a, b) for a, b in zip(one.pairs(3), ahead, strict=True))
    assert torch.equal(one.batch(3).x, ahead.x)
    another = PairData(one.store, batch_size=6, stream="1/own")
    assert not torch.equal(another.pairs(3).noise, ahead.noise)


def test_a_batch_may_be_larger_than_a_store(tmp_path: Path) -> None:
    own = data(tmp_path, 11, num_pairs=5)
    assert (own.store.shard_size, own.store.num_shards) == (5, 1)
    assert len(own.pairs(0).x) == 11
    assert len(own.pairs(0).noise.unique(dim=0)) == 5


def test_processes_have_rows_of_the_batch_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = data(tmp_path, 6)
    whole, parts = own.rows(2), []
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        parts.append(own.rows(2))
    for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(pieces))


def test_a_shard_that_is_damaged_while_training_is_found(tmp_path: Path) -> None:
    own = data(tmp_path, 8)
    for path in tmp_path.glob("shard*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"shard-0000\d\.safetensors is damaged"):
        own.rows(0)


def test_pairs_come_in_whole_shards() -> None:
    assert [whole_shards(count) for count in (1, 7, 8, 15, 16, 41)] == [1, 7, 8, 8, 16, 40]


def test_prompts_are_refused(tmp_path: Path) -> None:
    text = replace(FACTS, num_classes=0, text=TextFacts(tokens=3, features=4, sha256="0", encoder="none"))
    with pytest.raises(ValueError, match="training without data draws classes"):
        PairData(store(tmp_path, facts=text), batch_size=2, stream="0")


def test_the_description_is_json_that_says_what_is_in_it(tmp_path: Path) -> None:
    made = store(tmp_path, origin={"teacher": "abc", "w": {"w_min": 0.0, "w_values": (1.0, 2.0)}})
    made.fill(teacher, "cpu")
    said = json.loads((tmp_path / "store.json").read_text())
    assert said == made.description
    assert said["w"] == {"w_min": 0.0, "w_values": [1.0, 2.0]}
    made.fill(breaking_after(0), "cpu")
