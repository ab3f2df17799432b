"""Runs of the methods that train on pairs: what pairs cost, interruption, a store used again, and bad ones."""

import json
from pathlib import Path

import pytest
from running import TINY, Commands, run_as_composed
from safetensors.torch import load_file

import fewstep
from fewstep.artifacts.model_file import ModelCard
from fewstep.data.pairs import PairStore

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")

PAIRS, TEACHER_STEPS, IMAGES = 40, 4, 64
MIXTURE = (
    *TINY,
    "dataset=mixture",
    "dataset.num_reference=60",
    f"trainer.max_images={IMAGES}",
    "trainer.diagnostics=0",
)
KD = ("stage=knowledge_distillation", f"stage.num_pairs={PAIRS}", f"stage.teacher_steps={TEACHER_STEPS}")


@pytest.fixture(scope="module")
def guided(as_users_run: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two guided students."""
    folder = tmp_path_factory.mktemp("outputs")
    for name in ("one", "two"):
        own = (f"outputs={folder}", f"name={name}", f"seed={len(name) + ord(name[0])}")
        run_as_composed("stage=guidance", *MIXTURE, *own)
    return {name: folder / f"mixture/guidance/{name}/model.safetensors" for name in ("one", "two")}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.data.pairs.SHARD", 8)


def folder_of(outputs: Path, stage: str = "knowledge_distillation") -> Path:
    return outputs / "mixture" / stage / "run"


def card_of(model: Path) -> ModelCard:
    return fewstep.load(model).card


def test_the_card_counts_what_the_pairs_cost(guided: dict[str, Path], tmp_path: Path) -> None:
    """A guided student is one evaluation a step, a training image three; of the exact teacher pairs are free."""
    own = (*MIXTURE, f"outputs={tmp_path}", "name=run")
    run_as_composed(*KD, *own, f"teacher={guided['one']}")
    assert card_of(folder_of(tmp_path) / "model-1.safetensors").evaluations == PAIRS * TEACHER_STEPS + 3 * IMAGES
    run_as_composed("stage=reflow", "stage.num_pairs=16", "stage.steps=[2,1]", *own, f"teacher={guided['one']}")
    two, one = (card_of(folder_of(tmp_path, "reflow") / f"model-{steps}.safetensors") for steps in (2, 1))
    assert two.evaluations == 16 * 16 + 3 * IMAGES
    assert one.evaluations == 16 * 2 + 3 * IMAGES  # made by the student of two steps
    assert one.parents[0].method == "reflow"


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "pairs"), [(400, 40), (160, 16), (10, 1)])
def test_pairs_take_at_most_half_of_a_budget(guided: dict[str, Path], tmp_path: Path, budget: int, pairs: int) -> None:
    """In whole shards; what is left is trained, a batch at least."""
    own = (*MIXTURE, f"outputs={tmp_path}", "name=run", "stage.training.batch_size=8")
    run_as_composed(*KD, *own, f"teacher={guided['one']}", f"budget={budget}")
    said = json.loads((folder_of(tmp_path) / "pairs/1/store.json").read_text())
    assert said["num_pairs"] == pairs
    card = card_of(folder_of(tmp_path) / "model-1.safetensors")
    trained = -(-max(8, round((budget - pairs * TEACHER_STEPS) / 3)) // 8) * 8
    assert card.images == min(trained, IMAGES)
    assert card.evaluations == pairs * TEACHER_STEPS + 3 * card.images


@pytest.mark.slow
def test_a_plan_counts_them_too(commands: Commands, guided: dict[str, Path], tmp_path: Path) -> None:
    for stage in ("knowledge_distillation", "reflow"):
        own = (f"stage={stage}", f"teacher={guided['one']}", f"outputs={tmp_path}", "budget=100000", "plan=true")
        assert commands.train(*MIXTURE, *own).status == 0
    assert not [*tmp_path.iterdir()]


def test_a_run_that_is_killed_while_pairs_are_made_goes_on_to_the_same_bits(
    guided: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (*KD, *MIXTURE, f"teacher={guided['one']}", "name=run")
    run_as_composed(*own, f"outputs={tmp_path / 'whole'}")
    write = PairStore.write

    def killed(self: PairStore, number: int, *others: object) -> None:
        if number == 3:
            raise KeyboardInterrupt
        write(self, number, *others)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patched:
        patched.setattr(PairStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run_as_composed(*own, f"outputs={tmp_path / 'half'}")
    whole, half = (folder_of(tmp_path / name) for name in ("whole", "half"))
    assert len([*half.glob("pairs/1/shard*")]) == 3
    run_as_composed(*own, f"outputs={tmp_path / 'half'}")
    names = sorted(path.relative_to(whole) for path in whole.glob("pairs/1/*"))
    assert len(names) == 6
    assert sorted(path.relative_to(half) for path in half.glob("pairs/1/*")) == names
    assert all((whole / name).read_bytes() == (half / name).read_bytes() for name in names)
    one, other = (load_file(folder / "model-1.safetensors") for folder in (whole, half))
    assert all(bool((one[key] == other[key]).all()) for key in one)


@pytest.mark.slow
def test_a_store_is_used_again_by_another_run_and_refused_to_another_teacher(
    commands: Commands, guided: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (*KD, *MIXTURE, f"stage.store={tmp_path / 'store'}", f"outputs={tmp_path}")
    run_as_composed(*own, f"teacher={guided['one']}", "name=run")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "store/1").iterdir()}
    again = commands.train(*own, f"teacher={guided['one']}", "stage.training.learning_rate=1e-4", "name=again")
    assert again.status == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store/1").iterdir()} == made
    for changed, words in (
        ([f"teacher={guided['two']}"], "teacher '"),
        ([f"teacher={guided['one']}", "stage.teacher_steps=2"], "teacher_steps 4, not 2"),
        ([f"teacher={guided['one']}", "seed=5"], "seed '0/1', not '5/1'"),
        ([f"teacher={guided['one']}", "stage.w_max=1"], "w {"),
        (["teacher=exact", "stage.w_min=0", "stage.w_max=4"], "'exact "),
    ):
        refused = commands.train(*own, *changed, "name=other")
        refused.is_one_error(f"{tmp_path / 'store/1'} holds pairs of another teacher", words, "stage.store")


def test_a_damaged_shard_is_one_error(commands: Commands, guided: dict[str, Path], tmp_path: Path) -> None:
    own = (*KD, *MIXTURE, f"stage.store={tmp_path / 'store'}", f"outputs={tmp_path}", f"teacher={guided['one']}")
    run_as_composed(*own, "name=run")
    shard = tmp_path / "store/1/shard-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    commands.train(*own, "name=other").is_one_error(f"{shard} is damaged", "delete it")
    shard.unlink()
    assert commands.train(*own, "name=other").status == 0


def test_weights_outside_the_parents_and_bad_settings_are_one_error(
    commands: Commands, guided: dict[str, Path], tmp_path: Path
) -> None:
    own = (*MIXTURE, f"teacher={guided['one']}", f"outputs={tmp_path}")
    commands.train(*KD, *own, "stage.w_max=9").is_one_error("stage.w_max", "[0, 4]")
    commands.train(*KD, *own, "stage.num_pairs=0").is_one_error(
        "stage.num_pairs must be a whole number of at least 1, got 0"
    )
    commands.train("stage=reflow", *own, "stage.steps=[2,4]").is_one_error("stage.steps", "[2, 4]")
    commands.train("stage=reflow", *own, "teacher=none").is_one_error("stage=reflow needs a teacher")
