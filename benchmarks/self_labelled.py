"""Guidance with the data's own labels, with clusters of features in their place, and with none; on digits.

    python benchmarks/self_labelled.py --out benchmarks/results/self_labelled.json

Each arm is the whole pipeline (teacher, guided student, progressive students to 4 steps) with the same settings;
clusters are of the features of the teacher without labels. What is there already is kept, so that an interrupted
command goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import machine

from fewstep.data.digits import DigitsData
from fewstep.data.labels import HELD_OUT, TRAINING, read_labels
from fewstep.data.make_labels import agreement
from fewstep.system.files import write_json

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "dataset=digits",
    "logger=csv",
    "trainer.snapshots=0",
    "trainer.diagnostics=0",
    "stage.guidance.training.images=200000",
    "stage.progressive.ladder=[8,4]",
    "stage.progressive.few_steps_factor=1",
    "stage.progressive.training.images=100000",
    "stage.evaluate.w=[0,0.4,1,2]",
    "stage.evaluate.teacher_steps=[16]",
    "stage.evaluate.guided_steps=[8]",
    "stage.evaluate.baselines=[]",
)
CLUSTERS = {"prototypes": (), "kmeans": ("--kmeans",)}
KEPT = ("model", "steps", "nfe", "w", "fid", "precision", "recall", "intervals", "num_images", "protocol")


def call(*command: str | Path) -> None:
    """A command of this checkout; ends where it fails, and it has said why."""
    done = subprocess.run([sys.executable, *map(str, command)], check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--arms", nargs="+", default=["none", "own", *CLUSTERS])
    parser.add_argument("--none", type=Path, help="a teacher without labels that is there; default: one is trained")
    parser.add_argument("--own", type=Path, help="a teacher with the data's labels; default: one is trained")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/self_labelled"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    outputs, seed, data = given.outputs.resolve(), given.seed, DigitsData(batch_size=1, stream="facts")
    unlabelled = given.none or outputs / "digits" / "teacher" / f"none{seed}" / "model.safetensors"
    arms: dict[str, dict[str, Any]] = {}
    for arm in given.arms:
        labels, teacher, found = arm, {"own": given.own, "none": given.none}.get(arm), {}
        if arm in CLUSTERS:
            labels = outputs / f"{arm}-{given.clusters}-{seed}.safetensors"
            if not labels.is_file():
                line = ("data", "label", "digits", unlabelled, "--clusters", given.clusters, "--seed", seed)
                call(Path(sys.executable).with_name("fewstep"), *map(str, line), *CLUSTERS[arm], "--out", labels)
            held = read_labels(labels, data)[0]
            assert held.held_out is not None, "a file has them"
            pairs = {TRAINING: (held.training, data.labels), HELD_OUT: (held.held_out, data.reference().label)}
            measured = {split: agreement(*pair) for split, pair in pairs.items()}
            found = {split: {"purity": purity, "nmi": nmi} for split, (purity, nmi) in measured.items()}
        own = (f"dataset.labels={labels}", f"seed={seed}", f"name={arm}{seed}", f"outputs={outputs}")
        call(ROOT / "train.py", *SETTINGS, *own, *([f"teacher={teacher}"] if teacher else []))
        rows = json.loads((outputs / "digits" / "pipeline" / f"{arm}{seed}" / "quality.json").read_text())
        arms[arm] = found | {"rows": [{key: row[key] for key in KEPT} for row in rows]}
        line = f"python benchmarks/self_labelled.py --seed {seed} --clusters {given.clusters}"
        write_json(given.out, {"command": line, "settings": SETTINGS, **machine(), "arms": arms})


if __name__ == "__main__":
    main()
