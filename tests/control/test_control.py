"""Sliders and styles: exact targets, strengths that add up, files that are checked, one adapter for all of a chain."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from running import ROOT, Commands, files_below
from safetensors.torch import save_file
from torch import Tensor

import fewstep
from fewstep.artifacts.adapter_file import ADAPTER_KEY, AdapterCard, load_adapter_file, save_adapter_file
from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.control.adapting import Concept, FromImages
from fewstep.control.attributes import brightness, outer_thirds, slant, thickness, warmth
from fewstep.data.digits import DigitsData
from fewstep.diffusion.guidance import guide, steer
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Prediction, diffuse
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule, uniform_times
from fewstep.methods import Networks, Training
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.networks.adapter import with_adapter
from fewstep.networks.low_rank import layers_of, misfit, set_strength, with_changes

pytest_plugins = ("running",)
SCHEDULE = CosineSchedule()
TRAINING = Training(
    images=64,
    batch_size=64,
    learning_rate=1e-3,
    warmup_images=0,
    gradient_clip=1.0,
    ema_decay=0.0,
    weight="snr_plus_one",
)


def concept(towards: int, away: int, eta: float = 1.0, sampling: Sampling | None = None) -> Concept:
    ends = {"towards": torch.tensor([towards]), "away": torch.tensor([away])}
    return Concept(name="concept", training=TRAINING, sampling=sampling or Sampling(), eta=eta, **ends)


def mlp(*, width: int = 16, guidance_input: bool = False, seed: int = 0) -> Denoiser:
    network = ResidualMLP(
        shape=DigitsData.facts.shape,
        num_classes=10,
        width=width,
        num_blocks=1,
        embedding_dim=8,
        guidance_input=guidance_input,
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return Denoiser(network).eval()


def factors(denoiser: Denoiser, seed: int, rank: int = 2) -> dict[str, Tensor]:
    """Random factors of each linear layer."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, module in denoiser.network.named_modules():
        if isinstance(module, torch.nn.Linear):
            made[f"{name}.lora_A.weight"] = 0.3 * torch.randn(rank, module.in_features, generator=generator)
            made[f"{name}.lora_B.weight"] = 0.3 * torch.randn(module.out_features, rank, generator=generator)
    return made


def output(denoiser: Denoiser) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z, log_snr = torch.randn(20, 1, 8, 8, generator=generator), torch.linspace(-6, 6, 20)
    w = torch.linspace(0, 4, 20) if denoiser.has_guidance_input else None
    with torch.no_grad():
        return denoiser(z, log_snr, torch.arange(20) % 10, w).v


# The formula ----------------------------------------------------------------------------------------------------------


def test_steering_from_the_unconditional_branch_is_guidance() -> None:
    c, u, w = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.0, 1.5, 4.0])
    torch.testing.assert_close(
        steer(neutral=u, towards=c, away=u, amount=1 + w), guide(conditional=c, unconditional=u, w=w)
    )


def steered_samples(mixture: GaussianMixture, label: int, amount: float) -> Tensor:
    """Samples of the exact denoiser, steered from class 0 to class 1."""
    method = concept(1, 0)
    nets = Networks(mlp(), mixture.denoise, SCHEDULE, guidance=None)

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        at = Prediction(z=z, v=torch.zeros_like(z), log_snr=log_snr)
        return method.steered(at, label, torch.full((len(z),), amount, dtype=z.dtype), w=w, nets=nets)[0]

    noise = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.full((100,), label)
    return sample(denoise, noise, schedule=SCHEDULE, times=uniform_times(16), label=labels, w=None)


def test_the_target_moves_the_class_posterior_of_exact_samples(make_mixture: Callable[..., GaussianMixture]) -> None:
    mixture = make_mixture(num_classes=2)

    def odds(x: Tensor) -> float:
        log_p = mixture.class_log_probability(x)
        return float((log_p[:, 1] - log_p[:, 0]).mean())

    amounts = (-0.5, 0.0, 0.5, 1.0)
    samples = {amount: steered_samples(mixture, 0, amount) for amount in amounts}
    found = [odds(samples[amount]) for amount in amounts]
    assert found == sorted(found)
    assert found[-1] > 0 > found[1] > found[0]
    noise = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for amount, label in ((0.0, 0), (1.0, 1)):  # none of the way, and all of it: the two classes themselves
        exact = sample(
            mixture.denoise,
            noise,
            schedule=SCHEDULE,
            times=uniform_times(16),
            label=torch.full((100,), label),
            w=None,
        )
        torch.testing.assert_close(samples[amount], exact, rtol=0, atol=1e-9)


def test_a_side_of_images_is_what_denoises_it(make_mixture: Callable[..., GaussianMixture]) -> None:
    """Each half of the batch is compared with its own truth at its own strength."""
    method = FromImages(name="images", training=TRAINING, sampling=Sampling(guidance="none"), sides=(1.0, -1.0))
    student = with_adapter(mlp(), rank=2, alpha=2.0)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    nets = Networks(student, None, SCHEDULE, guidance=None)
    x, label = torch.randn(8, 1, 8, 8), torch.arange(8)
    noised = diffuse(x=x, eps=torch.randn_like(x), log_snr=torch.linspace(-2, 2, 8))
    draws = Draws.begin(x, "test", 0)
    t = torch.rand(8)
    found = method.error(noised, label, t=t, w=None, nets=nets, draws=draws).detach()
    for side, rows in ((1.0, slice(0, 4)), (-1.0, slice(4, 8))):
        set_strength(student, side)
        with torch.no_grad():
            v = student(noised.z[rows], noised.log_snr[rows], label[rows]).v
        torch.testing.assert_close(found[rows], (v - noised.v[rows]).square().flatten(1).mean(1))


def test_what_is_measured_of_images() -> None:
    upright, leaning, thick = (torch.full((1, 1, 8, 8), -1.0) for _ in range(3))
    upright[..., 3:5] = 1
    for row in range(8):
        leaning[0, 0, row, row] = 1
    thick[..., 1:7] = 1
    assert float(slant(upright)) == pytest.approx(0, abs=1e-6)
    assert float(slant(leaning)) == pytest.approx(1, abs=1e-5)  # a column to the right for each row down
    assert float(slant(leaning.flip(-1))) == pytest.approx(-1, abs=1e-5)
    assert float(thickness(thick)) > 2 * float(thickness(upright)) > 3
    assert float(brightness(upright)) == pytest.approx(-0.5)
    red = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert float(warmth(red)) == 2
    with pytest.raises(ValueError, match="RGB images, and these have 1"):
        warmth(upright)


def test_thirds_are_of_each_class() -> None:
    label = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    upper, lower = outer_thirds(torch.tensor([1.0, 2.0, 3.0, 30.0, 20.0, 10.0, 25.0]), label)
    assert (upper.nonzero().flatten().tolist(), lower.nonzero().flatten().tolist()) == ([2, 3], [0, 5])
    with pytest.raises(ValueError, match="class 1 has 2"):
        outer_thirds(torch.arange(5.0), torch.tensor([0, 0, 0, 1, 1]))


# Strengths ------------------------------------------------------------------------------------------------------------


def test_strengths_are_exact() -> None:
    base = mlp()
    one, two = factors(base, 1), factors(base, 2, rank=3)
    assert torch.equal(output(with_changes(base, [(one, 0.0), (two, 0.0)])), output(base))
    both = with_changes(base, [(one, 1.5), (two, -0.5)])
    torch.testing.assert_close(output(both), output(with_changes(base, [(two, -0.5), (one, 1.5)])), rtol=0, atol=0)
    after = with_changes(with_changes(base, [(one, 1.5)]), [(two, -0.5)])
    torch.testing.assert_close(output(both), output(after), rtol=1e-5, atol=1e-5)
    assert float((output(both) - output(base)).abs().max()) > 0.1


@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.5])
def test_merged_is_unmerged(strength: float) -> None:
    """peft adds the adapter's output in each layer; ours is in the weights."""
    base = mlp(guidance_input=True)
    own = factors(base, 1)
    inside = mlp(guidance_input=True)
    targets = [name for name, module in inside.network.named_modules() if isinstance(module, torch.nn.Linear)]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=targets)
    inject_adapter_in_model(config, inside.network)  # pyright: ignore[reportArgumentType]
    for name, value in own.items():
        inside.network.get_parameter(name.replace(".weight", ".default.weight")).data = value
    set_strength(inside, strength)
    torch.testing.assert_close(output(with_changes(base, [(own, strength)])), output(inside), rtol=1e-6, atol=1e-6)


def test_another_shape_is_none_of_this_networks() -> None:
    made = factors(mlp(), 1)
    assert misfit(mlp(guidance_input=True).network, made) is None  # a teacher's fits its students
    assert misfit(mlp(width=24).network, made) == "its layer modulation is 32 x 8, and the model's 48 x 8"


# Files and commands ---------------------------------------------------------------------------------------------------


CARD = AdapterCard(
    kind="concept",
    about="3 -> 8",
    data="digits",
    network="ResidualMLP",
    base_method="teacher",
    base_sha256="ab" * 32,
    rank=2,
    alpha=2.0,
    eta=1.0,
    images=64,
    seed=0,
)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A concept learnt at few samples, which are the most work of a tiny model."""
    monkeypatch.setattr("fewstep.control.lessons.NUM_SAMPLES", 32)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A teacher, a guided student, a student of one step and a wider teacher, of random weights."""
    samplings = {
        "teacher": Sampling(),
        "guided": Sampling(guidance="input"),
        "one": Sampling.uniform(1, guidance="input"),
        "wide": Sampling(),
    }
    files = {}
    for name, sampling in samplings.items():
        has_w = sampling.guidance == "input"
        files[name] = tmp_path / name / "model.safetensors"
        card = ModelCard(
            method=name,
            data=DigitsData.facts,
            prediction="v",
            schedule=SCHEDULE,
            sampling=sampling,
            w_min=0.0 if has_w else None,
            w_max=4.0 if has_w else None,
            images=0,
            parents=(),
        )
        save_model(files[name], mlp(width=24 if name == "wide" else 16, guidance_input=has_w), card)
    return files


def test_a_file_is_read_as_it_was_written_and_a_changed_one_is_not(tmp_path: Path) -> None:
    path, made = tmp_path / "a.safetensors", factors(mlp(), 1)
    save_adapter_file(path, made, CARD)
    read, card = load_adapter_file(path)
    assert card == CARD
    assert all(torch.equal(read[name], value) for name, value in made.items())

    description = json.loads(_metadata(path)[ADAPTER_KEY])
    name = next(iter(made))
    for tensors, said, rule in (
        ({**made, name: 2 * made[name]}, description, "checksum"),
        (made, {**description, "rank": "4"}, "checksum"),
        (made, {}, "checksum"),
    ):
        save_file(tensors, path, metadata={ADAPTER_KEY: json.dumps(said)})
        with pytest.raises(ValueError, match=f"not an adapter that this fewstep can read: .*{rule}"):
            load_adapter_file(path)
    save_file(made, path)
    with pytest.raises(ValueError, match="safetensors but not made by fewstep"):
        load_adapter_file(path)
    path.write_bytes(b"PK" + bytes(20))
    with pytest.raises(ValueError, match="is a pickle"):
        load_adapter_file(path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({}, "at least one layer"),
        ({"a.lora_A.weight": torch.zeros(2, 3)}, "needs both A and B"),
        ({"a.weight": torch.zeros(2, 3)}, "nothing else, got 'a.weight'"),
        ({"a.lora_A.weight": torch.zeros(2, 3), "a.lora_B.weight": torch.zeros(3, 1)}, "of one rank"),
        ({"a.lora_A.weight": torch.full((2, 3), torch.nan), "a.lora_B.weight": torch.zeros(3, 2)}, "finite"),
    ],
)
def test_bad_factors_are_refused(tensors: dict[str, Tensor], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        layers_of(tensors)


FAST = ("--budget", "64", "--batch-size", "32", "--rank", "2")


@pytest.mark.parametrize(
    ("model", "what", "kind"),
    [
        ("teacher", ("--from", "3", "--to", "8"), "concept"),
        ("one", ("--from", "3", "--to", "8", "--at", "3", "--eta", "2"), "concept"),
        ("guided", ("--attribute", "slant"), "attribute"),
        ("guided", ("--examples", "IMAGES", "--label", "3"), "style"),
    ],
)
def test_each_kind_is_trained_and_used(
    commands: Commands, models: dict[str, Path], tmp_path: Path, model: str, what: tuple[str, ...], kind: str
) -> None:
    images = tmp_path / "images.npz"
    assert commands.fewstep("sample", models["teacher"], "--steps", "2", "--num", "6", "--out", images).status == 0
    slider, own = tmp_path / "out" / "slider.safetensors", [str(images) if e == "IMAGES" else e for e in what]
    result = commands.fewstep("adapt", "train", models[model], *own, *FAST, "--out", slider)
    assert result.status == 0, result
    assert f"slider.safetensors: {kind}: " in result.out
    assert files_below(slider.parent) == ["slider.safetensors"]
    assert load_adapter_file(slider)[1].kind == kind
    for other in ("teacher", "guided", "one"):
        plain, moved = (tmp_path / f"{name}.npz" for name in ("plain", "moved"))
        for out, adapter in ((plain, f"{slider}:0"), (moved, f"{slider}:3")):
            used = ("--adapter", adapter, "--steps", "1", "--num", "4", "--out", out)
            assert commands.fewstep("sample", models[other], *used).status == 0
        assert plain.read_bytes() != moved.read_bytes()


@pytest.mark.usefixtures("as_users_run")
def test_applied_is_sampled_with_and_says_so(commands: Commands, models: dict[str, Path], tmp_path: Path) -> None:
    one, two, out = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "out"))
    save_adapter_file(one, factors(mlp(), 1), CARD)
    save_adapter_file(two, factors(mlp(), 2), replace(CARD, about="1 -> 7"))
    used = ("adapt", "apply", models["one"], one, f"{two}:-0.5", "--strength", "0.25", "--out", out)
    result = commands.fewstep(*used)
    assert result.out.endswith("out.safetensors: one with concept: 3 -> 8 at 0.25, concept: 1 -> 7 at -0.5\n"), result
    base, card = fewstep.load(models["one"]), load_model(out)[1]
    assert [(each.path, each.strength) for each in card.adapters] == [
        ("one.safetensors", 0.25),
        ("two.safetensors", -0.5),
    ]
    assert [parent.path for parent in card.parents] == ["one/model.safetensors"]
    assert card.label == "one + adapter"
    expected = fewstep.with_adapters(base, [(two, -0.5), (one, 0.25)]).sample([3, 4], w=1.0)
    assert torch.equal(fewstep.load(out).sample([3, 4], w=1.0), expected)
    again = commands.fewstep("adapt", "apply", out, one, "--out", tmp_path / "sub" / "more.safetensors")
    assert again.status == 0
    more = load_model(tmp_path / "sub" / "more.safetensors")[1]
    assert [each.path for each in more.adapters] == ["../one.safetensors", "../two.safetensors", "../one.safetensors"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            ["sample", "wide", "--adapter", "ONE"],
            ["trained on another network", "first.0 is 16 x 16, and the model's 24 x 24"],
        ),
        (["sample", "one", "--adapter", "ONE:much"], ["FILE or FILE:STRENGTH"]),
        (["sample", "one", "--adapter", "ONE:nan"], ["must be finite"]),
        (["sample", "one", "--adapter", "nothing.safetensors"], ["an adapter must be a file"]),
        (["sample", "one", "--adapter", "MODEL"], ["is fewstep's but not an adapter"]),
        (["adapt", "apply", "one", "ONE"], ["--out"]),
        (["adapt", "train", "teacher"], ["say what to learn"]),
        (["adapt", "train", "teacher", "--from", "3"], ["give both --from and --to"]),
        (["adapt", "train", "teacher", "--from", "3", "--to", "8", "--label", "3"], ["learnt without images"]),
        (["adapt", "train", "teacher", "--attribute", "slant", "--label", "3"], ["say what --examples are"]),
        (["adapt", "train", "teacher", "--from", "3", "--to", "3"], ["from one condition to another"]),
        (["adapt", "train", "teacher", "--from", "3", "--to", "cat"], ["classes 0..9 of digits, got 'cat'"]),
        (["adapt", "train", "teacher", "--from", "3", "--to", "12"], ["0..9"]),
        (["adapt", "train", "teacher", "--from", "3", "--to", "8", "--eta", "0"], ["eta > 0"]),
        (["adapt", "train", "teacher", "--from", "3", "--to", "8", "--rank", "0"], ["at least 1"]),
        (["adapt", "train", "teacher", "--attribute", "warmth"], ["RGB"]),
        (["adapt", "train", "teacher", "--attribute", "mood"], ["one of slant, thickness"]),
        (["adapt", "train", "one", "--attribute", "slant"], ["train the adapter on its teacher"]),
        (["adapt", "train", "teacher", "--attribute", "slant", "--batch-size", "3"], ["divisible by 2"]),
        (["adapt", "train", "teacher", "--examples", "nothing.png", "--label", "3"], ["there is none at nothing.png"]),
    ],
)
def test_what_cannot_be_is_one_line(
    commands: Commands, models: dict[str, Path], tmp_path: Path, typed: list[str], words: list[str]
) -> None:
    one = tmp_path / "one.safetensors"
    save_adapter_file(one, factors(mlp(), 1), CARD)
    given = [str(models.get(each, each)) for each in typed]
    given = [each.replace("ONE", str(one)).replace("MODEL", str(models["teacher"])) for each in given]
    if words != ["--out"]:
        given += ["--out", str(tmp_path / "out.safetensors" if typed[0] == "adapt" else tmp_path / "out.png")]
    commands.fewstep(*given).is_one_error(*words)


def test_an_interrupted_training_goes_on_to_the_same_adapter(
    commands: Commands, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.training.module import DistillationModule

    def train(out: Path) -> int:
        what = ("--from", "3", "--to", "8", "--budget", "256", "--batch-size", "32", "--rank", "2", "--out", out)
        return commands.fewstep("adapt", "train", models["one"], *what).status

    whole, halves = tmp_path / "whole" / "a.safetensors", tmp_path / "halves" / "a.safetensors"
    assert train(whole) == 0
    step = DistillationModule.training_step
    seen: list[int] = []

    def counted(self: DistillationModule, *given: Any) -> Tensor:
        seen.append(self.global_step)
        if seen == [0, 1, 2, 3]:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C
        return step(self, *given)

    monkeypatch.setattr(DistillationModule, "training_step", counted)
    assert train(halves) == 128 + signal.SIGINT
    assert files_below(halves.parent) == ["a-training/last.ckpt"]
    assert train(halves) == 0
    assert seen == [*range(8)]
    assert whole.read_bytes() == halves.read_bytes()


def test_the_published_table_is_that_of_the_results() -> None:
    rows = json.loads((ROOT / "benchmarks/results/control_digits.json").read_text())["rows"]
    cells = {f"{row['effect']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in rows}
    table = (ROOT / "docs/control.md").read_text().partition("<!-- table")[2].partition("<!-- end -->")[0]
    published = [cell for line in table.splitlines() for cell in line.split(" | ")[1:] if "(" in cell]
    assert len(published) == len(rows)
    assert {cell.removesuffix(" |") for cell in published} == cells
