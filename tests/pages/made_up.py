"""An outputs folder as training leaves it, with made-up figures: one experiment, and a sweep of four jobs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fewstep.tracking.metrics_file import MetricsFile
from fewstep.tracking.names import GRADIENT_NORM, IMAGES, IMAGES_PER_SECOND, LOSS, RUNG, SAMPLE_FID

BINS = [(n / 8, (n + 1) / 8) for n in range(8)]
LADDER = (16, 8, 4, 2)
BUDGET = 10_000
PROTOCOL = "abc12345"


def config(stage: str, **own: Any) -> dict[str, Any]:
    """The settings of a run, as far as a page looks at them."""
    training = {} if stage == "pipeline" else {"training": {"images": BUDGET}}
    ladder = {"ladder": list(LADDER), "few_steps": 2, "few_steps_factor": 2.0} if stage == "progressive" else {}
    return {"seed": 0, "stage": {"name": stage, **training, **ladder}, "trainer": {"checkpoint_seconds": 120}, **own}


def train(folder: Path, stage: str, *, rungs: Sequence[int | None] = (None,), share: float = 1.0, level: float = 1.0):
    """The run folder of a stage, trained up to `share` of its last rung; each rung's loss and gap fall from `level`."""
    folder.mkdir(parents=True)
    log, images = MetricsFile(folder), 0
    (folder / "config.yaml").write_text(yaml.safe_dump(config(stage)))
    looks = []
    for position, rung in enumerate(rungs):
        whole = BUDGET * (2 if rung is not None and rung <= 2 else 1)
        last = position == len(rungs) - 1
        steps = round(20 * (share if last else 1))
        for step in range(1, steps + 1):
            seen = images + whole * step // 20
            loss = level * (0.2 + math.exp(-step / 4))
            log.log_metrics({IMAGES: seen, RUNG: rung, LOSS: loss, GRADIENT_NORM: 3 * loss, IMAGES_PER_SECOND: 500.0})
        looks += [look(stage, rung, images + whole * n // 4, level / (1 + 2 * n)) for n in range(round(4 * share) + 1)]
        images += whole
        if share == 1 or not last:
            log.log_metrics({IMAGES: images, RUNG: rung, SAMPLE_FID: 20 * level})
            (folder / ("model.safetensors" if rung is None else f"model-{rung}.safetensors")).write_bytes(b"weights")
    (folder / "diagnostics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in looks))


def look(stage: str, rung: int | None, images: int, gap: float, alarms: Sequence[str] = ()) -> dict[str, Any]:
    """One line of diagnostics.jsonl."""
    samples = {"contrast": 0.6, "saturation": 0.4, "excess": 0.0, "diversity": 0.35}
    return {
        "images": images,
        "stage": stage,
        "rung": rung,
        "gap": gap,
        "gap_by_t": [{"low": low, "high": high, "gap": gap * (0.5 + high)} for low, high in BINS],
        "gap_by_w": [] if stage == "teacher" else [{"low": w, "high": w + 1, "gap": gap * (1 + w)} for w in range(4)],
        "gap_by_branch": {"conditional": gap, "unconditional": gap} if stage == "teacher" else None,
        "step_errors": [{"t": n / rung, "error": gap / n} for n in range(rung, 0, -1)] if rung else [],
        "samples": samples,
        "samples_by_w": [],
        "teacher_samples": None if stage == "teacher" else samples | {"contrast": 0.7},
        "teacher_samples_by_w": [],
        "data": samples | {"diversity": None},
        "gradient_norm": None,
        "alarms": [{"kind": "collapse", "says": says} for says in alarms],
    }


def quality(harm: float = 0.15, protocol: str = PROTOCOL) -> list[dict[str, Any]]:
    """Teacher, guided student and ladder over steps x w."""
    models = {"teacher": (64, 8, 4, 2), "guided": (8, 4, 2), "progressive": (8, 4, 2)}
    worse = {"teacher": 20.0, "guided": 18.0, "progressive": harm}
    return [
        {
            "model": model,
            "sampler": "ddim",
            "steps": steps,
            "nfe": steps * (2 if model == "teacher" else 1),
            "w": w,
            "fid": (3.0 + (w - 1) ** 2) * (1 + worse[model] / steps**1.5),
            "inception_score": 8.6 + 0.25 * w**0.5,
            "precision": 0.9,
            "recall": 0.8,
            "accuracy": 0.97,
            "diversity": 0.95 - 0.1 * w,
            "same_noise_rmse": 0.1,
            "images_per_second": 5000.0 / steps,
            "num_images": 2000,
            "seed": 0,
            "protocol": protocol,
        }
        for model, all_steps in models.items()
        for steps in all_steps
        for w in (0.0, 1.0, 2.0, 4.0)
    ]


def judged(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A run folder of an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config("pipeline")))
    (folder / "quality.json").write_text(json.dumps(rows))
    return folder


def experiment(outputs: Path, name: str = "2026-01-02_03-04-05") -> Path:
    """Teacher, guided student and ladder, judged; give the outputs folder."""
    train(outputs / "digits" / "teacher" / name, "teacher")
    train(outputs / "digits" / "guidance" / name, "guidance", level=0.1)
    train(outputs / "digits" / "progressive" / name, "progressive", rungs=LADDER[1:], level=0.02)
    judged(outputs / "digits" / "pipeline" / name, quality())
    return outputs


def sweep(outputs: Path) -> Path:
    """A sweep over w_max and seeds, one of whose jobs is not judged yet; give its folder."""
    folder = outputs / "sweeps" / "guidance_range-12345678"
    values = [{"w_max": w_max, "seed": seed} for w_max in ("2", "4") for seed in ("0", "1")]
    jobs = {f"w_max={each['w_max']},seed={each['seed']}": each for each in values}
    train(folder / "digits" / "teacher" / "shared-0badcafe", "teacher")
    for name, each in jobs.items():
        level = 0.1 * float(each["w_max"])
        train(folder / "digits" / "guidance" / name, "guidance", level=level)
        if each != values[-1]:
            train(folder / "digits" / "progressive" / name, "progressive", rungs=LADDER[1:], level=level)
            judged(folder / "digits" / "pipeline" / name, quality(float(each["w_max"]) + 0.1 * float(each["seed"])))
    about = {
        "preset": "guidance_range",
        "fixed": [],
        "swept": {"stage.guidance.w_max": ["2", "4"], "seed": ["0", "1"]},
        "objective": {"figure": "fid", "steps": 4, "w": None},
        "jobs": jobs,
        "parents": ["shared-0badcafe"],
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    return folder
