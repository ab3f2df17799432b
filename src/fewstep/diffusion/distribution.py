"""Distribution matching: where a generator's samples shall move so that, noised, they are distributed as the data."""

from typing import Literal

import torch

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Batch, Images, expand, sigma

Divergence = Literal["kl", "js", "rkl"]

LEAST_ERROR = 1e-6  # of mean |x - x_real|: a sample that the real model confirms moves by no more than its difference
LEAST_RATIO, GREATEST_RATIO = 0.1, 20.0  # of densities, as published


@torch.no_grad()
def matching_direction(*, x: Images, fake: Prediction, real: Prediction) -> Images:
    """g = (x_fake - x_real) / mean|x - x_real| of each example, the mean over its entries; x moves along -g.

    In expectation over x and noise this is the gradient of KL(generator || real) up to a positive factor: the scores'
    difference is alpha (x_real - x_fake) / sigma^2 (Yin et al. 2024, eq. 7 and 8; DMD2's code). A generator descends
    it with the loss |x - stop_gradient(x - g)|^2 / 2.

    The mean is held above 1e-6. The difference is computed as sigma (v_real - v_fake).

    Args:
        x: the generator's samples, of which `fake` and `real` see the same z, from `diffuse` at any level.
        fake: prediction of the model trained on the generator's samples.
        real: prediction of the teacher; guided, where the generator is to be guided.
    """
    difference = expand(sigma(fake.log_snr), x) * (real.v - fake.v)
    error = (x - real.x).abs().flatten(1).mean(1).clamp(min=LEAST_ERROR)
    return difference / expand(error, x)


def divergence_weight(divergence: Divergence, logit: Batch) -> Batch:
    """h(r) = r^2 f''(r): what the move of a sample counts where the generator descends D_f(data || generator).

    D_f = E_generator[f(r)], r the data's density over the generator's at the noised sample; its gradient is that of the
    reverse KL with each sample weighted by h: r for kl, r / (1 + r) for js, 1 for rkl (Xu et al. 2025, f-distill). r is
    held in [0.1, 20].

    Args:
        logit: log r, of a critic that tells data from samples.
    """
    ratio = logit.exp().clamp(LEAST_RATIO, GREATEST_RATIO)
    return {"kl": ratio, "js": ratio / (1 + ratio), "rkl": torch.ones_like(ratio)}[divergence]


def score_identity(*, x: Images, fake: Prediction, real: Prediction, alpha: float) -> Batch:
    """The loss of score identity distillation of each example (Zhou et al. 2024, 2404.04057), over mean|x - x_real|.

    (x_real - x_fake) . ((x_real - x) - alpha (x_real - x_fake)), the mean over the entries. Its expectation is
    (1 - alpha) |x_real - x_fake|^2 where the fake score is exact, negative for alpha > 1, so that it is no measure of
    convergence; its gradient runs through both predictions, whose z the generator made, and through x.

    Args:
        x: the generator's samples, of which `fake` and `real` see the same z.
        alpha: 1.2 as published; 0.5 to 1 where that is unstable.
    """
    difference = expand(sigma(fake.log_snr), x) * (fake.v - real.v)
    to_real = real.x - x
    size = to_real.detach().abs().flatten(1).mean(1).clamp(min=LEAST_ERROR)
    return (difference * (to_real - alpha * difference)).flatten(1).mean(1) / size
