"""Configs of diffusers folders that are JSON and yet nonsense: one line about each, whatever diffusers says of it."""

from pathlib import Path
from typing import Any

import pytest
from test_diffusers_folders import FACTS, settle, unet2d, write

from fewstep.teachers.imported import read

NETWORK, SCHEDULER = "config.json", "scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        (NETWORK, "attention_head_dim", 0, "cannot be used here"),  # divided by when the network is made
        (NETWORK, "block_out_channels", [], "cannot be used here"),
        (NETWORK, "block_out_channels", {"a": 1}, "cannot be used here"),
        (NETWORK, "downsample_padding", None, "cannot be used here"),  # met when the network is first called
        (NETWORK, "freq_shift", "abc", "cannot be used here"),
        (NETWORK, "num_class_embeds", [5], r"a number of classes, and its config says \[5\]"),
        (NETWORK, "num_class_embeds", float("inf"), "a number of classes, and its config says inf"),
        (SCHEDULER, "num_train_timesteps", float("inf"), "no schedule that can be used here"),
        (SCHEDULER, "beta_start", 1e-20, "between 1e-09 and 1"),
        (SCHEDULER, "prediction_type", ["epsilon"], "prediction_type must be one of"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_nonsense_is_refused_in_one_line(tmp_path: Path, file: str, name: str, value: Any, words: str) -> None:
    write(unet2d(), tmp_path)
    settle(file, **{name: value})(tmp_path)
    with pytest.raises(ValueError, match=words) as refused:
        read(tmp_path, FACTS)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("unchecked")
def test_an_index_of_parts_that_are_no_names_is_refused(tmp_path: Path) -> None:
    write(unet2d(), tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": ["b"], "c": 1}}')
    with pytest.raises(ValueError, match="the teacher lacks"):
        read(tmp_path, FACTS)
