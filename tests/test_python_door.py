"""Distillation from Python: networks and loaders of the user's own, any method, Lightning's own Trainer."""

import json
import re
import subprocess
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import lightning
import numpy
import pytest
import torch
import yaml
from running import ROOT
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fewstep
from fewstep.data.batch import as_batch
from fewstep.methods import Guidance, Method, Progressive, SingleFold, Teacher, Tract
from fewstep.training.module import NonFiniteLossError

M = fewstep.methods
FACTS = fewstep.DataFacts("two", (2,), num_classes=2, low=-2.0, high=2.0)
EXAMPLES = ROOT / "docs" / "examples"
SHORT = fewstep.Training(images=96, batch_size=32, learning_rate=1e-3, warmup_images=0)
ROLES = {role: fewstep.RoleTraining(1e-3) for role in ("fake", "critic", "head", "weighting", "projection", "gates")}


class Own(nn.Module):
    """A network of the user's; `extra` is for methods that tell it more."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inward, self.label, self.outward = nn.Linear(3, width), nn.Embedding(3, width), nn.Linear(width, 2)
        self.weight = nn.Linear(1, width, bias=False)
        nn.init.zeros_(self.weight.weight)

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any = None) -> Tensor:
        h = self.inward(torch.cat([z, log_snr[:, None] / 10], 1)) + self.label(label)
        return self.outward(torch.tanh(h if w is None else h + self.weight(w[:, None])))


class WithoutW(nn.Module):
    """A wrapper of three lines, of a network that knows neither w nor more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        return self.inner(z, log_snr, label, None)


@pytest.fixture(scope="module")
def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (128,), generator=generator)
    x = torch.randn(128, 2, generator=generator) * 0.1 + torch.where(label[:, None] == 0, -0.5, 0.5)
    return DataLoader(TensorDataset(x, label), batch_size=32, shuffle=True)


@pytest.fixture(scope="module")
def teacher() -> fewstep.Model:
    torch.manual_seed(0)
    return fewstep.as_model(Own(), FACTS)


def drawn(model: fewstep.Model) -> Tensor:
    return model.sample([0, 1, 1], steps=None if model.card.num_steps else 2)


# fewstep.distil ------------------------------------------------------------------------------------------------------


def test_a_network_and_a_loader_of_ones_own(loader: DataLoader, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Own()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    student = fewstep.distil(network, loader, facts=FACTS, method=Tract(training=SHORT), steps=4, w=(0.0, 3.0))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the user's is changed"
    card = student.card
    assert (card.label, card.sampling.steps, card.w_min, card.w_max) == ("tract", (4,), 0.0, 3.0)
    assert (card.data, card.images) == (FACTS, 96)
    assert torch.isfinite(drawn(student)).all()
    assert not torch.equal(student.sample([0], w=0.0), student.sample([0], w=3.0))

    student.save(path := tmp_path / "student.safetensors")
    again = fewstep.load(path, network=Own())
    assert again.card == card
    assert torch.equal(drawn(again), drawn(student))
    with pytest.raises(ValueError, match=r"Own, is of its maker's code.*fewstep.load\(PATH, network=Own\(...\)\)"):
        fewstep.load(path)
    with pytest.raises(ValueError, match=r"other arguments than network=.*size mismatch"):
        fewstep.load(path, network=Own(width=9))


def test_the_same_arguments_make_the_same_student_and_leave_the_random_state(teacher: fewstep.Model) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    batches = [torch.full((16, 2), 0.1 * number) for number in range(-2, 3)]
    one, same, other = (
        fewstep.distil(teacher, batches, method=SingleFold(training=SHORT), steps=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(drawn(one), drawn(same))
    assert not torch.equal(drawn(one), drawn(other))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shuffled_loader_leaves_the_random_state(teacher: fewstep.Model, loader: DataLoader) -> None:
    state = torch.get_rng_state()
    w: Any = numpy.float32(2)
    fewstep.distil(teacher, loader, method=SingleFold(training=SHORT), w=w)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_that_ends_in_nan_is_refused(teacher: fewstep.Model) -> None:
    batches = [torch.zeros(32, 2), torch.full((32, 2), torch.nan)]
    with pytest.raises(NonFiniteLossError, match="must stay finite, got nan"):
        fewstep.distil(teacher, batches, method=SingleFold(training=SHORT))


class Tied(Own):
    """Two names of one weight, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.norm = self.outward, nn.BatchNorm1d(2)

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None, extra: Any = None) -> Tensor:
        return self.norm(super().forward(z, log_snr, label, w, extra))


def test_tied_weights_are_saved_and_running_statistics_kept(loader: DataLoader, tmp_path: Path) -> None:
    teacher = fewstep.distil(Tied(), loader, facts=FACTS, method=Teacher(training=SHORT))
    assert (teacher.denoiser.get_buffer("network.network.norm.running_var") != 1).all(), "those of the training"
    teacher.save(tmp_path / "teacher.safetensors")
    assert torch.equal(drawn(fewstep.load(tmp_path / "teacher.safetensors", network=Tied())), drawn(teacher))


def test_a_model_file_is_a_teacher(teacher: fewstep.Model, loader: DataLoader, tmp_path: Path) -> None:
    from fewstep.networks import Denoiser, ResidualMLP

    made = ResidualMLP(shape=(2,), num_classes=2, width=8, num_blocks=1, embedding_dim=8)
    path = tmp_path / "teacher.safetensors"
    fewstep.Model(Denoiser(made), teacher.card).save(path)
    student = fewstep.distil(path, loader, method=M.PiFlow(training=SHORT), steps=2, w=1.0)
    student.save(tmp_path / "student.safetensors")
    assert fewstep.load(tmp_path / "student.safetensors").card.sampling.steps == (2,)
    assert (student.card.w_min, student.card.w_max, student.default_w) == (1.0, 1.0, 1.0)


def test_a_network_that_does_not_use_w_makes_students_of_one_weight(loader: DataLoader) -> None:
    method = SingleFold(training=SHORT)
    wrapped = WithoutW(Own())
    with pytest.raises(ValueError, match=r"WithoutW does not use w.*w=2\.0"):
        fewstep.distil(wrapped, loader, facts=FACTS, method=method)
    assert fewstep.distil(wrapped, loader, facts=FACTS, method=method, w=2.0).default_w == 2.0


def test_a_teacher_without_guidance(loader: DataLoader) -> None:
    teacher = fewstep.as_model(WithoutW(Own()), FACTS, guided=False)
    student = fewstep.distil(teacher, loader, method=Progressive(ladder=(4, 2), training=SHORT))
    assert (student.card.w_min, student.card.w_max, student.default_w) == (0.0, 0.0, 0.0)
    assert student.evaluations_per_step == 1


def test_steps_choose_among_what_a_method_makes() -> None:
    assert Progressive().with_steps(4).ladder == (32, 16, 8, 4)
    assert Tract().with_steps(4).time_schedule == (64, 8, 4)
    assert M.FlowMap().with_steps(2).phases()[0].sampling.steps == (1, 2)
    roles = fewstep.Training(roles=ROLES)
    for method, steps in ((M.DMD2(training=roles), 2), (Guidance(), 7)):  # its own levels; any number
        assert method.with_steps(steps) is method
    with pytest.raises(ValueError, match="DMD2 makes students of 1, 2, 4 steps, got steps=3"):
        M.DMD2(training=roles).with_steps(3)


LOOK_INSIDE = {"ADD", "LADD", "RDD", "SFDDM", "O2MKD", "PiFlow"}  # networks of the library's alone
OF_OTHER_TEACHERS = {"FlowTrajectory", "NoiseAwareJudge", "TwoGuidances"}
ALL = [
    name
    for name in M.__all__
    if isinstance(kind := getattr(M, name), type)
    and issubclass(kind, Method)
    and name not in {"Method", "Regression", *OF_OTHER_TEACHERS}
]
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "LADD": {"num_pairs": 64, "judge": {"weight": 0.1}},
    "ADD": {"judge": {"weight": 0.1}},
    "KnowledgeDistillation": {"num_pairs": 64, "teacher_steps": 2},
    "Reflow": {"num_pairs": 64, "teacher_steps": 2, "steps": (2,)},
    "EasyConsistency": {"stages": 2},
    "Progressive": {"ladder": (4, 2)},
    "DDIL": {"ladder": (4, 2)},
    "RDD": {"ladder": (4, 2)},
    "Encoder": {"ladder": (4, 2)},
    "Tract": {"time_schedule": (8, 2)},
}


@pytest.mark.parametrize("name", ALL)
def test_every_method_distils_a_network_of_ones_own(name: str, teacher: fewstep.Model, loader: DataLoader) -> None:
    training = replace(SHORT, images=64, roles=ROLES)
    method = getattr(M, name)(training=training, **OWN_SETTINGS.get(name, {}))
    if name in LOOK_INSIDE:
        with pytest.raises(ValueError, match=r"the library's own|library's networks|gives no policy"):
            fewstep.distil(teacher, loader, method=method)
        return
    student = fewstep.distil(teacher, loader, method=method)
    assert student.card.method == method.name
    if not student.card.encodes:
        assert torch.isfinite(drawn(student)).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"teacher": 3}, "a teacher must be a model file, a fewstep model or a torch module, got int"),
        ({"teacher": "none.safetensors"}, "none.safetensors"),
        ({"teacher": nn.Linear(2, 2)}, r"needs facts=fewstep.DataFacts"),
        ({"teacher": nn.Linear(2, 2), "facts": FACTS}, r"Linear.forward\(z, log_snr, label, w\) must take"),
        ({"facts": fewstep.DataFacts("other", (2,), 2, -1.0, 1.0)}, "this teacher makes two .*leave facts out"),
        ({"data": None}, "SingleFold trains on data: give a DataLoader"),
        ({"data": iter([])}, "no iterator"),
        ({"data": [(1, 2)]}, "a batch must be a tensor of examples, or .examples, labels., got 2 parts, int, int"),
        ({"data": [torch.full((4, 2), 9.0)]}, r"values in \[-2, 2\], and the first batch is .* in \[9, 9\]"),
        ({"data": [torch.zeros(4, 3)]}, r"two is \(2,\)"),
        ({"data": [(torch.zeros(4, 2), torch.full((4,), 5))]}, "labels of two run from 0 to 1"),
        ({"method": SingleFold(training=SHORT).with_steps(2), "w": (4.0, 0.0)}, "w must be one weight or"),
        ({"method": Progressive(variant="two_student", training=SHORT), "w": 2.0}, "keeps the weights"),
        ({"method": M.TwoGuidances(training=SHORT)}, "cannot start from this teacher"),
        ({"trainer": {"precison": "bf16-mixed"}}, "must be arguments of lightning.Trainer.*precison"),
        ({"trainer": {"precision": "bf16-true"}}, "precision must be one of 32-true.*bf16-true"),
        ({"trainer": {"gradient_clip_val": 0.5}}, "training.gradient_clip.*leave gradient_clip_. out"),
        ({"data": []}, "data must give a batch, and give none"),
        ({"data": [(torch.zeros(4, 2), torch.zeros(4, 2))]}, r"one whole number an example.*\(4, 2\) of torch.float32"),
        ({"w": "ab"}, "w must be one weight or"),
        ({"method": SingleFold}, r"like fewstep.methods.Tract\(\)"),
        ({"method": Guidance(training=SHORT), "steps": 0}, "steps must be at least 1"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else next(iter(value)),
)
def test_mistakes_are_one_line(given: dict[str, Any], words: str, teacher: fewstep.Model, loader: DataLoader) -> None:
    arguments = {"teacher": teacher, "data": loader, "method": SingleFold(training=SHORT), **given}
    with pytest.raises((ValueError, FileNotFoundError), match=words) as raised:
        fewstep.distil(arguments.pop("teacher"), arguments.pop("data"), **arguments)
    assert "\n" not in str(raised.value)


def test_what_a_loader_may_give() -> None:
    x, label = torch.zeros(3, 2), torch.tensor([0, 1, 1], dtype=torch.int32)
    for given in ((x, label), [x, label], fewstep.Batch(x, label.long())):
        batch = as_batch(given)
        assert torch.equal(batch.label, label.long())
    assert as_batch(x).label.tolist() == [0, 0, 0]
    assert as_batch([x.double()]).x.dtype == torch.float32
    assert as_batch(torch.tensor([[0, 255]], dtype=torch.uint8)).x.tolist() == [[-1.0, 1.0]]
    with pytest.raises(ValueError, match="as many labels"):
        as_batch((x, label[:2]))


# Lightning's own Trainer ---------------------------------------------------------------------------------------------


def test_lightnings_trainer_trains_and_resumes_a_phase(teacher: fewstep.Model, tmp_path: Path) -> None:
    """By a checkpoint of Lightning's own in the middle; its batches are alike, as it begins the epoch again."""
    batches = DataLoader(TensorDataset(torch.linspace(-1, 1, 16).view(8, 2).repeat(4, 1)), batch_size=8)

    def fit(steps: int, ckpt: Path | None = None, **arguments: Any) -> fewstep.Distillation:
        training = fewstep.Training(images=48, batch_size=8, learning_rate=1e-2, warmup_images=0)
        module = fewstep.Distillation(teacher, method=Guidance(training=training))
        assert module.num_steps == 6
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
        trainer = lightning.Trainer(
            max_steps=steps, default_root_dir=tmp_path, enable_checkpointing=False, **quiet, **arguments
        )
        trainer.fit(module, batches, ckpt_path=ckpt, weights_only=True)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module

    whole = fit(6).model
    fit(4)
    resumed = fit(6, tmp_path / "last.ckpt").model
    assert torch.equal(drawn(resumed), drawn(whole))
    assert (whole.card.images, whole.card.label, whole.card.w_max) == (48, "guided", 4.0)
    parts = fit(2, accumulate_grad_batches=3)
    assert (parts.trainer.global_step, parts.student_updates, parts.evaluated > 0) == (2, 2, True)


def test_a_model_of_the_middle_stays_as_it_was(teacher: fewstep.Model, loader: DataLoader) -> None:
    seen: list[tuple[fewstep.Model, Tensor]] = []

    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append((pl_module.model, drawn(pl_module.model)))

    method = Guidance(training=replace(SHORT, ema_decay=0.0))
    looked = drawn(fewstep.distil(teacher, loader, method=method, trainer={"callbacks": Look()}))
    assert all(torch.equal(drawn(model), samples) for model, samples in seen)
    assert torch.equal(looked, drawn(fewstep.distil(teacher, loader, method=method)))
    with pytest.raises(ValueError, match=r"a parent must be a fewstep model.*got Own"):
        fewstep.Distillation(Own(), method=method)  # pyright: ignore[reportArgumentType]


def test_a_parent_of_distillation_is_checked_as_one_of_distil(teacher: fewstep.Model) -> None:
    with pytest.raises(ValueError, match="Progressive cannot start from this teacher"):
        fewstep.Distillation(teacher, method=Progressive(ladder=(4, 2), training=SHORT))
    without = fewstep.as_model(WithoutW(Own()), FACTS, guided=False)
    card = fewstep.Distillation(without, method=SingleFold(training=SHORT)).model.card
    assert (card.sampling.guidance, card.w_min, card.w_max) == ("input", 0.0, 0.0)


# The public names ----------------------------------------------------------------------------------------------------


def test_the_public_names_are_there_and_are_imported_when_used() -> None:
    assert {name for name in fewstep.__all__ if getattr(fewstep, name, None) is None} == set()
    assert dir(fewstep) == sorted(fewstep.__all__), "which completion shows"
    lazily = "import fewstep, sys; print('torch' in sys.modules, hasattr(fewstep, 'nothing'))"
    said = subprocess.run([sys.executable, "-c", lazily], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]


# Where data or a teacher decide, the file in conf/stage says more than the class.
SET_IN_THE_FILE = {"_target_", "training", "judge", "states", "clip_target", "metric", "student"}


def test_the_defaults_of_a_method_are_those_of_its_file() -> None:
    compared = 0
    for file in (ROOT / "conf" / "stage").glob("*.yaml"):
        values = yaml.safe_load(file.read_text())
        if not values.get("_target_", "").startswith("fewstep.methods."):
            continue
        defaults = {each.name: each for each in fields(getattr(M, values["_target_"].rpartition(".")[2]))}
        for key in values.keys() - SET_IN_THE_FILE:
            own, stated = defaults[key].default, values[key]
            assert own is not MISSING, (file.stem, key)
            assert (list(own) if isinstance(own, tuple) else own) == stated, (file.stem, key)
            compared += 1
    assert compared > 150


# The examples --------------------------------------------------------------------------------------------------------


def cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "two_moons.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "stored without outputs"
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_script_is_the_notebook() -> None:
    script = re.findall(r"^# %%\n(.*?)(?=^# %%|\Z)", (EXAMPLES / "two_moons.py").read_text(), flags=re.S | re.M)
    assert [part.strip() for part in script] == cells()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    scope: dict[str, Any] = {"__name__": "notebook"}
    with torch.random.fork_rng():
        for cell in cells():
            small = re.sub(r"IMAGES = \d[\d_]*", "IMAGES = 1000", cell).replace("[0, 1] * 500", "[0, 1] * 5")
            exec(compile(small, "cell", "exec"), scope)
    assert "tract of 4 steps, w of 0.0 to 4.0" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"student.safetensors", "two_moons.png"}
    assert scope["student"].evaluations_per_step * scope["student"].card.num_steps == 4
    assert isinstance(scope["teacher"].denoiser.network.network, scope["Network"])


def test_the_page_runs(teacher: fewstep.Model, loader: DataLoader, tmp_path: Path, monkeypatch: Any) -> None:
    """Its blocks, with a budget of nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fewstep.Training, "__init__", _small(fewstep.Training.__init__))
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), flags=re.S | re.M)
    assert len(blocks) == 4
    scope = {"network": Own(), "Network": Own, "loader": loader, "torch": torch, "lightning": lightning}
    for block in blocks:
        code = block.replace('"moons"', '"two"').replace("callbacks=[...], logger=...", "logger=False")
        exec(compile(code, "docs/python.md", "exec"), scope)
    assert scope["Wrapped"] is not None
    assert scope["student"].card.sampling.steps == (4,)
    assert isinstance(scope["method"], M.DMD2)
    assert Teacher().label_dropout == 0.1


def _small(init: Any) -> Any:
    def small(self: fewstep.Training, **given: Any) -> None:
        init(
            self, **{"images": 64, "batch_size": 32, **{key: value for key, value in given.items() if key != "images"}}
        )

    return small
