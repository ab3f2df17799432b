"""Latency of students by size and steps: one image at a time, on this machine.

    python benchmarks/latency.py --model digits --out benchmarks/results/latency_digits.json

Networks of conf/model/NAME.yaml and of its `smaller`, as guided students (a w input, one evaluation a step), with
random weights, for time does not depend on them. All sizes and steps take turns.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from measure import Spread, in_turns, report
from omegaconf import OmegaConf

from fewstep.diffusion.sampler import SAMPLERS, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, Frozen
from fewstep.networks.smaller import smaller_student
from fewstep.runs.build import data_of
from fewstep.runs.overrides import conf_folder

STEPS = (8, 4, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", default="digits", help="one of conf/model, for the data set's shape")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = data_of(given.dataset, [], batch_size=1).facts
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", [f"dataset={given.dataset}", f"model={given.model}"])
    model = cast(dict[str, Any], OmegaConf.to_container(config.model, resolve=True))
    shape = {"shape": list(facts.shape), "num_classes": facts.num_classes, "guidance_input": True}
    full = Denoiser(instantiate(model["network"], _convert_="all", **shape), model["prediction"])
    sizes = {"full": full} | {name: smaller_student(full, change) for name, change in model["smaller"].items()}
    z, label, w = torch.randn(1, *facts.shape), torch.zeros(1, dtype=torch.long), torch.ones(1)

    def one_image(denoiser: Denoiser, steps: int) -> object:
        times = Sampling.uniform(steps, guidance="input").grid()
        ready = {"schedule": CosineSchedule(), "times": times, "label": label, "w": w}
        return lambda: sample(Frozen(denoiser), z, sampler=SAMPLERS["deterministic"], **ready)

    sides: dict[str, Any] = {
        f"{name} {steps}": one_image(each, steps) for name, each in sizes.items() for steps in STEPS
    }
    times = in_turns(sides, given.seconds)
    rows = []
    for name, denoiser in sizes.items():
        for steps in STEPS:
            spent = Spread.of([1000 * each.cpu for each in times[f"{name} {steps}"]])
            row = {"size": name, "parameters": sum(p.numel() for p in denoiser.parameters()), "steps": steps}
            rows.append(row | {"ms": round(spent.median, 3), "low": round(spent.low, 3), "high": round(spent.high, 3)})
    title = f"milliseconds of the processor for one image, one thread, conf/model/{given.model}.yaml on {given.dataset}"
    report(title, rows, ("size", "parameters", "steps", "ms", "low", "high"), given.out)


if __name__ == "__main__":
    main()
