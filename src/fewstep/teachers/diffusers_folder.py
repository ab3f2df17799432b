"""Teachers from folders that diffusers has written: plain JSON and tensors, and nothing in them is executed."""

from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import PredictionKind
from fewstep.system.files import sha256_of
from fewstep.teachers.foreign import Foreign, read_json, read_tensors

PIPELINE, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
PLACES = ("unet", "transformer")
# Those whose defaults are DDPM's: what a config leaves out is known.
SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "DDIMInverseScheduler"),
)
READINGS: dict[str, PredictionKind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
WEIGHTS = "diffusion_pytorch_model"
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_diffusers_folder(path: Path) -> bool:
    return (path / PIPELINE).is_file() or (path / CONFIG).is_file() or (path / "scheduler").is_dir()


def read_diffusers_folder(path: Path) -> Foreign:
    """The teacher in a pipeline's folder, or in that of a network alone with its scheduler_config.json.

    Raises:
        ValueError: a file is missing or damaged, or a class or setting is none that can be used here.
    """
    pipeline = path if (path / PIPELINE).is_file() else path.parent if (path.parent / PIPELINE).is_file() else None
    folder = path
    if pipeline == path:
        known = [place for place in PLACES if place in read_json(path / PIPELINE)]
        if not known:
            raise ValueError(f"{path / PIPELINE} names no unet and no transformer; only such pipelines can be teachers")
        folder = path / known[0]
    config = read_json(folder / CONFIG)
    kind = config.get("_class_name")
    if kind not in NETWORKS:
        raise ValueError(f"a teacher must be one of {', '.join(NETWORKS)}, and {folder / CONFIG} says {kind!r}")
    places = [folder / SCHEDULER, *([pipeline / "scheduler" / SCHEDULER] if pipeline else [])]
    found = next((place for place in places if place.is_file()), places[-1])
    native_schedule, prediction = noise_of(read_json(found), found)
    tensors, files = weights_of(folder)
    return Foreign(
        kind=str(kind),
        config={name: value for name, value in config.items() if not name.startswith("_")},
        tensors=tensors,
        prediction=prediction,
        native_schedule=native_schedule,
        pipeline=pipeline,
        digest="".join(sha256_of(file) for file in [*files, folder / CONFIG, found]),
    )


def noise_of(config: dict[str, Any], path: Path) -> tuple[BetaSchedule, PredictionKind]:
    """The beta schedule of a scheduler's config, and how the network's output reads.

    Raises:
        ValueError: a scheduler, schedule or prediction that is none of those known here.
    """
    kind, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if kind not in SCHEDULERS:
        raise ValueError(f"a teacher's scheduler must be one of {', '.join(SCHEDULERS)}, and {path} says {kind!r}")
    if not isinstance(prediction, str) or prediction not in READINGS:
        raise ValueError(f"prediction_type must be one of {', '.join(READINGS)}, and {path} says {prediction!r}")
    trained = config.get("trained_betas")
    try:
        native_schedule = BetaSchedule(
            kind="trained" if trained else config.get("beta_schedule", "linear"),
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            num_timesteps=int(config.get("num_train_timesteps", 1000)),
            rescale_zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
            betas=tuple(float(beta) for beta in trained) if trained else None,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} has no schedule that can be used here: {error}") from error
    return native_schedule, READINGS[prediction]


def weights_of(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The weights of a folder by diffusers' present names, and the files they lie in.

    Raises:
        ValueError: there are none, a part is missing, or they are pickles that hold more than tensors.
    """
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        parts = read_json(index).get("weight_map")
        names = sorted({Path(str(name)).name for name in parts.values()}) if isinstance(parts, dict) else []
        files = [folder / name for name in names]
    else:
        names = [f"{WEIGHTS}{variant}" for variant in (".safetensors", ".fp16.safetensors", ".bin")]
        files = [folder / name for name in names if (folder / name).is_file()][:1]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        absent = missing[0] if missing else folder / f"{WEIGHTS}.safetensors"
        raise ValueError(f"the teacher lacks {absent}; give a folder that is complete, as save_pretrained writes it")
    tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    return {present_name(name): tensor for name, tensor in tensors.items()}, files


def present_name(name: str) -> str:
    """The present name of a weight: attention layers had other names before diffusers 0.15."""
    if ".attentions." not in name:
        return name
    parts = name.split(".")
    return ".".join(OLD_NAMES.get(part, part) for part in parts)
