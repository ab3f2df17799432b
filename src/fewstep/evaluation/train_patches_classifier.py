"""Train the feature extractor of colour patches: python -m fewstep.evaluation.train_patches_classifier

Writes patches_classifier.safetensors beside this file. It is trained on training crops only, of 32 and 64 pixels, with
random colour gains. It predicts the photograph of a crop, in which of 6 x 6 cells (rows of 71 pixels, the six training
stripes) its centre lies, and whether it is unchanged, blurred or noisy. The accuracies on held-out crops (photograph)
and on training crops (cell; held-out crops are in none) are printed and written into the file's metadata. The same
machine and thread count give the same bytes.
"""

import os
import time
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.data.patches import SIZES, STRIPE, Crops, load_patches
from fewstep.evaluation.features import PATCHES_WEIGHTS, PHOTOGRAPHS, PLACES, STATES, patches_layers, pixels

STEPS, BATCH, LEARNING_RATE, LIGHT, SEED = 420, 64, 3e-3, 0.3, 0
ROWS, ROW = 6, 71.2  # 427 pixels in six rows
STRIPES = torch.tensor([0, 1, -1, 2, 3, 4, -1, 5])  # the number of each training stripe


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = patches_layers()

    def forward(self, x: Tensor) -> tuple[Float[Tensor, "batch classes"], ...]:
        return self.head(self.body(x)).split((PHOTOGRAPHS, PLACES, STATES), dim=1)


def places(corners: Int[Tensor, "batch 3"], size: int) -> Int[Tensor, "batch"]:
    """The number of the photograph's cell in which the centre of each crop (photograph, y, x) lies."""
    photograph, y, x = corners.unbind(1)
    row = ((y + size // 2) / ROW).long()
    return (photograph * ROWS + row) * ROWS + STRIPES[(x + size // 2) // STRIPE]


def augmented(x: Float[Tensor, "batch 3 height width"], state: Int[Tensor, "batch"]) -> Float[Tensor, "..."]:
    """Apply random colour gains; where `state` is 1 blur by the mean of 3 x 3 pixels, where it is 2 add noise."""
    ones = x.new_ones(len(x), 1, 1, 1)
    gained = (x + 1) * (1 + LIGHT * (2 * torch.rand(len(x), 3, 1, 1) - 1)) - 1
    noise = ones * (0.02 + 0.15 * torch.rand_like(ones))  # 2 to 21 of 255
    blurred = nn.functional.avg_pool2d(gained, 3, 1, 1, count_include_pad=False)
    state = state[:, None, None, None]
    return torch.where(state == 1, blurred, torch.where(state == 2, gained + noise * torch.randn_like(x), gained))


def train() -> tuple[Classifier, float, float]:
    """The trained classifier in evaluation mode; its accuracies on held-out photographs and on training places."""
    torch.manual_seed(SEED)
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    splits = {size: load_patches(size) for size in SIZES}
    accuracies = []
    for step in range(STEPS):
        size = SIZES[step % 3 == 2]  # two batches of 32, one of 64
        crops, photographs = splits[size][0]
        assert isinstance(crops, Crops)
        rows = torch.randint(len(crops), (BATCH,))
        x = pixels(crops[rows])
        state = torch.randint(STATES, (BATCH,))
        cells = places(crops.corners[rows], size)
        targets = (photographs[rows], cells, state)
        logits = classifier(augmented(x, state))
        losses = [nn.functional.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        accuracies.append((logits[1].argmax(1) == cells).float().mean().item())
    classifier.eval()
    crops, photographs = splits[32][1]
    with torch.no_grad():
        predicted = classifier(pixels(crops[torch.arange(len(photographs))]))[0].argmax(1)
    last = accuracies[-100:]
    return classifier, (predicted == photographs).float().mean().item(), sum(last) / len(last)


def main() -> None:
    start = time.perf_counter()
    classifier, photograph, place = train()
    path = Path(__file__).with_name(PATCHES_WEIGHTS)
    unfinished = path.with_suffix(".tmp")
    about = {"test_accuracy": f"{photograph:.6f}", "place_accuracy": f"{place:.6f}"}
    unfinished.write_bytes(save(classifier.state_dict(), about))
    os.replace(unfinished, path)
    seconds = time.perf_counter() - start
    print(f"photographs {photograph:.2%}, places {place:.2%} after {seconds:.0f} s, written to {path.name}")


if __name__ == "__main__":
    main()
