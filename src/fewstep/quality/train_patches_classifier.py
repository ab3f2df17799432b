"""Train the classifier that judges colour patches: python -m fewstep.quality.train_patches_classifier

Writes patches_classifier.safetensors beside this file. Sees training crops only, of 32 and 64 pixels: which photograph
a crop is of, and in which of its 6 x 6 places (rows of 71 pixels, the six training stripes) the middle lies. The
accuracies on held-out crops (photograph) and on training crops (place; held-out crops have none) are printed and kept
in the file's metadata. The same machine and thread count give the same bytes again.
"""

import os
import time
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.data.patches import SIZES, STRIPE, Crops, load_patches
from fewstep.quality.features import PATCHES_WEIGHTS, PHOTOGRAPHS, patches_layers, pixels

STEPS, BATCH, LEARNING_RATE, NOISE, SEED = 450, 64, 3e-3, 0.03, 0
ROWS, ROW = 6, 71.2  # 427 pixels in six rows
STRIPES = torch.tensor([0, 1, -1, 2, 3, 4, -1, 5])  # the number of each training stripe


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = patches_layers()

    def forward(self, x: Tensor) -> tuple[Float[Tensor, "batch photographs"], Float[Tensor, "batch cells"]]:
        logits = self.head(self.body(x))
        return logits[:, :PHOTOGRAPHS], logits[:, PHOTOGRAPHS:]


def cells(corners: Int[Tensor, "batch 3"], size: int) -> Int[Tensor, "batch"]:
    """Where the middle of each crop (photograph, y, x) lies, as one number."""
    photograph, y, x = corners.unbind(1)
    row = ((y + size // 2) / ROW).long()
    return (photograph * ROWS + row) * ROWS + STRIPES[(x + size // 2) // STRIPE]


def train() -> tuple[Classifier, float, float]:
    """The trained classifier in evaluation mode; its accuracies on held-out photographs and on training places."""
    torch.manual_seed(SEED)
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    parts = {size: load_patches(size) for size in SIZES}
    right = []
    for step in range(STEPS):
        size = SIZES[step % 3 == 2]  # two batches of 32, one of 64
        crops, photographs = parts[size][0]
        assert isinstance(crops, Crops)
        rows = torch.randint(len(crops), (BATCH,))
        x = pixels(crops[rows])
        photograph, place = classifier(x + NOISE * torch.randn_like(x))
        where = cells(crops.corners[rows], size)
        loss = nn.functional.cross_entropy(photograph, photographs[rows]) + nn.functional.cross_entropy(place, where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        right.append((place.argmax(1) == where).float().mean().item())
    classifier.eval()
    crops, photographs = parts[32][1]
    with torch.no_grad():
        guessed = classifier(pixels(crops[torch.arange(len(photographs))]))[0].argmax(1)
    last = right[-100:]
    return classifier, (guessed == photographs).float().mean().item(), sum(last) / len(last)


def main() -> None:
    start = time.perf_counter()
    classifier, photographs, places = train()
    path = Path(__file__).with_name(PATCHES_WEIGHTS)
    unfinished = path.with_suffix(".tmp")
    about = {"test_accuracy": f"{photographs:.6f}", "place_accuracy": f"{places:.6f}"}
    unfinished.write_bytes(save(classifier.state_dict(), about))
    os.replace(unfinished, path)
    seconds = time.perf_counter() - start
    print(f"photographs {photographs:.2%}, places {places:.2%} after {seconds:.0f} s, written to {path.name}")


if __name__ == "__main__":
    main()
