"""Few-step sampling of a class-conditional diffusion model made by fewstep. Needs torch and diffusers alone.

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    images = pipe(class_labels=[0, 1, 2], w=2.0).images

w is the guidance weight of Meng et al. 2023: (1 + w) conditional - w unconditional, so guidance_scale = 1 + w.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers.models.embeddings import Timesteps, get_timestep_embedding
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

Noise = Callable[[], torch.Tensor]


class FewStepPipeline(DiffusionPipeline):
    """One of `unet` and `transformer` is the network, a plain class of diffusers.

    Args:
        vae: decodes latents; None for a model of pixels.
        w_input: the guidance input, where the network's class has none of its own.
        settings: what the sampler has to know of the model; see `model_index.json`.
    """

    model_cpu_offload_seq = "w_input->unet->transformer->vae"
    _optional_components = ["unet", "transformer", "vae", "w_input"]  # noqa: RUF012 (as in every pipeline of diffusers)

    def __init__(
        self, unet: Any = None, transformer: Any = None, vae: Any = None, w_input: Any = None, settings: Any = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, transformer=transformer, vae=vae, w_input=w_input)
        self.register_to_config(settings=settings)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | torch.Tensor,
        w: float | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """One image for each class.

        Args:
            w: guidance weight, 0 none; default: 1, or the nearest that the model was made for. guidance_scale: 1 + w.
            num_inference_steps: default: those the model was made for.
            latents: the noise to start from, (images, C, H, W).
            output_type: pil, np or pt (images in [0, 1]), or latent (what the network makes, not decoded).
        """
        about = self.about
        if about["guidance"] == "none" and not (w is None and guidance_scale is None):
            raise ValueError("this model was made without guidance: leave out w and guidance_scale")
        weight: float = guidance_scale - 1 if guidance_scale is not None else about["w"] if w is None else w
        steps = about["num_steps"] if num_inference_steps is None else num_inference_steps
        label = torch.as_tensor(class_labels, device=self._execution_device).reshape(-1).long()
        self.check(label, weight, steps)
        shape = (len(label), *about["shape"])
        z = randn_tensor(shape, generator, label.device) if latents is None else latents.to(label.device).float()
        log_snrs = log_snr_at(about["schedule"], self.times(steps)).tolist()
        move, progress = SAMPLERS[about["sampler"]], cast(Any, self.progress_bar)
        x = z  # until there is a prediction
        with self.guided(weight, len(label)):
            for step in progress(range(steps)):
                if step:
                    z = move(x, z, log_snrs[step - 1 : step + 2], lambda: randn_tensor(shape, generator, label.device))
                x = self.predict(z, log_snrs[step], label, weight)
        x = x.clamp(about["low"], about["high"])
        images = x if output_type == "latent" else self.images(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)  # pyright: ignore[reportArgumentType]

    def check(self, label: torch.Tensor, w: float, steps: int) -> None:
        """Refuse what cannot be sampled; warn of what the model was not made for.

        Raises:
            ValueError: no class of the model, w below 0, or no step.
        """
        about = self.about
        if steps < 1 or not 0 <= w < math.inf or not bool(((label >= 0) & (label < about["num_classes"])).all()):
            raise ValueError(f"classes are 0..{about['num_classes'] - 1}, w >= 0 (guidance_scale >= 1), steps >= 1")
        if about["made_for_steps"] and steps not in about["made_for_steps"]:
            made_for = " or ".join(map(str, about["made_for_steps"]))
            warnings.warn(f"made for {made_for} steps, not {steps}: expect worse images", stacklevel=3)
        if about["w_range"] and not about["w_range"][0] <= w <= about["w_range"][1]:
            warnings.warn(f"made for w in {about['w_range']}, not {w:g}: expect worse images", stacklevel=3)

    def times(self, steps: int) -> torch.Tensor:
        """The times of the evaluations, and 0: those that the model was made for, or even ones for other numbers."""
        about = self.about
        if steps not in about["made_for_steps"]:
            return torch.arange(steps, -1, -1, dtype=torch.float64) / steps
        return torch.tensor([*about["times"][:: len(about["times"]) // steps], 0], dtype=torch.float64)

    def images(self, x: torch.Tensor, output_type: str) -> Any:
        """Decoded images, in [0, 1] or as pictures."""
        about = self.about
        if self.vae is not None:
            sample = x / about["scaling_factor"] + about["shift_factor"]
            x = self.vae.decode(sample.to(self.vae.dtype), return_dict=False)[0].float()
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        return arrays if output_type == "np" else self.numpy_to_pil(arrays)

    @property
    def about(self) -> dict[str, Any]:
        return dict(self.config)["settings"]

    @property
    def network(self) -> Any:
        return self.unet if self.transformer is None else self.transformer

    @contextmanager
    def guided(self, w: float, count: int) -> Iterator[None]:
        """Let `w_input`, where there is one, add to the features of time inside this context."""
        hooks = []
        if self.w_input is not None:
            extra = self.w_input(torch.full((count,), float(w), device=self._execution_device))
            for module in self.network.modules():
                if isinstance(module, Timesteps):
                    hooks.append(module.register_forward_hook(lambda module, given, features: features + extra))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def predict(self, z: torch.Tensor, log_snr: float, label: torch.Tensor, w: float) -> torch.Tensor:
        """x predicted at z: one evaluation, or two of a model without a guidance input."""
        about = self.about
        known, timestep = log_snr, 1000 * angle(log_snr) / (math.pi / 2)
        if about["native_schedule"] is not None:
            table = torch.tensor(about["native_schedule"]["table"], dtype=torch.float64)
            known = max(log_snr, float(table[-1]))  # no noisier than in its training
            timestep = timestep_at(table, known)
        if about["guidance"] == "two_evaluations":
            unconditional = self.output(z, timestep, torch.full_like(label, about["num_classes"]), w)
            output = (1 + w) * self.output(z, timestep, label, w) - w * unconditional
        else:
            output = self.output(z, timestep, label, w)
        phi = angle(known)
        match about["prediction"]:
            case "v":
                return math.cos(phi) * z - math.sin(phi) * output
            case "eps":
                return (z - math.sin(phi) * output) / math.cos(phi)
            case _:
                return output

    def output(self, z: torch.Tensor, timestep: float, label: torch.Tensor, w: float) -> torch.Tensor:
        """The network's output in float32, without the channels of a learned variance."""
        given: dict[str, Any] = {"class_labels": label, "return_dict": False}
        if dim := self.about["guidance_dim"]:
            scale = torch.full((len(z),), 1000 * float(w), device=z.device)
            given["timestep_cond"] = get_timestep_embedding(scale, dim, downscale_freq_shift=1).to(self.network.dtype)
        if self.about["attends"]:
            given["encoder_hidden_states"] = None
        times = torch.full((len(z),), timestep, device=z.device)
        return self.network(z.to(self.network.dtype), times, **given)[0][:, : z.shape[1]].float()


def angle(log_snr: float) -> float:
    """phi with alpha = cos(phi) and sigma = sin(phi)."""
    return math.atan(math.exp(-0.5 * log_snr))


def log_snr_at(schedule: dict, t: torch.Tensor) -> torch.Tensor:
    """log(alpha^2 / sigma^2) at times t from 0 (data) to 1 (noise): the cosine schedule, or a table of it."""
    if "table" in schedule:
        table = torch.tensor(schedule["table"], dtype=torch.float64)
        place = t * (len(table) - 1)
        before = place.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[before], table[before + 1], place - before)
    first, last = angle(schedule["log_snr_max"]), angle(schedule["log_snr_min"])
    return -2 * torch.log(torch.tan(first + (last - first) * t))


def timestep_at(table: torch.Tensor, log_snr: float) -> float:
    """The timestep of a network trained with a table of log-SNRs; between two of them a fraction."""
    log_snr = min(log_snr, float(table[0]))
    after = int(torch.searchsorted(-table, torch.tensor(-log_snr, dtype=torch.float64)).clamp(1, len(table) - 1))
    share = (float(table[after - 1]) - log_snr) / float(table[after - 1] - table[after])
    return max(0.0, after - 2 + share)


def deterministic(x: torch.Tensor, z: torch.Tensor, log_snrs: list[float], noise: Noise) -> torch.Tensor:
    """Along the prediction x at z to the next time (DDIM)."""
    here, there = angle(log_snrs[0]), angle(log_snrs[1])
    eps = (z - math.cos(here) * x) / math.sin(here)
    return math.cos(there) * x + math.sin(there) * eps


def stochastic(x: torch.Tensor, z: torch.Tensor, log_snrs: list[float], noise: Noise) -> torch.Tensor:
    """Along the prediction to the time after the next, and back to the next with as much noise as that takes."""
    landed = deterministic(x, z, [log_snrs[0], log_snrs[2]], noise)
    there, back = angle(log_snrs[2]), angle(log_snrs[1])
    added = math.sin(back) * math.sqrt(-math.expm1(log_snrs[1] - log_snrs[2]))
    return math.cos(back) / math.cos(there) * landed + added * noise()


def renoise(x: torch.Tensor, z: torch.Tensor, log_snrs: list[float], noise: Noise) -> torch.Tensor:
    """The predicted x, noised afresh to the next time."""
    there = angle(log_snrs[1])
    return math.cos(there) * x + math.sin(there) * noise()


SAMPLERS = {"deterministic": deterministic, "stochastic": stochastic, "renoise": renoise}
