"""Training a feature extractor: a classifier of images that also tells blurred and noisy ones."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Classifier(nn.Module):
    """The layers of a feature extractor, with its names of weights, from pixels in [-1, 1] to logits."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def fit(self, losses: Iterable[Tensor], num_steps: int, learning_rate: float) -> None:
        """Take a step of AdamW for each loss, each computed with the weights of the step before."""
        optimizer = torch.optim.AdamW(self.parameters(), learning_rate)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
        for loss in losses:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        self.eval()


def changed(
    x: Float[Tensor, "batch channels height width"], state: Int[Tensor, "batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Blur by the mean of 3 x 3 pixels where `state` is 1, add noise where it is 2; 0 is unchanged."""
    ones = x.new_ones(len(x), 1, 1, 1)
    noise = ones * (0.02 + 0.15 * torch.rand_like(ones))  # 2 to 21 of 255
    blurred = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    state = state[:, None, None, None]
    return torch.where(state == 1, blurred, torch.where(state == 2, x + noise * torch.randn_like(x), x))
