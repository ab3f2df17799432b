"""fewstep collect: means and deviations over seeds, best first, the front, and no mixing of protocols."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from running import Commands

from fewstep.sweeps.collect import write_csv, write_page
from fewstep.sweeps.objective import Objective
from fewstep.sweeps.results import collected, pareto, points

pytest_plugins = ("running",)
FID = {("2", "0"): 5.0, ("2", "1"): 7.0, ("4", "0"): 3.0, ("4", "1"): 3.5, ("8", "0"): 9.0}


def row(model: str, steps: int, nfe: int, w: float, fid: float, protocol: str) -> dict[str, object]:
    shares = dict.fromkeys(("precision", "recall", "accuracy", "diversity", "same_noise_rmse"), 0.5)
    cost = {"images_per_second": 10.0, "num_images": 20, "seed": 0, "protocol": protocol, "inception_score": 2.0}
    return {"model": model, "sampler": "ddim", "steps": steps, "nfe": nfe, "w": w, "fid": fid, **shares, **cost}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "guidance_range"
    jobs = {f"w_max={w},seed={seed}": {"w_max": w, "seed": seed} for w, seed in [*FID, ("8", "1")]}
    folder.mkdir()
    about = {"preset": "guidance_range", "objective": {"figure": "fid", "steps": 4, "w": None}, "jobs": jobs}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(about))
    for (w, seed), fid in FID.items():
        write(folder, f"w_max={w},seed={seed}", fid)
    return folder


def write(folder: Path, job: str, fid: float, protocol: str = "aaaa0000") -> None:
    rows = [
        row(model, steps, nfe, w, fid * factor + w, protocol)
        for w in (0.0, 2.0)
        for model, steps, nfe, factor in [
            ("teacher", 64, 128, 0.9),
            ("progressive", 4, 4, 1.0),
            ("progressive", 1, 1, 3),
        ]
    ]
    own = folder / "digits" / "pipeline" / job
    own.mkdir(parents=True)
    (own / "quality.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("text", ["{", "[" * 5000, '[{"model": 3}]', '[{"model": "x\\u001b[2J"}]'])
def test_a_bad_job_is_named_and_left_out(sweep: Path, text: str):
    bad = sweep / "digits" / "pipeline" / "w_max=4,seed=1"
    (bad / "quality.json").write_text(text)
    with pytest.warns(UserWarning, match=f"^{bad} is left out: .*quality.json is damaged") as caught:
        found = collected(sweep)
    assert [str(each.message).count("\n") for each in caught] == [0]
    assert found.missing == ["w_max=4,seed=1", "w_max=8,seed=1"]
    assert {setting.name: len(setting.jobs) for setting in found.settings}["w_max = 4"] == 1


def test_settings_are_compared_by_the_mean_over_w_and_seeds(sweep: Path):
    found = collected(sweep)
    assert [setting.name for setting in found.settings] == ["w_max = 4", "w_max = 2", "w_max = 8"]
    best = found.settings[0].objective(found.objective)
    assert best is not None
    assert best.mean == pytest.approx(mean([4.0, 4.5]))
    assert best.std == pytest.approx(stdev([4.0, 4.5]))
    alone = found.settings[2].objective(found.objective)
    assert alone is not None
    assert (alone.std, alone.count) == (None, 1)
    assert found.missing == ["w_max=8,seed=1"]


def test_another_figure_may_count(sweep: Path):
    assert collected(sweep, Objective("fid", 1, 2.0)).settings[0].name == "w_max = 4"
    assert Objective("inception_score").less_is_better is False


def test_the_front_has_what_nothing_beats(sweep: Path):
    front = pareto(points(collected(sweep)))
    assert [(p.cell.nfe, p.setting.values["w_max"]) for p in front] == [(1, "4"), (4, "4"), (128, "4")]
    assert all(a.fid.mean > b.fid.mean for a, b in pairwise(front))


def test_the_table_has_every_figure_best_setting_first(sweep: Path):
    with write_csv(collected(sweep)).open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["w_max"] == "4"
    assert len(lines) == 3 * 3 * 3  # settings x models x (mean, w = 0, w = 2)
    (own,) = [x for x in lines if (x["w_max"], x["model"], x["steps"], x["w"]) == ("2", "progressive", "4", "0.0")]
    assert (float(own["fid"]), float(own["fid_std"]), own["seeds"]) == (6.0, pytest.approx(2**0.5), "2")


def test_the_page_says_what_is_best_and_needs_no_network(sweep: Path):
    page = write_page(collected(sweep)).read_text()
    assert "Best: w_max = 4; FID, 4 steps, mean over w: 4.25" in page
    assert page.count("<svg") == 2
    assert "One seed a setting" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "w_max=8,seed=1" in page


def test_protocols_are_not_mixed(sweep: Path, commands: Commands):
    write(sweep, "w_max=8,seed=1", 2.0, protocol="bbbb1111")
    commands.fewstep("collect", sweep).is_one_error("judged in 2 ways", "aaaa0000", "bbbb1111")
    assert not (sweep / "results.csv").exists()


def test_means_over_different_w_are_not_mixed(sweep: Path, commands: Commands):
    file = sweep / "digits/pipeline/w_max=8,seed=0/quality.json"
    file.write_text(json.dumps([each for each in json.loads(file.read_text()) if each["w"] == 0.0]))
    commands.fewstep("collect", sweep).is_one_error("different w", "[0.0]", "[0.0, 2.0]")


def test_one_seed_says_nothing_about_chance(sweep: Path):
    for file in sweep.rglob("*seed=1/quality.json"):
        file.unlink()
    assert "One seed a setting" in write_page(collected(sweep)).read_text()


def test_collect_as_typed(sweep: Path, commands: Commands):
    result = commands.fewstep("collect", sweep, "--steps", "1")
    assert result.status == 0
    assert result.out.splitlines()[0].startswith("w_max = 4: ")
    assert (sweep / "collect.html").is_file()
    commands.fewstep("collect", sweep, "--figure", "beauty").is_one_error("--figure", "beauty", "fid")
    commands.fewstep("collect", sweep.parent).is_one_error("no sweep's folder")


def test_the_table_goes_to_wandb_too(sweep: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = commands.fewstep("collect", sweep, "--wandb")
    assert result.status == 0, result
    assert result.out.splitlines()[-1].startswith("W&B: ")
    (logged,) = sweep.rglob("*.table.json")
    assert "mean" in logged.read_text()


def test_a_sweep_without_figures_is_no_table(sweep: Path, commands: Commands):
    for file in sweep.rglob("quality.json"):
        file.unlink()
    commands.fewstep("collect", sweep).is_one_error("no job", "figures yet")
