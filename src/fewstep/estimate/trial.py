"""The process that tries: `python -m fewstep.estimate.trial FOLDER` runs each stage as a run does, for a few updates.

All that it writes goes into that folder, which the planning process removes.
"""

import copy
import gc
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

from omegaconf import OmegaConf

from fewstep.artifacts.model_file import ModelCard, load_model, save_model
from fewstep.artifacts.run_folder import LAST, MODEL, QUALITY
from fewstep.commands.main import run_guarded
from fewstep.diagnostics import Diagnostics
from fewstep.estimate.request import STAND_IN, Attempt, Measured, asked, tell
from fewstep.reports.report import write_report
from fewstep.runs import pipeline as run
from fewstep.runs.build import Setup
from fewstep.runs.evaluate import write_json
from fewstep.system.hardware import peak_gpu_memory, peak_memory, reset_peak_memory
from fewstep.tracking.metrics_file import FILE, read_metrics
from fewstep.tracking.names import IMAGES_PER_SECOND
from fewstep.training.callbacks.snapshots import Snapshots

FIRST = 3  # updates that tell how many there is time for
SECONDS = 2.0  # of updates, to be measured
MOST = 400  # updates
READINGS = 5  # of images/s over those updates; the first is left out
LADDER = [2, 1]  # a rung of any number of steps trains alike, and this one is sampled soonest
STAND_IN_W = 4.0
ALONE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "checkpoint_seconds": 1e9}

spent: dict[str, list[float]] = defaultdict(list)  # seconds of each snapshot and of each look of diagnostics


def main(folder: Path) -> None:
    """Try the stages that are asked for."""
    run.SNAPSHOT_STEPS = 1  # of which the memory is that of any number
    time_of(Snapshots, "take")
    time_of(Diagnostics, "look")
    made: dict[str, Path] = {}
    for attempt in asked(folder):
        config: dict[str, Any] = copy.deepcopy(attempt.config) | {"outputs": str(folder / "outputs")}
        config["trainer"] |= ALONE
        if attempt.parent == STAND_IN:
            config["teacher"] = str(stand_in(config, folder))
        elif attempt.parent is not None:
            config["teacher"] = str(made[attempt.parent])
        gc.collect()
        reset_peak_memory()
        if attempt.stage == "evaluate":
            tell(folder, evaluated(attempt, config))
        else:
            measured, made[attempt.stage] = trained(attempt, config)
            tell(folder, measured)


def time_of(watcher: type[Snapshots | Diagnostics], name: str) -> None:
    """Let this process, which does nothing else, note how long each of these takes."""
    method = getattr(watcher, name)

    def timed(self: Snapshots | Diagnostics, *given: Any) -> None:
        start = perf_counter()
        method(self, *given)
        spent[name].append(perf_counter() - start)

    setattr(watcher, name, timed)


def stand_in(config: dict[str, Any], folder: Path) -> Path:
    """A parent of the kind that the stage needs, with the weights that a network begins with."""
    stage = config["stage"]
    is_teacher = stage["name"] == "guidance" or stage.get("variant") == run.TWO_STUDENT
    setup = Setup.of(OmegaConf.create(config))
    denoiser = setup.network(guidance_input=not is_teacher)
    card = ModelCard(
        role="teacher" if is_teacher else "guided",
        data=setup.facts,
        prediction=denoiser.prediction,
        schedule=setup.schedule_of(denoiser),
        w_min=None if is_teacher else 0.0,
        w_max=None if is_teacher else max(STAND_IN_W, stage.get("w_max") or 0.0),
        num_steps=None,
        images=0,
        parents=(),
        clock=denoiser.clock,
    )
    path = folder / STAND_IN / MODEL
    save_model(path, denoiser, card)
    return path


def trained(attempt: Attempt, config: dict[str, Any]) -> tuple[Measured, Path]:
    """Train for a few updates, then for as many as there is time for; what that took, and the model."""
    seconds = run_for(attempt, config, "first", FIRST, looks=0)[1]
    updates = round(min(max(SECONDS / seconds, FIRST), MOST))
    spent.clear()
    gc.collect()  # Lightning's trainer and its stage hold each other, and a run has one of them
    reset_peak_memory()
    start = perf_counter()
    model, seconds = run_for(attempt, config, "second", updates, looks=int(attempt.looks))
    around = perf_counter() - start - updates * seconds - sum(map(sum, spent.values()))
    memory, on_device = peak_memory(), peak_gpu_memory()
    sizes: dict[str, int] = defaultdict(int)
    for file in model.parent.rglob("*"):
        kind = file.relative_to(model.parent).parts[0]
        sizes[kind if kind in (LAST, "samples") else file.suffix] += file.stat().st_size if file.is_file() else 0
    measured = Measured(
        stage=attempt.stage,
        rows=attempt.rows,
        memory=memory,
        device_memory=on_device,
        seconds_around=max(0.0, around),
        seconds_per_update=seconds,
        seconds_per_snapshot=mean(spent["take"] or [0.0]),
        seconds_per_look=mean(spent["look"] or [0.0]),
        parameters=sum(parameter.numel() for parameter in load_model(model)[0].parameters()),
        model_bytes=sizes[".safetensors"],
        checkpoint_bytes=sizes[LAST],
        picture_bytes=sizes["samples"],
    )
    return measured, model


def run_for(attempt: Attempt, config: dict[str, Any], name: str, updates: int, *, looks: int) -> tuple[Path, float]:
    """Run the stage for so many updates; give its model and the seconds of an update."""
    own, images = copy.deepcopy(config), updates * attempt.rows
    own["name"] = name
    own["stage"]["training"] |= {"images": images, "batch_size": attempt.rows, "warmup_images": 0}
    own["trainer"] |= {
        "max_images": images,
        "snapshots": looks,
        "diagnostics": looks,
        "log_every_images": max(1, updates // READINGS) * attempt.rows,
    }
    if "ladder" in own["stage"]:
        own["stage"] |= {"ladder": LADDER, "few_steps_factor": 1.0}
    match attempt.stage:
        case "teacher":
            model = run.run_teacher(OmegaConf.create(own))
        case "guidance":
            model = run.run_guidance(OmegaConf.create(own))
        case _:
            model = run.run_ladder(OmegaConf.create(own))[0]
    rates = [row[IMAGES_PER_SECOND] for row in read_metrics(model.with_name(FILE)) if IMAGES_PER_SECOND in row]
    return model, attempt.rows / median(rates[1:] or rates)


def evaluated(attempt: Attempt, config: dict[str, Any]) -> Measured:
    """Judge the model and its ancestors at one step and one w."""
    plan = config["stage"]
    plan |= {"num_images": attempt.rows, "w": plan["w"][:1], "teacher_steps": [1], "guided_steps": [1], "baselines": []}
    start = perf_counter()
    run.run_evaluate(OmegaConf.create(config | {"name": "trial"}))
    seconds = perf_counter() - start
    folder = Path(config["outputs"], config["dataset"]["name"], "evaluate", "trial")
    cells = json.loads((folder / QUALITY).read_text())
    per_evaluation = {cell["model"]: 1 / (cell["nfe"] * cell["images_per_second"]) for cell in cells}
    # A cell's picture is written when all else of it is done: the times of the files tell how long it took.
    times = sorted(file.stat().st_mtime for file in (folder / "samples").rglob("*.png"))
    sampled = [attempt.rows / cell["images_per_second"] for cell in cells]
    warm_up = min(plan["batch_size"], attempt.rows)
    warmed = [warm_up * per_evaluation[cell["model"]] * cell["nfe"] / cell["steps"] for cell in cells]
    if len(cells) > 1:
        per_cell = max(0.0, times[-1] - times[0] - sum(sampled[1:]) - sum(warmed[1:])) / (len(cells) - 1)
    else:
        per_cell = max(0.0, seconds - sum(sampled) - sum(warmed))
    around = seconds - sum(sampled) - sum(warmed) - per_cell * len(cells)
    picture_bytes = sum(file.stat().st_size for file in (folder / "samples").rglob("*.png")) // len(cells)
    report_whole(folder, attempt.report)
    return Measured(
        stage=attempt.stage,
        rows=attempt.rows,
        memory=peak_memory(),
        device_memory=peak_gpu_memory(),
        seconds_around=max(0.0, around),
        picture_bytes=picture_bytes,
        seconds_per_evaluation=per_evaluation,
        seconds_per_cell=per_cell,
    )


def report_whole(folder: Path, rows: Sequence[tuple[str, int, int, float]]) -> None:
    """Write the report again with as many rows and pictures as a run's, whose charts take memory of their own."""
    tried = json.loads((folder / QUALITY).read_text())
    cells = {cell["model"]: cell for cell in tried}
    pictures = {file.name.partition("-")[0]: file for file in (folder / "samples").rglob("*.png")}
    whole = []
    for role, steps, nfe, w in rows:
        whole.append(cells.get(role, tried[0]) | {"steps": steps, "nfe": nfe, "w": w})
        own = pictures.get(role)
        if own is not None and not (copied := own.with_name(f"{role}-{steps}-w{w:g}.png")).exists():
            shutil.copyfile(own, copied)
    if whole:
        write_json(folder / QUALITY, whole)
        write_report(folder)


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: main(Path(sys.argv[1]))))
