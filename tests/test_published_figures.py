"""Published figures are those of the committed results."""

import json
import re
from statistics import mean
from typing import Any

import pytest
from running import ROOT

from fewstep.sweeps.results import Spread

NAMES = {"guided teacher (128 evaluations)": "teacher", "guided teacher": "teacher", "guided student": "guided"}
WEIGHTS = (0.0, 1.0, 2.0, 4.0)


def is_student_alone(cell: dict[str, Any]) -> bool:
    """Not one that goes on from steps of its teacher."""
    return not cell["sampler"].startswith("base")


def test_the_readmes_table_is_that_of_the_ratios() -> None:
    measured = json.loads((ROOT / "benchmarks/results/ratios_digits.json").read_text())
    assert len(measured["seeds"]) >= 3
    assert len(measured["noise"]) >= 5
    cells = {(cell["model"], cell["steps"], cell["w"]): cell for cell in measured["cells"]}
    shown = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.±| ]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    for model, steps, figures in shown:
        for w, figure in zip(WEIGHTS, figures.split(" | "), strict=True):
            cell = cells[model, int(steps), w]
            assert figure == f"{cell['ratio']:.2f} ± {cell['high'] - cell['ratio']:.2f}", (model, steps, w)
    means = {key: mean(cells[*key, w]["ratio"] for w in WEIGHTS) for key in {(m, n) for m, n, _ in cells}}
    for steps in (4, 2, 1):
        best = sorted((key for key in means if key[1] == steps), key=lambda key: means[key])[:3]
        assert {*best, ("progressive", steps)} == {(m, int(n)) for m, n, _ in shown if int(n) == steps}


def test_the_table_of_all_methods_is_that_of_the_leaderboard() -> None:
    board = json.loads((ROOT / "benchmarks/results/leaderboard_digits.json").read_text())
    cells = {(cell["model"], cell["steps"], cell["w"]): cell for cell in board["cells"] if is_student_alone(cell)}
    text = (ROOT / "docs/methods.md").read_text().partition("## Leaderboard\n")[2].partition("## Leaderboard of")[0]
    rows = re.findall(r"^\| `?([\w ]+?)`? \| (\d+) \| ([\d.]+) \| ([\d.±| ]+) \|$", text, re.MULTILINE)
    assert {model for model, *_ in rows} >= {*board["swept"]["method"]}
    for name, steps, ratio, figures in rows:
        model = NAMES.get(name, name)
        assert ratio == f"{cells[model, int(steps), 'mean']['fid_ratio']:.2f}", (name, steps)
        for w, figure in zip((0.0, 1.0, 2.0, 4.0), figures.split(" | "), strict=True):
            cell = cells[model, int(steps), w]
            assert figure == f"{cell['fid']:.2f} ± {(cell['fid_high'] - cell['fid_low']) / 2:.2f}", (name, steps, w)


def test_the_table_of_students_at_the_teachers_cost_is_that_of_its_leaderboard() -> None:
    board = json.loads((ROOT / "benchmarks/results/leaderboard_digits_low_cost.json").read_text())
    cells = {(cell["model"], cell["steps"], cell["w"]): cell for cell in board["cells"]}
    text = (ROOT / "docs/methods.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| (\d) \| ([\d.]+ \([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE
    )
    assert [model for model, *_ in rows] == ["pi_flow", "single_fold"]
    for model, steps, *ratios in rows:
        for w, ratio in zip((0.0, 1.0, 2.0, 4.0), ratios, strict=True):
            own = [cells[model, int(steps), w][f"fid_ratio{end}"] for end in ("", "_low", "_high")]
            assert ratio == "{:.2f} ({:.2f} to {:.2f})".format(*own), (model, w)


def test_the_table_of_two_guidances_is_that_of_its_figures() -> None:
    cells = json.loads((ROOT / "benchmarks/results/guidances_digits.json").read_text())["cells"]
    found = {(cell["w"], cell["w2"], cell["stage"]): cell for cell in cells if cell.get("teacher_share", 1.0) == 1}
    rows = re.findall(r"^\| ([012]) \| ([012]) \| (.+) \|$", (ROOT / "docs/guidances.md").read_text(), re.MULTILINE)
    assert len(rows) == 9
    for w, w2, figures in rows:
        both = [found[float(w), float(w2), stage] for stage in ("teacher", "two_guidances")]
        half = [(high - low) / 2 for low, high in (cell["fid_interval"] for cell in both)]
        expected = [f"{cell['fid']:.2f} ± {own:.2f}" for cell, own in zip(both, half, strict=True)]
        expected += [f"{100 * cell[name]:.1f} %" for name in ("accuracy", "style_accuracy") for cell in both]
        expected += [f"{cell['recall']:.2f}" for cell in both] + [f"{both[1]['same_noise_rmse']:.3f}"]
        assert figures.split(" | ") == expected, (w, w2)


def test_the_table_of_super_resolution_is_that_of_its_benchmark() -> None:
    rows = json.loads((ROOT / "benchmarks/results/super_resolution.json").read_text())["rows"]
    text = (ROOT / "docs/super_resolution.md").read_text()
    shown = re.findall(
        r"^\| x(\d) \| (\w+) \| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([\d.]+) \|$", text, re.M
    )
    assert len(shown) == len(rows)
    for row, (scale, model, steps, *figures, milliseconds) in zip(rows, shown, strict=True):
        assert (row["scale"], row["model"], row["steps"]) == (int(scale), model, int(steps))
        for (name, digits), figure in zip(
            {"psnr": 2, "ssim": 3, "feature_distance": 3, "fid": 2}.items(), figures, strict=True
        ):
            low, high = row["intervals"][name]
            assert figure == f"{row[name]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})", (model, steps, name)
        assert milliseconds == f"{row['ms_cpu']:.1f}"


def test_the_table_of_the_mixture_is_that_of_its_leaderboard() -> None:
    board = json.loads((ROOT / "benchmarks/results/leaderboard_mixture.json").read_text())
    means = [cell for cell in board["cells"] if cell["w"] == "mean" and is_student_alone(cell)]
    cells = {(cell["model"], cell["steps"]): cell for cell in means}
    text = (ROOT / "docs/methods.md").read_text().partition("## Leaderboard of the exact mixture")[2]
    rows = re.findall(r"^\| `?([\w ]+?)`? \| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert {model for model, *_ in rows} >= {*board["swept"]["method"]}
    for name, steps, *figures in rows:
        cell = cells[NAMES.get(name, name), int(steps)]
        half = (cell["exact_rmse_high"] - cell["exact_rmse_low"]) / 2
        progressive = cells.get(("progressive", int(steps)))
        assert figures == [
            f"{cell['exact_rmse']:.3f} ± {half:.3f}",
            "–" if progressive is None else f"{cell['exact_rmse'] / progressive['exact_rmse']:.2f}",
            f"{1000 * (cell['energy_distance'] - cell['energy_floor']):.1f}",
        ], (name, steps)


def test_the_table_of_patches_is_that_of_its_leaderboard() -> None:
    board = json.loads((ROOT / "benchmarks/results/leaderboard_patches.json").read_text())
    cells = {(cell["model"], cell["steps"], cell["w"]): cell["fid"] for cell in board["cells"]}
    text = (ROOT / "docs/methods.md").read_text().partition("## Leaderboard of patches")[2]
    rows = re.findall(r"^\| `?([\w ]+?)`? \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert {model for model, *_ in rows} >= {*board["swept"]["method"]}
    for name, steps, *figures in rows:
        assert figures == [f"{cells[NAMES.get(name, name), int(steps), w]:.1f}" for w in (0.0, 2.0)], (name, steps)


@pytest.mark.parametrize(
    ("file", "title", "models", "weights"),
    [("fashion_mnist_quality", "Fashion-MNIST in pixels", 7, WEIGHTS), ("emoji_captions", "Captions", 4, (0.0, 2.0))],
)
def test_the_tables_of_one_seed_are_those_of_their_figures(
    file: str, title: str, models: int, weights: tuple[float, ...]
) -> None:
    rows = json.loads((ROOT / f"benchmarks/results/{file}.json").read_text())["rows"]
    found = {(row["model"], row["steps"], row["w"]): row for row in rows}
    text = (ROOT / "docs/own-data.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.±| ]+) \|$", text, re.MULTILINE)
    assert len(shown) == models
    for model, steps, figures in shown:
        for w, figure in zip(weights, figures.split(" | "), strict=True):
            row = found[model, int(steps), w]
            low, high = row["intervals"]["fid"]
            assert figure == f"{row['fid']:.2f} ± {(high - low) / 2:.2f}", (model, steps, w)


@pytest.mark.parametrize(
    ("file", "title", "models"), [("fashion_mnist_latents", "Latents: ", 8), ("emoji_latents", "Emoji", 6)]
)
def test_the_tables_of_latents_are_those_of_their_figures(file: str, title: str, models: int) -> None:
    """FID, and its ratio to the teacher's from the same noise: of the means over the noise that over the seeds."""
    measured = json.loads((ROOT / f"benchmarks/results/{file}.json").read_text())
    seeds, noises = measured["seeds"], measured["noise"]
    assert (len(seeds), len(noises)) == (3, 5)
    fids = {(row["seed"], row["noise"], row["model"], row["steps"], row["w"]): row["fid"] for row in measured["rows"]}
    text = (ROOT / "docs/own-data.md").read_text().partition(f"\n## {title}")[2].partition("\n## ")[0]
    tables = text.split("| model | steps |")[1:]
    assert len(tables) == 2
    for ratio, table in enumerate(tables):
        shown = re.findall(r"^\| ([\w ]+) \| (\d+) \| ([\d.±| ]+) \|$", table, re.MULTILINE)
        assert len(shown) == models - ratio  # a teacher's ratio to itself is not shown
        for model, steps, figures in shown:
            for w, figure in zip(WEIGHTS, figures.split(" | "), strict=True):
                own = {
                    (seed, n): fids[seed, n, model, int(steps), w] / (fids[seed, n, "teacher", 32, w] if ratio else 1)
                    for seed in seeds
                    for n in noises
                }
                spread = Spread.of(mean(own[seed, n] for n in noises) for seed in seeds)
                assert spread is not None
                assert spread.interval is not None
                expected = f"{spread.mean:.2f} ± {spread.interval[1] - spread.mean:.2f}"
                assert figure == expected, (ratio, model, steps, w)
                if (ratio, model, w) == (1, "single_fold longer", 0.0):
                    low, high = spread.interval
                    words = f"it is at {spread.mean:.3f} (95 % interval {low:.3f} to {high:.3f})"
                    assert words in " ".join(text.split())


def test_the_table_of_digits_is_that_of_its_figures() -> None:
    rows = json.loads((ROOT / "benchmarks/results/digits_quality.json").read_text())
    found = {(row["model"], row["sampler"], row["steps"], row["w"]): row for row in rows}
    text = (ROOT / "docs/results.md").read_text().partition("## Digits\n")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| (\w+)(?:, ([^|]+))? \| (\d+) \| (\d+) \| ([\d.| ]+) \|$", text, re.MULTILINE)
    assert len(shown) == 12
    for model, sampler, steps, evaluations, figures in shown:
        for each in (sampler or "ddim").lower().split(" or "):
            for w, figure in zip((0.0, 1.0, 2.0, 4.0), figures.split(" | "), strict=True):
                row = found[model, each, int(steps), w]
                assert (f"{row['fid']:.2f}", str(row["nfe"])) == (figure, evaluations), (model, each, steps, w)


def test_the_table_of_policies_is_that_of_its_figures() -> None:
    rows = json.loads((ROOT / "benchmarks/results/policies.json").read_text())["rows"]
    text = (ROOT / "docs/policies.md").read_text()
    shown = re.findall(r"^\| (\w+) \| (\d+) \| (\d) \| ([^|]+) \| ([^|]+) \| ([\d.]*) ?\|$", text, re.MULTILINE)
    assert len(shown) == len(rows) / 3
    for model, evaluations, w, success, entropy, _ in shown:
        cell = (model, int(evaluations), float(w))
        own = [row for row in rows if (row["model"], row["evaluations"], row["w"]) == cell]
        assert len({row["run"] for row in own}) == 3
        assert success.startswith(f"{100 * mean(row['success'] for row in own):.1f} ± "), cell
        assert entropy.startswith(f"{mean(row['entropy'] for row in own):.2f} ± "), cell


def test_the_table_of_the_weight_of_w_is_that_of_its_figures() -> None:
    rows = json.loads((ROOT / "benchmarks/results/mixture_guidance_weight.json").read_text())["rows"]
    text = (ROOT / "docs/results.md").read_text()
    shown = re.findall(r"^\| (uniform|relative) \| (\w+) \| (\d+) \| ([\d.±| ]+) \|$", text, re.MULTILINE)
    assert len(shown) == 6
    for weight, model, steps, figures in shown:
        for w, figure in zip(WEIGHTS, figures.split(" | "), strict=True):
            cell = (weight, model, int(steps), w)
            own = [
                row["exact_rmse"]
                for row in rows
                if tuple(row[k] for k in ("guidance_weight", "model", "steps", "w")) == cell
            ]
            found = Spread.of(own)
            assert found is not None
            assert found.interval is not None
            assert figure == f"{found.mean:.3f} ± {found.interval[1] - found.mean:.3f}", cell


def test_the_share_of_mutants_killed_is_that_of_the_sample() -> None:
    measured = json.loads((ROOT / "benchmarks/results/mutation.json").read_text())
    low, high = (100 * end for end in measured["interval"])
    text = (ROOT / "benchmarks/README.md").read_text()
    counts = f"{measured['killed']} of {measured['run']} are killed"
    assert f"{counts}, {100 * measured['share']:.0f} %** ({low:.0f} to {high:.0f} %" in text


def test_the_tables_of_diversity_are_those_of_their_figures() -> None:
    cells = json.loads((ROOT / "benchmarks/results/diversity_digits.json").read_text())["cells"]
    found = {(cell["model"], cell["steps"], cell["base_steps"], cell["w"]): cell for cell in cells}
    name = r"`?([\w ]+?)`?( \+ base(?: of 3 steps)?)?"
    tables = (ROOT / "docs/diversity.md").read_text().partition("Within-class diversity:")[2].partition("\nFID:")
    for figure, digits, text in (("diversity", 3, tables[0]), ("fid", 2, tables[2])):
        shown = re.findall(rf"^\| {name} \| (\d+) \| (\d+) \| ([\d.±| ]+) \|$", text, re.MULTILINE)
        assert len(shown) == len(cells) / 4
        for model, base, steps, evaluations, figures in shown:
            base_steps = {"": 0, " + base": 1}.get(base, 3)
            for w, own in zip((0.0, 1.0, 2.0, 4.0), figures.split(" | "), strict=True):
                cell = found[NAMES.get(model, model), int(steps), base_steps, w]
                low, high = cell["intervals"][figure]
                mean, half = own.split(" ± ")
                assert (mean, evaluations) == (f"{cell[figure]['mean']:.{digits}f}", str(cell["nfe"])), (
                    model,
                    base,
                    steps,
                    w,
                )
                assert abs(float(half) - (high - low) / 2) < 0.51 * 10**-digits, (model, base, steps, w)
