"""The leaderboard: winners only where intervals are apart, intervals over seeds, costs, and its page."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Commands
from scipy.stats import t

from fewstep.artifacts.model_file import Ancestor, ModelCard, save_model
from fewstep.data.facts import DataFacts
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.sweeps.costs import cost_among, costs_in
from fewstep.sweeps.leaderboard import (
    BEST,
    Dot,
    ancestors,
    front,
    leaders,
    marked,
    students,
    tables,
    write_leaderboard,
)
from fewstep.sweeps.results import Spread, collected
from fewstep.system.files import sha256_of
from fewstep.tracking.metrics_file import MetricsFile

pytest_plugins = ("running",)
FIDS = {"tract": 3.0, "dmd2": 3.6, "boot": 3.05}  # tract and boot are not told apart


def row(model: str, steps: int, nfe: int, w: float, fid: float, seed: int) -> dict[str, Any]:
    shares = dict.fromkeys(("precision", "recall", "accuracy", "diversity", "same_noise_rmse"), 0.5)
    cost = {"images_per_second": 10.0, "num_images": 20, "seed": seed, "inception_score": 2.0}
    own = {"protocol": f"aaaa000{seed}", "intervals": {"fid": [0.9 * fid, 1.1 * fid]}}
    return {"model": model, "sampler": "ddim", "steps": steps, "nfe": nfe, "w": w, "fid": fid} | shares | cost | own


def provenance(seed: int, models: Sequence[dict[str, Any]] = (), **protocol: Any) -> str:
    own = {"id": f"aaaa000{seed}", "seed": seed, "num_images": 20, "feature_net": "a net", "dataset": "digits"}
    about = {"device": "a processor", "torch": "2", "fewstep": "0", "created": "2026-01-01"}
    return json.dumps(about | {"protocol": own | {"reference_split": "held out"} | protocol, "models": [*models]})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three methods of two seeds, each with its own noise, whose teacher has another FID in each."""
    folder = tmp_path / "methods"
    jobs = {f"seed={seed},method={m}": {"seed": str(seed), "method": m} for seed in (0, 1) for m in FIDS}
    for job, values in jobs.items():
        seed, method = int(values["seed"]), values["method"]
        better = 1.0 + 0.02 * seed
        rows = [
            own
            for w in (0.0, 2.0)
            for own in (
                row("teacher", 64, 128, w, 2.0 * better, seed),
                row("guided", 8, 8, w, 2.2 * better, seed),
                row(method, 1, 1, w, FIDS[method] * better * (1 + 0.001 * seed), seed),
                *([row(method, 4, 4, w, 2.5, seed)] if method == "tract" else []),
            )
        ]
        run = folder / "digits" / "pipeline" / job
        run.mkdir(parents=True)
        (run / "quality.json").write_text(json.dumps(rows))
        (run / "provenance.json").write_text(provenance(seed))
    about = {"preset": "methods", "fixed": ["sweeps=methods", "dataset=digits", "logger=csv"], "jobs": jobs}
    objective = {"figure": "fid", "steps": 1, "w": None}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(about | {"objective": objective}, sort_keys=False))
    return folder


def spread(mean: float, low: float, high: float) -> Spread:
    return Spread(mean, None, 2, (low, high))


@pytest.mark.parametrize("less_is_better", [True, False])
def test_a_winner_is_one_whose_interval_is_apart(less_is_better: bool):
    sign = 1 if less_is_better else -1

    def of(mean: float, half: float) -> Spread:
        return spread(sign * mean, sign * mean - half, sign * mean + half)

    find: Callable[[list[Spread | None]], list[int]] = lambda own: leaders(own, less_is_better=less_is_better)  # noqa: E731
    assert find([of(3, 0.4), of(2, 0.4), None, of(5, 1)]) == [1]
    assert find([of(3, 0.6), of(2, 0.6), of(5, 1)]) == [0, 1]
    assert find([of(3, 0.1), of(2, 0.1), of(2.5, 3)]) == [1, 2]  # it may be anywhere near
    assert find([of(3, 0.1), Spread(sign * 2, None, 1)]) == []  # what is chance is not known
    assert find([of(2, 0.1), Spread(sign * 3, None, 1)]) == [0, 1]
    assert find([None]) == []


def test_the_interval_over_seeds_is_students():
    values = [3.0, 3.4, 3.5]
    own = Spread.of([*values, None])
    assert own is not None
    assert own.interval is not None
    assert own.std is not None
    low, high = t.interval(0.95, 2, loc=torch.tensor(values).mean(), scale=own.std / 3**0.5)
    assert own.interval == pytest.approx((low, high))
    assert high - own.mean == pytest.approx(4.303 * 0.2646 / 3**0.5, rel=1e-3)  # from a table
    alone = Spread.of([3.0])
    assert alone is not None
    assert alone.interval is None


def test_one_seed_has_the_interval_of_its_images(sweep: Path):
    for file in sweep.rglob("*seed=1*/quality.json"):
        file.unlink()
    entry = students(collected(sweep))[0]
    own = entry.figure("fid", 2.0)
    assert own is not None
    assert own.interval == pytest.approx((0.9 * 3.0, 1.1 * 3.0))
    mean = entry.figure("fid", None)
    assert mean is not None
    assert mean.interval is None  # of figures from one noise at several w


def test_seeds_are_judged_from_their_own_noise_and_ratios_are_paired(sweep: Path):
    found = collected(sweep)
    (one, *_) = students(found)
    ratio = one.figure("fid_ratio", 0.0)
    assert ratio is not None
    assert ratio.mean == pytest.approx(1.5 * 1.0005)  # the teacher's noise is not in it
    assert found.protocol == "aaaa0000, aaaa0001"
    assert [(own.label, own.cell.steps) for own in ancestors(found)] == [("teacher", 64), ("guided", 8)]


def test_other_protocols_are_refused_whatever_the_seed(sweep: Path, commands: Commands):
    (file,) = sweep.rglob("seed=1,method=tract/provenance.json")
    file.write_text(provenance(1, num_images=30))
    commands.fewstep("collect", sweep).is_one_error("judged in 2 ways")


def test_a_group_is_marked_where_nobody_is_ahead(sweep: Path):
    one, four = tables(students(collected(sweep)), [0.0, 2.0])
    assert [(entry.label, cells[0].mark) for entry, cells in one.rows] == [
        ("tract", BEST),  # the ratios, paired, tell it from boot
        ("boot", ""),
        ("dmd2", ""),
    ]
    fids = [cell.mark for cell in marked([entry for entry, _ in one.rows], "fid", 0.0)]
    assert fids == ["", "", ""]  # of two seeds, intervals are wide: nobody is behind
    assert [cells[0].mark for _, cells in four.rows] == [""]  # nobody to be ahead of


def test_the_front_has_what_nothing_beats():
    points = [Dot(cost, quality, None, "", 1) for cost, quality in [(3, 1.0), (1, 3.0), (2, 3.5), (2, 2.0), (4, 1.0)]]
    assert [(dot.cost, dot.quality) for dot in front(points)] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_the_page_and_the_json_as_typed(sweep: Path, commands: Commands):
    next(sweep.rglob("seed=1,method=boot/quality.json")).unlink()
    result = commands.fewstep("collect", sweep)
    assert result.status == 0, result
    assert "leaderboard.html" in result.out.splitlines()[-1]
    page = (sweep / "leaderboard.html").read_text()
    assert page.count("<svg") == 1  # no costs are known but of sampling
    for words in ("3 students", "seed=1,method=boot", "1 step", "4 steps", "python train.py sweeps=methods", "a net"):
        assert words in page, words
    assert "http://" not in page.replace("http://www.w3.org", "")
    board = json.loads((sweep / "leaderboard.json").read_text())
    assert board["command"] == "python train.py sweeps=methods dataset=digits"
    assert (board["device"], board["seeds"], board["missing"]) == (["a processor"], 2, ["seed=1,method=boot"])
    (own,) = [c for c in board["cells"] if (c["model"], c["steps"], c["w"]) == ("tract", 4, 2.0)]
    assert (own["fid"], own["seeds"]) == (2.5, 2)


def test_a_sweep_without_students_has_no_leaderboard(sweep: Path):
    for file in sweep.rglob("quality.json"):
        file.write_text(json.dumps([own for own in json.loads(file.read_text()) if own["model"] == "teacher"]))
    assert write_leaderboard(collected(sweep)) is None


def test_a_student_costs_what_the_rungs_above_it_and_the_guided_student_cost(tmp_path: Path):
    """Evaluations are of the cards, images and seconds of metrics.csv, up to the end of the phase."""
    facts = DataFacts("mixture", (2,), 3, -1.0, 1.0)
    net = Denoiser(ResidualMLP(shape=[2], num_classes=3, width=8, num_blocks=1, embedding_dim=8), "v")
    models: list[dict[str, Any]] = []
    parents: tuple[Ancestor, ...] = ()
    for model, steps, evaluations in (("teacher", None, 7), ("guided", None, 50), ("ladder", 2, 20), ("ladder", 1, 10)):
        file = tmp_path / model / ("model.safetensors" if steps is None else f"model-{steps}.safetensors")
        file.parent.mkdir(exist_ok=True)
        guidance = "two_evaluations" if model == "teacher" else "input"
        sampling = Sampling(guidance=guidance) if steps is None else Sampling.uniform(steps, guidance="input")
        w = None if model == "teacher" else 0.0
        card = ModelCard(
            method=model, data=facts, prediction="v", schedule=CosineSchedule(), sampling=sampling, w_min=w, w_max=w,
            images=1, evaluations=evaluations, parents=parents,
        )  # fmt: skip
        save_model(file, net, card)
        parents = (Ancestor(model, "", sha256_of(file)), *parents)
        path = str(Path("..", file.relative_to(tmp_path)))
        own = {"model": model, "steps": steps, "path": path, "run": str(Path(path).parent), "evaluations": evaluations}
        models.append(own | {"sha256": sha256_of(file)})
    log = MetricsFile(tmp_path / "ladder")
    for images, rung, rate, memory in ((100, 2, 50.0, 5), (200, 2, 100.0, 9), (300, 1, 25.0, 8)):
        log.log_metrics({"images": images, "rung": rung, "train/images_per_second": rate, "train/peak_memory": memory})
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/provenance.json").write_text(provenance(0, models))
    costs = costs_in(tmp_path / "pipeline")
    two, one = cost_among(costs, "ladder", 2), cost_among(costs, "ladder", 1)
    assert two is not None
    assert one is not None
    assert (two.evaluations, two.distillation, two.images, two.seconds, two.peak_memory) == (20, 70, 200, 3.0, 9)
    assert (one.evaluations, one.distillation, one.images, one.seconds, one.peak_memory) == (30, 80, 300, 7.0, 9)
    teacher, guided = cost_among(costs, "teacher", 64), cost_among(costs, "guided", 8)
    assert teacher is not None
    assert guided is not None
    assert (teacher.evaluations, teacher.distillation, guided.distillation) == (7, 0, 50)
    assert cost_among(costs, "ladder", 8) is None
