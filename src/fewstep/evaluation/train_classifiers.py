"""Train the feature extractors of digits and of colour patches: python -m fewstep.evaluation.train_classifiers

Writes digits_classifier.safetensors and patches_classifier.safetensors beside this file, with the accuracies in their
metadata. Both are trained on the training split only. The same machine and thread count give the same bytes.

Digits: classes from 8 x 8 pixels. Patches: random crops of 32 and 64 pixels with random colour gains; the photograph of
a crop, in which of 6 x 6 cells (rows of 71 pixels, the six training stripes) its centre lies, and whether it is
unchanged, blurred or noisy. The accuracy of the photograph is that on held-out crops, that of the cell on training
crops, since held-out crops are in none.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.data.digits import DigitsSplit, load_digits_split
from fewstep.data.patches import SIZES, STRIPE, Crops, load_patches
from fewstep.evaluation.classifier import Classifier, changed
from fewstep.evaluation.features import (
    DIGITS_WEIGHTS,
    PATCHES_WEIGHTS,
    PHOTOGRAPHS,
    PLACES,
    STATES,
    digits_layers,
    patches_layers,
    pixels,
)
from fewstep.system.files import atomic_write

SEED = 0
DIGITS_EPOCHS, DIGITS_BATCH, NOISE, SMOOTHING = 60, 128, 0.05, 0.05
PATCHES_STEPS, PATCHES_BATCH, LIGHT = 420, 64, 0.3
ROWS, ROW = 6, 71.2  # 427 pixels in six rows
STRIPES = torch.tensor([0, 1, -1, 2, 3, 4, -1, 5])  # the number of each training stripe


def train_digits() -> tuple[Classifier, dict[str, float]]:
    """The classifier of digits, and its accuracy on the test split."""
    torch.manual_seed(SEED)
    split, classifier = load_digits_split(), Classifier(*digits_layers())
    num_steps = DIGITS_EPOCHS * -(-len(split.train_images) // DIGITS_BATCH)
    classifier.fit(digits_losses(classifier, split), num_steps, learning_rate=1e-3)
    with torch.no_grad():
        correct = classifier(pixels(split.test_images)).argmax(1) == split.test_labels
    return classifier, {"test_accuracy": correct.float().mean().item()}


def digits_losses(classifier: Classifier, split: DigitsSplit) -> Iterator[Tensor]:
    """The cross-entropy of each batch, its images with added noise."""
    for _ in range(DIGITS_EPOCHS):
        for rows in torch.randperm(len(split.train_images)).split(DIGITS_BATCH):
            x = pixels(split.train_images[rows])
            logits = classifier(x + NOISE * torch.randn_like(x))
            yield nn.functional.cross_entropy(logits, split.train_labels[rows], label_smoothing=SMOOTHING)


def train_patches() -> tuple[Classifier, dict[str, float]]:
    """The classifier of patches; its accuracies on held-out photographs, and on cells in the last 100 steps."""
    torch.manual_seed(SEED)
    classifier, accuracies = Classifier(*patches_layers()), []
    classifier.fit(patches_losses(classifier, accuracies), PATCHES_STEPS, learning_rate=3e-3)
    crops, photographs = load_patches(32)[1]
    with torch.no_grad():
        logits = classifier(pixels(crops[torch.arange(len(photographs))]))[:, :PHOTOGRAPHS]
    accuracy = (logits.argmax(1) == photographs).float().mean().item()
    return classifier, {"test_accuracy": accuracy, "place_accuracy": sum(accuracies[-100:]) / 100}


def patches_losses(classifier: Classifier, accuracies: list[float]) -> Iterator[Tensor]:
    """The sum of the three cross-entropies of each batch; its accuracy on cells is appended to `accuracies`."""
    splits = {size: load_patches(size) for size in SIZES}
    for step in range(PATCHES_STEPS):
        size = SIZES[step % 3 == 2]  # two batches of 32, one of 64
        crops, photographs = splits[size][0]
        assert isinstance(crops, Crops)
        rows = torch.randint(len(crops), (PATCHES_BATCH,))
        x = pixels(crops[rows])
        state = torch.randint(STATES, (PATCHES_BATCH,))
        cells = cell_of(crops.corners[rows], size)
        logits = classifier(augmented(x, state)).split((PHOTOGRAPHS, PLACES, STATES), dim=1)
        accuracies.append((logits[1].argmax(1) == cells).float().mean().item())
        targets = (photographs[rows], cells, state)
        yield torch.stack([nn.functional.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)]).sum()


def cell_of(corners: Int[Tensor, "batch 3"], size: int) -> Int[Tensor, "batch"]:
    """The number of the photograph's cell in which the centre of each crop (photograph, y, x) lies."""
    photograph, y, x = corners.unbind(1)
    row = ((y + size // 2) / ROW).long()
    return (photograph * ROWS + row) * ROWS + STRIPES[(x + size // 2) // STRIPE]


def augmented(x: Float[Tensor, "batch 3 height width"], state: Int[Tensor, "batch"]) -> Float[Tensor, "..."]:
    """Apply random colour gains, then `changed`."""
    return changed((x + 1) * (1 + LIGHT * (2 * torch.rand(len(x), 3, 1, 1) - 1)) - 1, state)


def main() -> None:
    for file, train in ((DIGITS_WEIGHTS, train_digits), (PATCHES_WEIGHTS, train_patches)):
        start = time.perf_counter()
        classifier, accuracies = train()
        metadata = {name: f"{accuracy:.6f}" for name, accuracy in accuracies.items()}
        with atomic_write(Path(__file__).with_name(file)) as temporary:
            save_file(classifier.state_dict(), temporary, metadata)
        print(f"{file}: {metadata} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
