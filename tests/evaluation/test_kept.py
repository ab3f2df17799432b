"""Samples kept for other evaluations: read instead of drawn, by all that they depend on."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.evaluation.kept import kept


def never() -> Tensor:
    raise AssertionError("drawn again")


def test_samples_are_drawn_once(tmp_path: Path):
    x = torch.randn(3, 2).t()  # of any strides
    first, seconds = kept(tmp_path, "aaaa0000", ("model", 4, 1.0), lambda: x)
    again, same_seconds = kept(tmp_path, "aaaa0000", ("model", 4, 1.0), never)
    assert torch.equal(first, x)
    assert torch.equal(again, x)
    assert seconds == same_seconds


@pytest.mark.parametrize(("protocol", "key"), [("bbbb0000", ("model", 4, 1.0)), ("aaaa0000", ("model", 4, 2.0))])
def test_what_differs_is_drawn(protocol: str, key: tuple[object, ...], tmp_path: Path):
    kept(tmp_path, "aaaa0000", ("model", 4, 1.0), lambda: torch.zeros(2))
    assert kept(tmp_path, protocol, key, lambda: torch.ones(2))[0].sum() == 2


def test_a_damaged_file_is_replaced(tmp_path: Path):
    keep = partial(kept, tmp_path, "aaaa0000", ("model",))
    keep(lambda: torch.zeros(2))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert keep(lambda: torch.ones(2))[0].sum() == 2
    assert keep(never)[0].sum() == 2


def test_nothing_is_kept_without_a_folder_or_of_a_model_that_says_nothing_of_itself(tmp_path: Path):
    kept(None, "aaaa0000", ("model",), lambda: torch.zeros(2))
    kept(tmp_path, "aaaa0000", (None, 4), lambda: torch.zeros(2))
    assert not [*tmp_path.iterdir()]
