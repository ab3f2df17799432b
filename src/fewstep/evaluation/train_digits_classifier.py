"""Train the feature extractor of digits: python -m fewstep.evaluation.train_digits_classifier

Writes digits_classifier.safetensors beside this file. It is trained on the training split only; the accuracy on the
test split is printed and written into the file's metadata. The same machine and thread count give the same bytes.
"""

import os
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from fewstep.data.digits import load_digits_split
from fewstep.evaluation.features import DIGITS_WEIGHTS, digits_layers, pixels

EPOCHS, BATCH, LEARNING_RATE, NOISE, SMOOTHING, SEED = 60, 128, 1e-3, 0.05, 0.05, 0


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = digits_layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def train() -> tuple[Classifier, float]:
    """The trained classifier in evaluation mode, and its accuracy on the test split."""
    torch.manual_seed(SEED)
    split = load_digits_split()
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE)
    num_steps = EPOCHS * -(-len(split.train_images) // BATCH)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(split.train_images)).split(BATCH):
            x = pixels(split.train_images[rows])
            logits = classifier(x + NOISE * torch.randn_like(x))
            loss = nn.functional.cross_entropy(logits, split.train_labels[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    classifier.eval()
    with torch.no_grad():
        correct = classifier(pixels(split.test_images)).argmax(1) == split.test_labels
    return classifier, correct.float().mean().item()


def main() -> None:
    start = time.perf_counter()
    classifier, accuracy = train()
    path = Path(__file__).with_name(DIGITS_WEIGHTS)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(save(classifier.state_dict(), {"test_accuracy": f"{accuracy:.6f}"}))
    os.replace(unfinished, path)
    print(f"test accuracy {accuracy:.2%} after {time.perf_counter() - start:.0f} s, written to {path.name}")


if __name__ == "__main__":
    main()
