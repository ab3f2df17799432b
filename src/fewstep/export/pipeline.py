"""Few-step sampling of a class-conditional diffusion model made by fewstep. Needs torch and diffusers alone.

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    images = pipe(class_labels=[0, 1, 2], w=2.0).images

w is the guidance weight of Meng et al. 2023: (1 + w) conditional - w unconditional, so guidance_scale = 1 + w.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps, get_timestep_embedding
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


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
        w: float = 1.0,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """One image for each class.

        Args:
            w: guidance weight, 0 none. guidance_scale: 1 + w, the other way to say it.
            num_inference_steps: default: those the model was made for.
            latents: the noise to start from, (images, C, H, W).
            output_type: pil, np or pt (images in [0, 1]), or latent (what the network makes, not decoded).
        """
        about = self.about
        w = w if guidance_scale is None else guidance_scale - 1
        steps = about["num_steps"] if num_inference_steps is None else num_inference_steps
        label = torch.as_tensor(class_labels, device=self._execution_device).reshape(-1).long()
        if steps < 1 or not 0 <= w < math.inf or not bool(((label >= 0) & (label < about["num_classes"])).all()):
            raise ValueError(f"classes are 0..{about['num_classes'] - 1}, w >= 0 (guidance_scale >= 1), steps >= 1")
        if about["made_for_steps"] and steps != about["made_for_steps"]:
            warnings.warn(f"made for {about['made_for_steps']} steps, not {steps}: expect worse images", stacklevel=2)
        if about["w_range"] and not about["w_range"][0] <= w <= about["w_range"][1]:
            warnings.warn(f"made for w in {about['w_range']}, not {w:g}: expect worse images", stacklevel=2)

        shape = (len(label), *about["shape"])
        z = randn_tensor(shape, generator, label.device) if latents is None else latents.to(label.device).float()
        times = log_snr_at(about["schedule"], torch.arange(steps, -1, -1, dtype=torch.float64) / steps).tolist()
        shown: Any = self.progress_bar
        x = z  # until there is a prediction
        with self.guided(w, len(label)):
            for step in shown(range(steps)):
                if step:
                    noise = randn_tensor(shape, generator, z.device) if about["sampling"] == "stochastic" else None
                    z = follow(x, z, times[step - 1 : step + 2], noise)
                x = self.predict(z, times[step], label, w)
        x = x.clamp(about["low"], about["high"])
        if output_type == "latent":
            images = x
        else:
            if self.vae is not None:
                sample = x / about["scaling_factor"] + about["shift_factor"]
                x = self.vae.decode(sample.to(self.vae.dtype), return_dict=False)[0].float()
            images = (x / 2 + 0.5).clamp(0, 1)
            if output_type != "pt":
                images = images.permute(0, 2, 3, 1).cpu().numpy()
                images = images if output_type == "np" else self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)  # pyright: ignore[reportArgumentType]

    @property
    def about(self) -> dict[str, Any]:
        return dict(self.config)["settings"]

    @property
    def network(self) -> Any:
        return self.unet if self.transformer is None else self.transformer

    @contextmanager
    def guided(self, w: float, count: int) -> Iterator[None]:
        """Let `w_input`, where there is one, add to the features of time in the meantime."""
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
        """x predicted at z: one evaluation, or two of a model that is guided from outside."""
        about = self.about
        native_schedule = None if about["native_schedule"] is None else torch.tensor(about["native_schedule"]["table"], dtype=torch.float64)
        known = log_snr if native_schedule is None else max(log_snr, float(native_schedule[-1]))  # noisier than it has ever seen
        timestep = 1000 * angle(known) / (math.pi / 2) if native_schedule is None else timestep_at(native_schedule, known)
        if about["guided_outside"]:
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
        """The network's output in float32, without the variance that some networks learn beside it."""
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
    """What a network of a table of log-SNRs is told: the timestep, a fraction between two of them."""
    log_snr = min(log_snr, float(table[0]))
    after = int(torch.searchsorted(-table, torch.tensor(-log_snr, dtype=torch.float64)).clamp(1, len(table) - 1))
    share = (float(table[after - 1]) - log_snr) / float(table[after - 1] - table[after])
    return max(0.0, after - 2 + share)


def follow(x: torch.Tensor, z: torch.Tensor, times: list[float], noise: torch.Tensor | None) -> torch.Tensor:
    """From z at times[0], whose predicted data are x, to times[1].

    Without noise along the prediction (DDIM); with noise to times[2], and then as much noise as brings it back.
    """
    here, there = angle(times[0]), angle(times[1] if noise is None else times[2])
    eps = (z - math.cos(here) * x) / math.sin(here)
    landed = math.cos(there) * x + math.sin(there) * eps
    if noise is None:
        return landed
    back = angle(times[1])
    added = math.sin(back) * math.sqrt(-math.expm1(times[1] - times[2]))
    return math.cos(back) / math.cos(there) * landed + added * noise
