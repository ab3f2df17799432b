"""The exact teacher: a class-conditional mixture of axis-aligned Gaussians, whose denoiser has a closed form."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.diffusion.prediction import Prediction, Weights, interpret
from fewstep.diffusion.schedule import Batch, alpha, sigma
from fewstep.diffusion.styles import Styles

Points = Float[Tensor, "batch dim"]


@dataclass(frozen=True)
class GaussianMixture:
    """x ~ sum_k weight_k N(mean_k, diag(std_k^2)), component k belonging to class classes_k.

    `denoise` is a Denoise: E[x | z, label] with label in 0..num_classes-1, or over all classes for the label
    num_classes ("no class"). Wrap it in `Guided` for the exact guided teacher. Any number of dimensions.

    Args:
        styles: where a label is of a class and a style: classes_k is then such a label, and a label of a class of any
            style has the components of all its styles. Wrap it in `GuidedTwice`.

    Raises:
        ValueError: shapes disagree, a std or a weight is not positive, or a class has no component.
    """

    means: Float[Tensor, "components dim"]
    stds: Float[Tensor, "components dim"]
    weights: Float[Tensor, "components"]
    classes: Int[Tensor, "components"]
    styles: Styles | None = None

    def __post_init__(self) -> None:
        if self.means.shape != self.stds.shape or not len(self.means) == len(self.weights) == len(self.classes):
            raise ValueError("mixture needs one mean, std, weight and class per component")
        if not bool((self.stds > 0).all() and (self.weights > 0).all()):
            raise ValueError("mixture stds and weights must be positive")
        own = self.num_classes if self.styles is None else self.styles.num_pairs
        if sorted(set(self.classes.tolist())) != list(range(own)):
            raise ValueError(f"every class 0..{own - 1} needs a component, got {self.classes.tolist()}")

    @property
    def num_classes(self) -> int:
        """The number of labels, and so the label of "no class"."""
        return int(self.classes.max()) + 1 if self.styles is None else self.styles.num_labels

    def members(self, label: Int[Tensor, "batch"]) -> Bool[Tensor, "batch components"]:
        """Which components each label has."""
        classes = self.classes.to(label.device)
        own = (classes == label[:, None]) | (label == self.num_classes)[:, None]
        return own if self.styles is None else own | (self.styles.of_any_style(classes) == label[:, None])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it depends on, by name."""
        own = {"means": self.means, "stds": self.stds, "weights": self.weights, "classes": self.classes}
        if self.styles is None:
            return own
        return own | {"styles": torch.tensor([self.styles.num_classes, self.styles.num_styles])}

    def _log_joint(
        self, z: Points, log_snr: Batch, label: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch components"], Float[Tensor, "batch components dim"]]:
        """log(weight_k N(z; alpha mean_k, alpha^2 std_k^2 + sigma^2)), -inf for components of other classes."""
        a, s = alpha(log_snr).to(z)[:, None, None], sigma(log_snr).to(z)[:, None, None]
        means, stds, weights = self.means.to(z), self.stds.to(z), self.weights.to(z)
        variance = (a * stds).square() + s.square()
        normal = torch.distributions.Normal(a * means, variance.sqrt(), validate_args=False)
        allowed = self.members(label)
        log_weights = weights.log().expand(allowed.shape).masked_fill(~allowed, -torch.inf)
        log_weights = log_weights - log_weights.logsumexp(1, keepdim=True)
        return log_weights + normal.log_prob(z[:, None]).sum(-1), variance

    def log_density(self, z: Points, log_snr: Batch, label: Int[Tensor, "batch"]) -> Batch:
        """log p(z | label) of the noised data at `log_snr`."""
        return self._log_joint(z, log_snr, label)[0].logsumexp(1)

    def denoise(self, z: Points, log_snr: Batch, label: Int[Tensor, "batch"], w: Weights | None = None) -> Prediction:
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
        first, count = (
            (0, self.num_classes) if self.styles is None else (self.styles.num_pairs, self.styles.num_classes)
        )
        return self.label_log_probability(x, range(first, first + count))

    def style_log_probability(self, x: Points, label: Int[Tensor, "batch"]) -> Float[Tensor, "batch styles"]:
        """log p(style | x, the class of its label) of clean data up to a constant per example."""
        assert self.styles is not None, "a mixture with styles"
        pairs = self.label_log_probability(x, range(self.styles.num_pairs))
        by_style = pairs.unflatten(1, (self.styles.num_styles, self.styles.num_classes))
        return by_style[torch.arange(len(x)), :, self.styles.class_of(label).to(x.device)]

    def label_log_probability(self, x: Points, labels: range) -> Float[Tensor, "batch labels"]:
        """log p(label | x) of clean data up to a constant per example, of some labels."""
        clean = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        prior = (self.members(torch.tensor(labels)) * self.weights).sum(1)
        each = [self.log_density(x, clean, torch.full_like(clean, label, dtype=torch.long)) for label in labels]
        return torch.stack(each, 1) + prior.log().to(x)

    def draw(self, label: Int[Tensor, "batch"], generator: torch.Generator | None = None) -> Points:
        """One x ~ p(x | label) for each label."""
        component = torch.multinomial(self.members(label.cpu()) * self.weights.float(), 1, generator=generator)[:, 0]
        noise = torch.randn(len(label), self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.stds[component] * noise
