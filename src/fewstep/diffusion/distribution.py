"""Distribution matching: the direction in which a generator's samples leave the model's distribution for the data's."""

import torch

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Images, expand, sigma

LEAST_ERROR = 1e-6  # of mean |x - x_real|: a sample that the real model confirms moves by no more than its difference


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
