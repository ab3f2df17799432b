"""Kill an experiment at random moments, again and again, and check that it ends as an undisturbed one.

    python tests/faults/kill.py --kills 100

The experiment is a pipeline (teacher, guided student, students of nine methods, evaluation) and then an encoder's
ladder, on the digits. A life is one process of `python train.py ...`; it is ended by SIGKILL, SIGTERM, SIGUSR1
(pre-emption) or RLIMIT_AS (the next allocation fails; a process that makes none is killed, as by the kernel). The files
of the finished experiment are compared with those of an undisturbed one.
(PYTEST_DONT_REWRITE: it runs without pytest.)
"""

import argparse
import csv
import json
import multiprocessing
import os
import platform
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for running.py, as pytest does

MAX_WAIT = 1.2  # seconds into a life, or into the stage to be killed; imports are done before
MAX_KILLS = 12  # of one experiment
KINDS = ("SIGKILL", "SIGTERM", "SIGUSR1", "memory")
METHODS = ("progressive", "tract", "consistency", "reflow", "dmd2", "rdd", "ddil", "pi_flow", "o2mkd")
TRAINED = ("teacher", "guidance", *METHODS)  # of the pipeline, in its order
STAGES = (*TRAINED, "evaluate", "encoder")
CHECKPOINT_SECONDS = 0.4
BATCH, STEPS, RUNG_STEPS = 50, 200, 100
SETTINGS = (
    "trainer=debug",
    "model.network.width=32",
    "model.network.num_blocks=1",
    "model.network.embedding_dim=16",
    "model.network.dropout=0.1",
    f"trainer.max_images={BATCH * STEPS}",
    f"trainer.log_every_images={BATCH}",
    "trainer.snapshot_images=20",
    f"trainer.checkpoint_seconds={CHECKPOINT_SECONDS}",
)
LEARNS = (f"batch_size={BATCH}", "warmup_images=100")
PIPELINE = (
    "stage=pipeline",
    *(f"+stage@stage.{method}={method}" for method in METHODS[1:]),
    f"stage.stages=[{','.join(TRAINED)},evaluate]",
    *(f"stage.{stage}.training.{setting}" for stage in TRAINED for setting in LEARNS),
    *(f"stage.{method}.training.images={BATCH * RUNG_STEPS}" for method in METHODS),
    "stage.progressive.ladder=[8,4,2,1]",
    "stage.progressive.few_steps_factor=1",
    "stage.tract.time_schedule=[8,2,1]",
    "stage.consistency.self_teacher_decay=0.9",
    "stage.reflow.steps=[2,1]",
    "stage.rdd.ladder=[4,2,1]",
    "stage.rdd.few_steps_factor=1",
    "stage.dmd2.gan_weight=0.003",
    "stage.ddil.ladder=[4,2,1]",
    "stage.ddil.few_steps_factor=1",
    "stage.evaluate.w=[1,2]",
    "stage.evaluate.num_images=200",
    "stage.evaluate.teacher_steps=[8,2]",
    "stage.evaluate.guided_steps=[8,2]",
)
ENCODER = (
    "stage=encoder",
    *(f"stage.training.{setting}" for setting in LEARNS),
    "stage.ladder=[4,2,1]",
    f"stage.training.images={BATCH * RUNG_STEPS}",
)
LADDERS = {
    "progressive": ("4", "2", "1"),
    "tract": ("2", "1"),
    "reflow": ("2", "1"),
    "rdd": ("2", "1"),
    "ddil": ("2", "1"),
    "encoder": ("2", "1"),
}
MEASURED = ("train/images_per_second", "train/peak_memory", "images_per_second")  # which differ by nature
MAX_SECONDS = 300.0  # of one life


@dataclass
class Life:
    """One process of the experiment: what ended it, in which stage, and how much work was lost."""

    kind: str
    stage: str
    seconds: float
    status: int
    unsaved_seconds: float = 0.0  # from the last checkpoint to the last row that was logged
    repeated_images: int = 0  # of metrics.csv, which the next life trains again
    last_line: str = ""  # that it printed


@dataclass
class Trial:
    """An experiment that was killed until it ended."""

    wandb: bool
    lives: list[Life] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def run_commands(commands: list[tuple[str, ...]], log_file: Path) -> None:
    """Run the commands one after another; exit with the first status that is not 0."""
    with log_file.open("a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    from running import train_as_typed

    warnings.simplefilter("ignore", DeprecationWarning)
    for command in commands:
        try:
            train_as_typed(*command)
        except SystemExit as ended:
            if ended.code:
                raise


def commands_of(outputs: Path, wandb: bool) -> list[tuple[str, ...]]:
    shared = (*SETTINGS, f"logger={'wandb' if wandb else 'csv'}", f"outputs={outputs}", "name=killed")
    return [(*PIPELINE, *shared), (*ENCODER, *shared)]


def start(outputs: Path, wandb: bool) -> multiprocessing.process.BaseProcess:
    """Start a new life of the experiment."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fewstep.runs.pipeline", "hydra", "pytest", "running", "wandb"])
    outputs.mkdir(parents=True, exist_ok=True)
    process = processes.Process(target=run_commands, args=(commands_of(outputs, wandb), outputs / "log"))
    process.start()
    return process


def end(process: multiprocessing.process.BaseProcess, kind: str) -> None:
    """End a life; after some seconds SIGKILL follows, as on clusters."""
    assert process.pid is not None
    if kind == "memory":
        mapped = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(process.pid, resource.RLIMIT_AS, (mapped, mapped))
        process.join(2)
    else:
        os.kill(process.pid, signal.Signals[kind])
        process.join(30)
    process.kill()
    process.join()


def last_line(log: Path) -> str:
    """The last line in a log, with numbers and paths replaced by N."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return re.sub(r"\d+|/\S+", "N", lines[-1])[:100] if lines else ""


def folders(outputs: Path) -> dict[str, Path]:
    """The run folder of each stage that has begun."""
    return {path.parents[1].name: path.parent for path in sorted(outputs.glob("digits/*/*/config.yaml"))}


def stage_at(outputs: Path) -> str:
    """The current stage of the experiment."""
    begun = folders(outputs)
    if "encoder" in begun:
        return "encoder"
    last = next((stage for stage in reversed(TRAINED) if stage in begun), "teacher")
    is_trained = last == TRAINED[-1] and any(begun[last].glob("model*.safetensors"))
    return "evaluate" if is_trained else last


def rows_of(metrics: Path) -> list[dict[str, str]]:
    """The complete rows of a metrics.csv."""
    if not metrics.is_file():
        return []
    lines = metrics.read_text().rpartition("\n")[0].splitlines()
    return [{key: text for key, text in row.items() if key not in MEASURED} for row in csv.DictReader(lines)]


def unsaved(folder: Path | None) -> tuple[float, int]:
    """Seconds and images from the last checkpoint of a stage, or its beginning, to the last row that it has logged."""
    if folder is None:
        return 0.0, 0
    from fewstep.training.checkpointing import read_checkpoint

    models, rows = [*folder.glob("model*.safetensors")], rows_of(folder / "metrics.csv")
    if (folder / "cycle.json").exists() or not rows:
        return 0.0, 0
    checkpoints = [path for path in (folder / "last.ckpt", folder / "previous.ckpt") if path.exists()]
    saved = max(path.stat().st_mtime for path in [*checkpoints, *models, folder / "config.yaml"])
    images = 0
    for path in checkpoints[:1]:
        checkpoint = read_checkpoint(path)
        rung = checkpoint["origin"].partition(" ")[0].rpartition("/")[2]  # of "seed/stage/rung from PARENT"
        before = LADDERS.get(folder.parent.name, (rung,)).index(rung)
        images = (before * RUNG_STEPS + checkpoint["global_step"]) * BATCH
    return max(0.0, (folder / "metrics.csv").stat().st_mtime - saved), int(float(rows[-1]["images"])) - images


def run_trial(outputs: Path, wandb: bool, generator: random.Random, kills: int, killed: Counter[str]) -> Trial:
    """Kill an experiment at most `kills` times until it has ended; `killed` counts the kills by stage."""
    trial, finished = Trial(wandb), {}
    while True:
        kind, wait = generator.choice(KINDS), generator.uniform(0.0, MAX_WAIT)
        ahead = STAGES[STAGES.index(stage_at(outputs)) :]
        target = min(ahead, key=killed.__getitem__)  # so that all stages are killed as often
        process, began = start(outputs, wandb), time.time()
        last = len(trial.lives) >= min(kills, MAX_KILLS)
        while not last and process.is_alive() and STAGES.index(stage_at(outputs)) < STAGES.index(target):
            process.join(0.02)
        process.join(MAX_SECONDS if last else wait)
        if process.exitcode is not None or last:
            process.kill()
            process.join()
            trial.lives.append(Life("none", stage_at(outputs), time.time() - began, process.exitcode or 0))
            if process.exitcode:
                trial.differences.append(f"it ended by itself with {process.exitcode}: {last_line(outputs / 'log')}")
            break
        end(process, kind)
        stage = stage_at(outputs)
        killed[stage] += 1
        seconds, images = unsaved(folders(outputs).get(stage))
        line = last_line(outputs / "log")
        trial.lives.append(Life(kind, stage, time.time() - began, process.exitcode or 0, seconds, images, line))
        for path, written in finished.items():
            if not path.exists() or path.stat().st_mtime_ns != written:
                trial.differences.append(f"{path.relative_to(outputs)} was made again")
        finished = {path: path.stat().st_mtime_ns for path in outputs.rglob("*.safetensors")}
    return trial


def differences(ours: Path, theirs: Path) -> Iterator[str]:
    """The differences of two experiments, without measured times."""
    import torch
    from safetensors.torch import load_file

    stages, others = folders(ours), folders(theirs)
    if stages.keys() != others.keys():
        yield f"stages {sorted(stages)} and not {sorted(others)}"
        return
    if extra := [p for p in ours.glob("digits/*/*/config.yaml") if p.parent not in stages.values()]:
        yield f"more runs than one: {extra}"
    for stage, other in others.items():
        folder = stages[stage]
        names, expected = (
            sorted(
                str(path.relative_to(at))
                for path in at.rglob("*")
                if path.is_file() and "wandb" not in path.parts and path.name != "previous.ckpt"
            )
            for at in (folder, other)
        )
        if names != expected:
            yield f"{stage}: files {sorted(set(names) ^ set(expected))} are in one of them only"
            continue
        for name in expected:
            if name.endswith(".safetensors"):
                a, b = load_file(folder / name), load_file(other / name)
                if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
                    yield f"{stage}: {name} has other weights"
            elif name.endswith("metrics.csv") and rows_of(folder / name) != rows_of(other / name):
                yield f"{stage}: {name} has other rows"
            elif name.endswith("quality.json") and cells(folder / name) != cells(other / name):
                yield f"{stage}: {name} has other figures"
            elif name.endswith(".png") and (folder / name).read_bytes() != (other / name).read_bytes():
                yield f"{stage}: {name} is another picture"


def cells(quality: Path) -> list[dict[str, Any]]:
    """The rows of a quality.json without the rates."""
    return [
        {key: value for key, value in row.items() if key not in MEASURED} for row in json.loads(quality.read_text())
    ]


def logged_wrongly(outputs: Path) -> Iterator[str]:
    """Rows of metrics.csv that are missing in W&B's files of all lives, or are there twice."""
    from wandb_files import entries

    for stage, folder in folders(outputs).items():
        counts = Counter(e for file in folder.glob("wandb/*run-*/run-*.wandb") for e in entries(file))
        loss = Counter({images: count for (images, _, name), count in counts.items() if name == "train/loss"})
        expected = {float(row["images"]) for row in rows_of(folder / "metrics.csv") if row["train/loss"]}
        if twice := [images for images, count in loss.items() if count > 1]:
            yield f"{stage}: W&B has {len(twice)} rows twice"
        if missing := expected - loss.keys():
            yield f"{stage}: W&B lacks {len(missing)} rows"
        if len({file.name for file in folder.glob("wandb/*run-*/run-*.wandb")}) > 1:
            yield f"{stage}: more than one W&B run"


def main(kills: int, seed: int, out: Path | None, wandb_every: int = 4) -> dict[str, Any]:
    """Run trials until there were `kills` kills; return, print and write the summary."""
    os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline")
    root = Path(tempfile.mkdtemp(prefix="fewstep-kills-"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        os.environ[name] = str(root / "wandb-home")
    generator, killed, began, trials = random.Random(seed), Counter[str](), time.time(), []
    undisturbed = root / "undisturbed"
    process = start(undisturbed, False)
    process.join(MAX_SECONDS)
    if process.exitcode != 0:
        raise RuntimeError(f"the undisturbed experiment ended with {process.exitcode}, see {undisturbed / 'log'}")
    alone = time.time() - began
    while (left := kills - sum(len(trial.lives) - 1 for trial in trials)) > 0:
        outputs = root / f"trial-{len(trials)}"
        trial = run_trial(outputs, wandb_every > 0 and len(trials) % wandb_every == 1, generator, left, killed)
        trial.differences += differences(outputs, undisturbed)
        trial.differences += logged_wrongly(outputs) if trial.wandb else []
        trials.append(trial)
        print(f"trial {len(trials)}: {len(trial.lives) - 1} kills, {trial.differences or 'identical'}", flush=True)
        if not trial.differences:
            shutil.rmtree(outputs)
    result = summary(trials, seed, alone, time.time() - began)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if result["identical"] == len(trials):
        shutil.rmtree(root)
    return result


def summary(trials: list[Trial], seed: int, alone: float, took: float) -> dict[str, Any]:
    """The figures of tests/faults/results.json."""
    import torch

    killed = [life for trial in trials for life in trial.lives if life.kind != "none"]
    training = [life for life in killed if life.stage != "evaluate"]
    table = {stage: dict.fromkeys(KINDS, 0) for stage in STAGES}
    for life in killed:
        table[life.stage][life.kind] += 1
    return {
        "command": f"python tests/faults/kill.py --kills {len(killed)} --seed {seed}",
        "kills": len(killed),
        "kills_by_stage_and_kind": table,
        "experiments": len(trials),
        "identical": sum(not trial.differences for trial in trials),
        "with_wandb": sum(trial.wandb for trial in trials),
        "differences": [difference for trial in trials for difference in trial.differences],
        "statuses": {kind: dict(Counter(str(life.status) for life in killed if life.kind == kind)) for kind in KINDS},
        "last_lines_without_memory": dict(
            Counter(life.last_line for life in killed if life.kind == "memory" and life.status > 0)
        ),
        "checkpoint_seconds": CHECKPOINT_SECONDS,
        "most_unsaved_seconds": round(max((life.unsaved_seconds for life in training), default=0), 2),
        "most_repeated_images": max((life.repeated_images for life in training), default=0),
        "mean_repeated_images": round(sum(life.repeated_images for life in training) / max(1, len(training))),
        "images_of_the_experiment": BATCH * (2 * STEPS + 14 * RUNG_STEPS),
        "seconds_undisturbed": round(alone, 1),
        "seconds": round(took),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="where to write the figures as JSON")
    chosen = parser.parse_args()
    figures = main(chosen.kills, chosen.seed, chosen.out)
    sys.exit(figures["identical"] != figures["experiments"])
