"""The exact teacher: a class-conditional mixture of axis-aligned Gaussians, whose denoiser has a closed form."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.schedule import Batch, alpha, sigma

Points = Float[Tensor, "batch dim"]


@dataclass(frozen=True)
class GaussianMixture:
    """x ~ sum_k weight_k N(mean_k, diag(std_k^2)), component k belonging to class classes_k.

    `denoise` is a Denoise: E[x | z, label] with label in 0..num_classes-1, or over all classes for the label
    num_classes ("no class"). Wrap it in `Guided` for the exact guided teacher. Any number of dimensions.

    Raises:
        ValueError: shapes disagree, a std or a weight is not positive, or a class has no component.
    """

    means: Float[Tensor, "components dim"]
    stds: Float[Tensor, "components dim"]
    weights: Float[Tensor, "components"]
    classes: Int[Tensor, "components"]

    def __post_init__(self) -> None:
        if self.means.shape != self.stds.shape or not len(self.means) == len(self.weights) == len(self.classes):
            raise ValueError("mixture needs one mean, std, weight and class per component")
        if not bool((self.stds > 0).all() and (self.weights > 0).all()):
            raise ValueError("mixture stds and weights must be positive")
        if sorted(set(self.classes.tolist())) != list(range(self.num_classes)):
            raise ValueError(f"every class 0..{self.num_classes - 1} needs a component, got {self.classes.tolist()}")

    @property
    def num_classes(self) -> int:
        return int(self.classes.max()) + 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it depends on, by name."""
        return {"means": self.means, "stds": self.stds, "weights": self.weights, "classes": self.classes}

    def _log_joint(
        self, z: Points, log_snr: Batch, label: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch components"], Float[Tensor, "batch components dim"]]:
        """log(weight_k N(z; alpha mean_k, alpha^2 std_k^2 + sigma^2)), -inf for components of other classes."""
        a, s = alpha(log_snr).to(z)[:, None, None], sigma(log_snr).to(z)[:, None, None]
        means, stds, weights = self.means.to(z), self.stds.to(z), self.weights.to(z)
        classes = self.classes.to(z.device)
        variance = (a * stds).square() + s.square()
        normal = torch.distributions.Normal(a * means, variance.sqrt(), validate_args=False)
        allowed = (classes == label[:, None]) | (label == self.num_classes)[:, None]
        log_weights = weights.log().expand(allowed.shape).masked_fill(~allowed, -torch.inf)
        log_weights = log_weights - log_weights.logsumexp(1, keepdim=True)
        return log_weights + normal.log_prob(z[:, None]).sum(-1), variance

    def log_density(self, z: Points, log_snr: Batch, label: Int[Tensor, "batch"]) -> Batch:
        """log p(z | label) of the noised data at `log_snr`."""
        return self._log_joint(z, log_snr, label)[0].logsumexp(1)

    def denoise(
        self, z: Points, log_snr: Batch, label: Int[Tensor, "batch"], w: Float[Tensor, "batch"] | None = None
    ) -> Prediction:
        """E[x | z, label] = sum_k r_k (mean_k + alpha std_k^2 / (alpha^2 std_k^2 + sigma^2) (z - alpha mean_k)).

        r_k are the components' posterior weights (Bishop 2006, section 2.3.3). Ignores `w`.
        """
        log_joint, variance = self._log_joint(z, log_snr, label)
        a = alpha(log_snr).to(z)[:, None, None]
        means, stds = self.means.to(z), self.stds.to(z)
        given_component = means + a * stds.square() / variance * (z[:, None] - a * means)
        x = (log_joint.softmax(1)[..., None] * given_component).sum(1)
        return interpret("x", x, z=z, log_snr=log_snr)

    def class_log_probability(self, x: Points) -> Float[Tensor, "batch classes"]:
        """log p(class | x) of clean data up to a constant per example: the exact classifier's logits."""
        clean = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        prior = torch.zeros(self.num_classes, dtype=self.weights.dtype).index_add(0, self.classes, self.weights)
        return torch.stack(
            [self.log_density(x, clean, torch.full_like(clean, c, dtype=torch.long)) for c in range(self.num_classes)],
            1,
        ) + prior.log().to(x)

    def draw(self, label: Int[Tensor, "batch"], generator: torch.Generator | None = None) -> Points:
        """One x ~ p(x | label) for each label; only classes, not the null label."""
        member = self.classes == label.cpu()[:, None]
        component = torch.multinomial(member * self.weights.float(), 1, generator=generator)[:, 0]
        noise = torch.randn(len(label), self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.stds[component] * noise
