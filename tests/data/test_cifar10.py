"""CIFAR-10 in its published forms, made small; what is not such a form is refused, and nothing is run by reading it."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets.utils import calculate_md5

from fewstep.data.cifar10 import MD5, Cifar10Data
from fewstep.data.generate import generate_cifar10
from fewstep.data.unpickle import read_arrays

pytestmark = pytest.mark.usefixtures("unchecked")
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    generate_cifar10(tmp_path / "binary", per_batch=20)
    return tmp_path / "binary"


def opened(root: Path, **settings) -> Cifar10Data:
    return Cifar10Data(root=str(root), **({"batch_size": 50, "stream": "0/teacher"} | settings))


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its text, which is what the published files hold."""

    def save_text(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_text}  # noqa: RUF012


def as_python_version(binary: Path, root: Path) -> Path:
    """The same images as the python version has them."""
    inside = root / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    for name in NAMES:
        records = np.fromfile(binary / "cifar-10-batches-bin" / f"{name}.bin", np.uint8).reshape(-1, 3073)
        batch = {
            b"batch_label": b"training batch 1 of 5",
            b"labels": records[:, 0].tolist(),
            b"data": records[:, 1:].copy(),
            b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * len(records),
        }
        buffer = io.BytesIO()
        Python2Pickler(buffer, 2).dump(batch)
        content = buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        assert b"cnumpy.core.multiarray\n_reconstruct\n" in content  # the name that numpy had then
        (inside / name).write_bytes(content)
    return root


def test_the_binary_version_is_read_record_by_record(binary: Path) -> None:
    data = opened(binary)
    record = (binary / "cifar-10-batches-bin" / "data_batch_2.bin").read_bytes()[3073 : 2 * 3073]
    assert len(data.labels) == 100
    image = data.images[torch.tensor([21])][0]
    assert int(data.labels[21]) == record[0]
    for channel, y, x in ((0, 0, 0), (1, 3, 5), (2, 31, 31)):
        assert int(image[channel, y, x]) == record[1 + channel * 1024 + y * 32 + x]
    held_out = np.fromfile(binary / "cifar-10-batches-bin" / "test_batch.bin", np.uint8).reshape(-1, 3073)
    x, labels = data.reference()
    assert torch.equal(((x + 1) * 127.5).round().to(torch.uint8).flatten(1), torch.from_numpy(held_out[:, 1:]))
    assert labels.tolist() == held_out[:, 0].tolist()


def test_both_versions_hold_the_same(binary: Path, tmp_path: Path) -> None:
    first, second = opened(binary), opened(as_python_version(binary, tmp_path / "python"))
    assert torch.equal(first.batch(3).x, second.batch(3).x)
    assert torch.equal(first.batch(3).label, second.batch(3).label)
    assert torch.equal(first.reference().x, second.reference().x)
    assert torch.equal(opened(binary / "cifar-10-batches-bin").batch(0).x, first.batch(0).x)


def test_a_batch_is_a_function_of_its_step_mirrored_or_not(binary: Path) -> None:
    plain, mirrored, again = opened(binary), opened(binary, flip=True), opened(binary, flip=True)
    shown = [mirrored.batch(step).x for step in range(4)]
    for step in (3, 0, 2, 1):
        assert torch.equal(again.batch(step).x, shown[step])
    x, y = plain.batch(0).x, shown[0]
    same, flipped = (x == y).flatten(1).all(1), (x.flip(-1) == y).flatten(1).all(1)
    assert bool((same | flipped).all())
    assert 10 < int(flipped.sum()) < 40  # of 50
    other = (plain.batch(2).x.flip(-1) == shown[2]).flatten(1).all(1)
    assert not torch.equal(other, flipped)  # each step throws anew


class Malicious:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


@pytest.mark.parametrize(
    "content",
    [
        lambda proof: pickle.dumps({b"data": Malicious(proof)}),
        lambda proof: f"cos\nsystem\n(S'touch {proof}'\ntR.".encode(),
        lambda proof: f"cbuiltins\neval\n(S'open({str(proof)!r}, chr(119))'\ntR.".encode(),
        lambda proof: b"cnumpy\nload\n.",
        lambda proof: b"cnumpy.core.multiarray\nfromfile\n.",
        lambda proof: b"\x80\x02}",
        lambda proof: b"",
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(binary, tmp_path, content) -> None:
    root, proof = as_python_version(binary, tmp_path / "python"), tmp_path / "proof"
    file = root / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(content(proof))
    with pytest.raises(
        ValueError, match=r"data_batch_3 must be a pickle of arrays of uint8 and plain values.*get it again"
    ):
        opened(root)
    assert not proof.exists()


def test_the_proof_would_have_been_there(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Malicious(proof)))
    assert proof.exists()


def test_arrays_and_plain_values_are_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, "text", b"bytes", None, True], "b": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    (tmp_path / "plain").write_bytes(pickle.dumps(value, 4))
    read = read_arrays(tmp_path / "plain")
    assert read["a"] == value["a"]
    assert np.array_equal(read["b"], value["b"])


def forged_array() -> bytes:
    """A pickle of an array of objects whose type says that it holds none: its bytes would be taken for addresses."""
    object_type = b"cnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tR"
    fields = b"(X\x01\x00\x00\x00ft}X\x01\x00\x00\x00f(" + object_type + b"K\x00ts"
    kind = b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8\x89\x88tR(K\x03X\x01\x00\x00\x00|N" + fields + b"K\x08K\x01K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tX\x01\x00\x00\x00btR"
    return b"\x80\x03" + empty + b"(K\x01(K\x01t" + kind + b"\x89B\x08\x00\x00\x00AAAAAAAAtb."


@pytest.mark.parametrize(
    "content", [forged_array(), pickle.dumps(np.zeros(2, object)), pickle.dumps(np.zeros(2, np.float32), 4)]
)
def test_arrays_of_other_types_are_never_made(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "forged").write_bytes(content)
    with pytest.raises(ValueError, match="arrays of uint8 and plain values alone"):
        read_arrays(tmp_path / "forged")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "whole records of 3073 bytes, and has 61459"),
        (lambda file: file.write_bytes(b""), "whole records"),
        (lambda file: file.write_bytes(b"\x0a" + file.read_bytes()[1:]), "labels from 0 to 9"),
        (lambda file: file.unlink(), r"six files, and .*data_batch_2.bin is missing"),
    ],
)
def test_a_damaged_file_is_named(binary: Path, spoil, words: str) -> None:
    spoil(binary / "cifar-10-batches-bin" / "data_batch_2.bin")
    with pytest.raises(ValueError, match=words):
        opened(binary)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {b"data": np.zeros((2, 3072), np.uint8)},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 11]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, None]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2**80]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [[1], [2]]},
    ],
)
def test_a_pickle_of_another_form_is_refused(binary: Path, tmp_path: Path, batch) -> None:
    root = as_python_version(binary, tmp_path / "python")
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(ValueError, match=r"test_batch must (have|hold|be)"):
        opened(root)


def test_the_error_of_a_missing_data_set_names_its_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cs.toronto.edu.*cifar-10-batches-bin.*dataset.root=PATH.*trainer=debug"):
        opened(tmp_path / "nothing")


def test_generated_files_replace_a_missing_data_set_with_one_message(tmp_path: Path, capsys) -> None:
    data = opened(tmp_path / "cifar10", generated=True)
    assert capsys.readouterr().out == (
        f"{tmp_path / 'cifar10'} is not there, so dataset=cifar10 is tried on a few generated files: "
        f"{tmp_path / 'cifar10.generated'}\n"
    )
    assert torch.equal(opened(tmp_path / "cifar10", generated=True).batch(0).x, data.batch(0).x)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="is not at"):
        opened(tmp_path / "cifar10")


def test_the_lines_of_the_check(binary: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.warns(UserWarning, match="not the whole of CIFAR-10"):
        lines = opened(binary).check()
    assert "training: 10 of 10 classes, 10 to 10 of each" in lines
    python = opened(as_python_version(binary, tmp_path / "python"))
    with pytest.warns(UserWarning, match="md5 sums of 6 files are not the official ones"):
        assert python.check()[-1] == "md5: 0 of 6 files are the official ones"
    for file in python.files[:2]:
        monkeypatch.setitem(MD5, file.name, calculate_md5(file))
    with pytest.warns(UserWarning, match="md5 sums of 4 files"):
        assert python.check()[-1] == "md5: 2 of 6 files are the official ones"
