"""Export to a folder of diffusers: a stock pipeline for prompts, a short one of ours for classes."""

import json
import shutil
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeVar

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor, nn

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.prediction import PredictionKind
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import uniform_times
from fewstep.export import pipeline, w_input
from fewstep.export.folder import Trial, difference_of
from fewstep.inference.model import Model
from fewstep.networks.adapter import adapter_file, guidance_file
from fewstep.networks.denoiser import arguments_of
from fewstep.networks.frozen.loading import quiet

PREDICTION: dict[PredictionKind, Literal["v_prediction", "epsilon", "sample"]] = {
    "v": "v_prediction",
    "eps": "epsilon",
    "x": "sample",
}
LORA = Path("lora")  # diffusers' names of files, so that load_lora_weights finds them
Module = TypeVar("Module", bound=nn.Module)


def write(folder: Path, model: Model, path: Path, half: bool) -> float:
    """Write the pipeline, open it as its users will, and give its largest difference to our sampler.

    Raises:
        ValueError: the model is one that no pipeline of diffusers can hold; its autoencoder or text encoder is missing
            or another one.
    """
    if model.card.encodes:
        raise ValueError(
            "an encoder goes from data to noise, for which diffusers has no pipeline; use another --format"
        )
    if model.card.sampling.guidance == "two_evaluations":
        warnings.warn("this model has no w input, so the export takes two network evaluations a step", stacklevel=2)
    with quiet(), quiet(diffusers.utils.logging):
        write_parts = write_stock if model.card.data.text is not None else write_few_step
        write_parts(folder, model, half)
        adapter = adapter_file(path)
        if adapter.is_file():
            (folder / LORA).mkdir()
            shutil.copyfile(adapter, folder / LORA / "pytorch_lora_weights.safetensors")
            if guidance_file(adapter).is_file():
                shutil.copyfile(guidance_file(adapter), folder / LORA / "w_input.safetensors")
        trial = Trial.of(model)
        return difference_of(trial.of_ours(model), made_by(folder, model, trial))


def made_by(folder: Path, model: Model, trial: Trial) -> Tensor:
    """The samples of a trial by the exported pipeline, opened as the README says, in float32."""
    if model.card.data.text is not None:
        pipe: Any = DiffusionPipeline.from_pretrained(folder)
        given: dict[str, Any] = {"prompt": list(trial.prompts)}
    else:
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
        given = {"class_labels": trial.label}
    if model.card.sampling.guidance != "none":
        given["guidance_scale"] = 1 + trial.w
    pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    given |= {"latents": trial.noise, "generator": torch.Generator().manual_seed(0)}
    return pipe(**given, num_inference_steps=trial.steps, output_type="latent").images


# Prompts ------------------------------------------------------------------------------------------------------------


def write_stock(folder: Path, model: Model, half: bool) -> None:
    """Write the parts of a stock pipeline, where guidance_scale = 1 + w: Stable Diffusion's, or LCM's for `renoise`.

    With a `time_cond_proj_dim` both embed guidance_scale - 1 and evaluate once a step.

    Raises:
        ValueError: no stock pipeline samples the model as it was made to be.
    """
    network = model.denoiser.network
    unet = getattr(network, "unet", None)
    if unet is None:
        raise ValueError(
            f"a {type(network).__name__} is no network of diffusers; use --format safetensors or onnx, or train with "
            "model=text"
        )
    scheduler = stock_scheduler(model)
    assert model.autoencoder is not None
    assert model.text_encoder is not None
    assert isinstance(unet, UNet2DConditionModel)
    if unet.config["out_channels"] != unet.config["in_channels"]:
        raise ValueError(
            "a network that learns its variance too has twice the channels that a stock pipeline takes; use "
            "--format safetensors or onnx"
        )
    kind: Any = LatentConsistencyModelPipeline if isinstance(scheduler, LCMScheduler) else StableDiffusionPipeline
    kind(
        vae=stored(model.autoencoder.network, half),
        text_encoder=stored(model.text_encoder.network, half),
        tokenizer=model.text_encoder.tokenizer,
        unet=stored(unet, half),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def stock_scheduler(model: Model) -> DDIMScheduler | LCMScheduler:
    """The stock scheduler whose steps are those of our sampler: DDIM's for `deterministic`, LCM's for `renoise`.

    DDIM's are exactly so for numbers of steps that divide T. Of "zero" SNR at the end of a rescaled schedule ours keeps
    alpha = 4.5e-5, and theirs nothing.

    Raises:
        ValueError: the model's schedule, sampling or data are none that a stock pipeline has.
    """
    card = model.card
    schedule, sampling = card.schedule, card.sampling
    if not isinstance(schedule, BetaSchedule) or schedule != card.native_schedule:
        reason = f"its schedule is {type(schedule).__name__}, and not the one its network was trained with"
    elif sampling.sampler not in ("deterministic", "renoise"):
        reason = f"it was made for the {sampling.sampler} sampler, which no stock scheduler has"
    elif sampling.guidance == "none":
        reason = "it has no guidance, and the pipeline takes a guidance_scale"
    elif card.prediction == "eps" and schedule.has_zero_terminal_snr:
        reason = "it predicts eps where the schedule leaves nothing but noise, which a stock scheduler divides by"
    elif card.data.latent is None:
        reason = "it makes pixels, and the pipeline decodes latents"
    elif sampling.sampler == "renoise" and card.data.shape[1] != card.data.shape[2]:
        reason = "its latents are not square, as those of LatentConsistencyModelPipeline are"
    elif sampling.sampler == "renoise":
        return lcm_scheduler(shared_settings(model, schedule), sampling)
    elif sampling.times is not None and not torch.equal(sampling.grid(), uniform_times(len(sampling.times))):
        reason = "it was made for times of its own, and the scheduler's are evenly spaced"
    else:
        return DDIMScheduler(
            **shared_settings(model, schedule),
            timestep_spacing="trailing",
            steps_offset=1,  # of no use to trailing timesteps; the pipeline warns of any other
        )
    raise refusal(reason)


def shared_settings(model: Model, schedule: BetaSchedule) -> dict[str, Any]:
    """The settings that all stock schedulers have."""
    return {
        "num_train_timesteps": schedule.num_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "linear" if schedule.betas else schedule.kind,
        "trained_betas": list(schedule.betas) if schedule.betas else None,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": PREDICTION[model.card.prediction],
        "rescale_betas_zero_snr": schedule.rescale_zero_snr,
    }


def lcm_scheduler(shared: dict[str, Any], sampling: Sampling) -> LCMScheduler:
    """The LCMScheduler that visits the model's levels in every number of steps that it was made for.

    Its N steps are every (K / N)-th of K even timesteps, rounded to whole ones; K is `original_inference_steps`. Levels
    1, 0.75, 0.5, 0.25 need K = T, LCM's own 1, 0.76, 0.5, 0.26 need K = 50. The boundary scalings c_skip = 0.25 / (s^2
    + 0.25) and c_out = s / sqrt(s^2 + 0.25), s = timestep * timestep_scaling, are 0 and 1 in float32 for s >= 1e4: our
    student has none, as its x is the identity at t = 0 by itself. At timestep 0 they would keep z whatever the scale.

    Raises:
        ValueError: there is no such K.
    """
    total = shared["num_train_timesteps"]
    scheduler = LCMScheduler(**shared, timestep_scaling=1e4)
    wanted = {steps: (sampling.grid(steps) * total - 1).round().long() for steps in sampling.steps or (1,)}
    for even in range(total, max(wanted) - 1, -1):
        if all(own[-1] > 0 and torch.equal(timesteps_of(scheduler, n, even), own) for n, own in wanted.items()):
            scheduler.register_to_config(original_inference_steps=even)
            return scheduler
    raise refusal(
        f"its levels {', '.join(f'{t:g}' for t in sampling.grid().tolist())} are none that LCMScheduler visits, as it "
        "does 1, 0.75, 0.5, 0.25 (stage.levels)"
    )


def timesteps_of(scheduler: LCMScheduler, steps: int, even: int) -> Tensor:
    """The timesteps of so many steps, of so many even ones."""
    scheduler.set_timesteps(steps, original_inference_steps=even)
    return scheduler.timesteps


def refusal(reason: str) -> ValueError:
    return ValueError(
        f"a text model opens in a stock pipeline only if a stock scheduler does what our sampler does, and {reason}; "
        "use --format safetensors or onnx"
    )


# Classes ------------------------------------------------------------------------------------------------------------


def write_few_step(folder: Path, model: Model, half: bool) -> None:
    """Write the parts of `FewStepPipeline`, and its source.

    Raises:
        ValueError: the network is none of diffusers', or the sampler none of the pipeline's.
    """
    network, sampler = model.denoiser.network, model.card.sampling.sampler
    if sampler not in pipeline.SAMPLERS:
        raise ValueError(f"the exported pipeline has no {sampler} sampler; use --format safetensors or onnx")
    plain = getattr(network, "unet", None) or getattr(network, "transformer", None)
    if plain is None:
        raise ValueError(
            f"a {type(network).__name__} is no network of diffusers; use --format safetensors or onnx, or train with "
            "model=unet"
        )
    parts: dict[str, nn.Module] = {"transformer" if hasattr(network, "transformer") else "unet": plain}
    index: dict[str, Any] = {
        "_class_name": ["pipeline", pipeline.FewStepPipeline.__name__],
        "_diffusers_version": diffusers.__version__,
        "settings": settings_of(model),
    }
    features = getattr(network, "time_features", None)
    if features is not None and features.projection is not None:  # of w alone: `export` refuses other inputs
        weight = features.projection.weight
        parts["w_input"] = w_input.WInput(weight.shape[1], weight.shape[0])
        parts["w_input"].load_state_dict({"projection.weight": weight})
    if model.autoencoder is not None:
        parts["vae"] = model.autoencoder.network
    for name, part in parts.items():
        assert isinstance(part, ModelMixin)
        stored(part, half).save_pretrained(folder / name, safe_serialization=True)
        index[name] = ["w_input" if name == "w_input" else "diffusers", type(part).__name__]
    if "w_input" in parts:
        shutil.copyfile(w_input.__file__, folder / "w_input" / "w_input.py")
    shutil.copyfile(pipeline.__file__, folder / "pipeline.py")
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def settings_of(model: Model) -> dict[str, Any]:
    """The settings of `FewStepPipeline` that follow from a model."""
    card, network = model.card, model.denoiser.network
    own = arguments_of(network)
    unet = isinstance(getattr(network, "unet", None), UNet2DConditionModel)
    latent, schedule = card.data.latent, card.schedule
    return {
        "shape": list(card.data.shape),
        "num_classes": card.data.num_classes,
        "low": card.data.low,
        "high": card.data.high,
        "scaling_factor": latent.scaling_factor if latent else None,
        "shift_factor": latent.shift_factor if latent else None,
        "prediction": card.prediction,
        "schedule": table_of(schedule)
        if isinstance(schedule, BetaSchedule)
        else {"log_snr_min": schedule.log_snr_min, "log_snr_max": schedule.log_snr_max},
        "native_schedule": card.native_schedule and table_of(card.native_schedule),
        "sampler": card.sampling.sampler,
        "times": card.sampling.times and list(card.sampling.times),
        "guidance": card.sampling.guidance,
        "num_steps": model.default_steps,
        "made_for_steps": list(card.sampling.steps),
        "w": model.default_w,
        "w_range": None if card.w_min is None else [card.w_min, card.w_max],
        "guidance_dim": own["guidance_dim"] if unet and own["guidance_input"] else None,
        "attends": unet,
    }


def table_of(schedule: BetaSchedule) -> dict[str, list[float]]:
    """log-SNR at t = 0, 1/T, ..., 1, named: diffusers takes a bare list for the class of a part."""
    return {"table": schedule.table.tolist()}


def stored(module: Module, half: bool) -> Module:
    """The part itself, or a copy with its weights rounded to float16."""
    return deepcopy(module).half() if half else module
