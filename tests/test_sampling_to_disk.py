"""Any number of images goes to the disk in the memory of one batch; compiled calls change no weights and no images."""

from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import Model
from fewstep.artifacts.model_file import ModelCard
from fewstep.commands import images
from fewstep.commands.images import save_batches
from fewstep.data.digits import DigitsData
from fewstep.data.facts import DataFacts
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation.images import evaluation_tensor
from fewstep.networks import Denoiser, Frozen, ResidualMLP
from fewstep.networks.inputs import frequencies, sinusoid
from fewstep.networks.memory import compile_calls

FACTS = DigitsData.facts


def denoiser(guidance_input: bool = True) -> Denoiser:
    torch.manual_seed(0)
    network = ResidualMLP(
        shape=FACTS.shape, num_classes=10, width=16, num_blocks=1, embedding_dim=8, guidance_input=guidance_input
    )
    for parameter in network.parameters():
        parameter.requires_grad_(False).add_(0.1 * torch.randn_like(parameter))
    return Denoiser(network)


def model() -> Model:
    card = ModelCard(
        method="progressive",
        data=FACTS,
        prediction="v",
        schedule=CosineSchedule(),
        sampling=Sampling.uniform(2, guidance="input"),
        w_min=0.0,
        w_max=4.0,
        images=1,
        parents=(),
    )
    return Model(denoiser(), card)


def test_the_file_is_that_of_all_images_at_once(tmp_path: Path) -> None:
    labels = [index % 10 for index in range(23)]
    whole = model().sample(labels, w=1.0)
    save_batches(model().batches(labels, w=1.0, batch_size=5), 23, FACTS, tmp_path / "x.npz", labels=labels)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as written:
        assert sorted(written) == ["images", "labels"]
        assert written["images"].shape == (23, 8, 8, 1)
        assert np.abs(written["images"].astype(int) - (whole.permute(0, 2, 3, 1).numpy() + 1) * 127.5).max() <= 0.51
        assert written["labels"].tolist() == labels


def test_memory_is_that_of_a_batch_and_a_failure_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: WeakSet[Tensor] = WeakSet()
    most = 0

    def watched(x: Tensor, facts: DataFacts) -> Tensor:
        nonlocal most
        converted = evaluation_tensor(x, facts)
        alive.add(converted)
        most = max(most, len(alive))
        return converted

    def many(bad: bool) -> Iterator[Tensor]:
        for _ in range(40):
            yield torch.zeros(10, *FACTS.shape)
        if bad:
            yield torch.full((1, *FACTS.shape), torch.nan)

    monkeypatch.setattr(images, "evaluation_tensor", watched)
    save_batches(many(bad=False), 400, FACTS, tmp_path / "x.npz", labels=[0] * 400)
    assert most <= 3  # the first, the one before and the latest
    with np.load(tmp_path / "x.npz") as written:
        assert written["images"].shape == (400, 8, 8, 1)
    with pytest.raises(ValueError, match="samples must be finite"):
        save_batches(many(bad=True), 401, FACTS, tmp_path / "y.npz", labels=[0] * 401)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_wrong_request_is_refused_before_the_first_batch() -> None:
    with pytest.raises(ValueError, match="labels must be whole numbers in"):
        model().batches([11])


def test_only_calls_are_compiled() -> None:
    student, teacher = denoiser(), denoiser(guidance_input=False)
    names = [*student.state_dict()]
    compile_calls(student, Guided(Frozen(teacher), 10), None, graphs=True)
    assert [*student.state_dict()] == names
    for each in (student, teacher):
        assert each.network._compiled_call_impl is not None


@pytest.mark.slow
def test_compiled_samples_are_the_same() -> None:
    labels = list(range(10))
    assert torch.allclose(model().sample(labels), model().compile().sample(labels), atol=1e-5)


def test_frequencies_are_remembered_but_not_those_of_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert sinusoid(torch.rand(3), 12).shape == (3, 12)
    with torch.inference_mode():
        first = sinusoid(torch.ones(2), 12)
    value = torch.ones(2, requires_grad=True)
    again = sinusoid(value, 12)
    again.sum().backward()
    assert torch.equal(first, again.detach())
    assert torch.equal(first[0, :6], (1000 * frequencies(12, torch.device("cpu"))).sin())
    assert sinusoid(torch.ones(2, device="meta"), 12).device.type == "meta"
