"""A run folder as evaluation leaves it, with made-up figures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fewstep.tracking.metrics_file import MetricsFile
from fewstep.tracking.names import IMAGES, LOSS, RUNG

WEIGHTS = (0.0, 1.0, 2.0, 4.0)
TRAINED = {"teacher": None, "guided": None, "progressive": (8, 4, 2, 1)}


def quality_rows() -> list[dict[str, object]]:
    """Teacher, guided student and ladder over steps x w; the ladder loses little by few steps."""
    models = {"teacher": (64, 8, 4, 2, 1), "guided": (64, 8, 4), "progressive": (8, 4, 2, 1)}
    harm = {"teacher": 20.0, "guided": 18.0, "progressive": 0.15}
    return [
        {
            "model": model,
            "sampler": "ddim",
            "steps": steps,
            "nfe": steps * (2 if model == "teacher" else 1),
            "w": w,
            "fid": (3.0 + 2.0 * w) * (1 + harm[model] / steps**1.5),
            "inception_score": 8.6 + 0.25 * w**0.5 - (1.5 if model == "teacher" else 0.1) / steps,
            "precision": 0.9,
            "recall": 0.8,
            "accuracy": 0.97 + 0.005 * w - 0.01 / steps,
            "diversity": 0.95 - 0.1 * w,
            "same_noise_rmse": 0.0 if (model, steps) == ("teacher", 64) else 0.1,
            "images_per_second": (2500.0 if model == "teacher" else 5000.0) / steps,
            "num_images": 2000,
            "seed": 0,
            "protocol": "abc12345",
        }
        for model, all_steps in models.items()
        for steps in all_steps
        for w in WEIGHTS
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """outputs/digits/pipeline/NOW, with the runs of its three stages beside it."""
    folder = tmp_path / "digits" / "pipeline" / "2026-01-02_03-04-05"
    rows, models = quality_rows(), []
    for stage, rungs in TRAINED.items():
        home = tmp_path / "digits" / stage / folder.name
        log = MetricsFile(home)
        for position, rung in enumerate(rungs or (None,)):
            for index in range(1, 6):
                log.log_metrics({IMAGES: (5 * position + index) * 1000, RUNG: rung, LOSS: 1 / index})
            name = "model.safetensors" if rung is None else f"model-{rung}.safetensors"
            run = f"../../{stage}/{folder.name}"
            models.append({"model": stage, "steps": rung, "path": f"{run}/{name}", "sha256": "5e" * 32, "run": run})
    (folder / "samples" / "same-noise").mkdir(parents=True)
    for row in rows:
        name = f"{row['model']}-{row['steps']}-w{row['w']:g}.png"
        Image.new("L", (80, 8), 100).save(folder / "samples" / "same-noise" / name)
    (folder / "quality.json").write_text(json.dumps(rows))
    provenance = {
        "protocol": {"dataset": "digits", "num_images": 2000, "seed": 0, "id": "abc12345"},
        "models": models,
        "created": "2026-01-02T03:10:00",
        "fewstep": "0.1.0",
        "torch": "2.11.0",
        "device": "a processor",
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "config.yaml").write_text("seed: 0\nstage:\n  name: pipeline\n")
    return folder
