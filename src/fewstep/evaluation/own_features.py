"""A feature extractor for images of one's own, trained on their training split in a few minutes at most, and kept.

It is for data for which there is no other: where Inception's weights are missing, or for trainer.features=own. The net
classifies the data's own classes, or, where there are fewer than two, by how many quarter turns an image was rotated
(Gidaris et al. 2018, RotNet); and beside it whether the image is unchanged, blurred or noisy, so that its features tell
these too. It is trained on the CPU from a fixed seed and kept in a folder by the digest of the images, their labels and
the recipe; figures name it by the digest of its weights, for other machines round otherwise and train other ones.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.data.batches import ImagesInMemory, source_digest
from fewstep.data.facts import DataFacts
from fewstep.evaluation.classifier import Classifier, changed
from fewstep.evaluation.features import STATES, FeatureExtractor, Features, Logits, pixels, require_uint8
from fewstep.evaluation.images import EvaluationImages
from fewstep.system.durations import duration
from fewstep.system.files import atomic_write, tensor_digest
from fewstep.system.seeds import seed_for
from fewstep.system.validation import build

KEY = "fewstep-features"  # of the card in a file's metadata
RECIPE = 1  # changes with anything below that changes the weights
BATCH, EPOCHS, FEWEST_STEPS, MOST_STEPS = 128, 30, 200, 1500
LEARNING_RATE, SMOOTHING = 3e-3, 0.05
NUM_FEATURES, CHANNELS = 64, (32, 64, 64, 128)
LARGE = 20  # pixels of a shorter side from which on the first layer halves
TURNS = 4
ADVICE = "trainer.features=own trains one"
MOST_CLASSES = 100_000  # that a file may say it has
Task = Literal["classes", "turns"]


@dataclass(frozen=True)
class FeatureCard:
    """What a file of a trained feature extractor says of itself.

    Args:
        data: name of the data set. source: digest of its images and labels. channels: of an image.
        halves: whether the first layer does. task: what it was trained for. num_classes: of the task.
        accuracy: in the task, on held-out images. recipe: number of the recipe.
    """

    data: str
    source: str
    channels: int
    halves: bool
    task: Task
    num_classes: int
    accuracy: float
    recipe: int = RECIPE

    @property
    def title(self) -> str:
        """As protocols and reports name it."""
        learnt = f"{self.num_classes} classes" if self.task == "classes" else "quarter turns of the images"
        return f"classifier of the {learnt} of {self.data}"


def layers_of(card: FeatureCard) -> tuple[nn.Sequential, nn.Linear]:
    """Body, from pixels in [-1, 1] to NUM_FEATURES features; head, to logits of the task and of the three states."""
    first, second, third, fourth = CHANNELS

    def block(inner: int, outer: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.SiLU()]

    body = nn.Sequential(
        *block(card.channels, first, 1 + card.halves),
        *block(first, second, 1),
        *block(second, third, 2),
        *block(third, fourth, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * fourth, NUM_FEATURES),
    )
    return body, nn.Linear(NUM_FEATURES, card.num_classes + STATES)


class OwnFeatures(FeatureExtractor):
    """A trained extractor.

    Args:
        card, weights: of it. facts: of the data that are judged; the logits are of their classes if it was trained on
            these.

    Raises:
        ValueError: images of other channels, or weights that do not fit the card.
    """

    def __init__(self, card: FeatureCard, weights: dict[str, Tensor], facts: DataFacts) -> None:
        super().__init__()
        if card.channels not in (facts.shape[0], 3):
            raise ValueError(
                f"this {card.title} takes images of {card.channels} channels, and {facts.name} has {facts.shape[0]}; "
                "use trainer.features=own, or another file"
            )
        self.card, self.name = card, card.title
        self.num_features = NUM_FEATURES
        own = card.task == "classes" and facts.labels is None and card.data == facts.name
        self.num_classes = card.num_classes if own and card.num_classes == facts.num_classes else None
        with torch.device("meta"):
            self.body, self.head = layers_of(card)
        try:
            self.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ValueError(f"this {card.title} has other weights than its card says; train it again") from error
        self.digest = tensor_digest(weights)
        self.body.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.requires_grad_(False).eval()

    @classmethod
    def of(cls, data: ImagesInMemory, facts: DataFacts, folder: Path | None) -> "OwnFeatures":
        """The extractor of these data that is kept in `folder`, first trained where there is none."""
        file = None if folder is None else file_for(data, folder)
        if file is not None and file.is_file():
            return cls.read(file, facts)
        start = perf_counter()
        card, weights = train(data, num_steps(data))
        where = "" if file is None else f": {file}"
        took = duration(perf_counter() - start)
        print(f"features: {card.title}, held-out accuracy {card.accuracy:.3f}, trained in {took}{where}", flush=True)
        if file is not None:
            save(file, card, weights)
        return cls(card, weights, facts)

    @classmethod
    def read(cls, file: Path, facts: DataFacts, advice: str = ADVICE) -> "OwnFeatures":
        """The extractor in a file; `advice` is for who cannot read it.

        Raises:
            ValueError: there is none, it is damaged, or see the class.
        """
        return cls(*contents(file, advice), facts)

    def forward(self, images: EvaluationImages) -> tuple[Features, Logits]:
        fits = images.ndim == 4 and images.shape[1] in (1, self.card.channels)
        require_uint8(images, f"(B, {self.card.channels}, H, W)", fits)
        features = self.body(pixels(images).expand(-1, self.card.channels, -1, -1))
        return features, self.head(features)[:, : self.card.num_classes]


def contents(file: Path, advice: str = ADVICE) -> tuple[FeatureCard, dict[str, Tensor]]:
    """Card and weights in a file; `advice` is for who cannot read them.

    Raises:
        ValueError: there is none, or it is damaged or of something else.
    """
    if not file.is_file():
        raise ValueError(
            f"trainer.features={file} must be a file of a trained feature extractor and is not there; {advice}"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            described: dict[str, Any] = json.loads((opened.metadata() or {})[KEY])
            card = build(FeatureCard, described, "its card")
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no feature extractor of fewstep, or is damaged ({error}); {advice}") from error
    if card.recipe != RECIPE or card.channels not in (1, 3) or not 2 <= card.num_classes <= MOST_CLASSES:
        raise ValueError(
            f"{file} is a feature extractor of recipe {card.recipe}, {card.channels} channels and {card.num_classes} "
            f"classes, which this version does not read; {advice}"
        )
    return card, weights


def file_for(data: ImagesInMemory, folder: Path) -> Path:
    """Where the extractor of these data is kept."""
    held_out = data.reference()
    key = tensor_digest({"images": held_out.x, "labels": held_out.label})
    text = f"{RECIPE} {torch.__version__} {data.facts.shape} {source_digest(data)} {key}"
    return folder / f"{data.facts.name}-{sha256(text.encode()).hexdigest()[:16]}.safetensors"


def save(file: Path, card: FeatureCard, weights: dict[str, Tensor]) -> None:
    """Write an extractor, whole or not at all."""
    with atomic_write(file) as temporary:
        save_file(weights, temporary, {KEY: json.dumps(asdict(card))})


def untrained(data: ImagesInMemory) -> tuple[FeatureCard, dict[str, Tensor]]:
    """An extractor as it begins: of the size and the speed of the trained one."""
    labels = data.labels
    task: Task = "classes" if len(labels.unique()) > 1 else "turns"
    card = FeatureCard(
        data=data.facts.name,
        source=source_digest(data),
        channels=data.facts.shape[0],
        halves=min(data.facts.shape[1:]) >= LARGE,
        task=task,
        num_classes=data.facts.num_classes if task == "classes" else TURNS,
        accuracy=0.0,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed_for("features", RECIPE))
        return card, Classifier(*layers_of(card)).state_dict()


def num_steps(data: ImagesInMemory) -> int:
    """Of the training."""
    return min(MOST_STEPS, max(FEWEST_STEPS, EPOCHS * len(data.labels) // BATCH))


def train(data: ImagesInMemory, steps: int) -> tuple[FeatureCard, dict[str, Tensor]]:
    """Train the extractor of these data; the global random state stays as it was."""
    card, weights = untrained(data)
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.manual_seed(seed_for("features", RECIPE, "training"))
        classifier = Classifier(*layers_of(card))
        classifier.load_state_dict(weights)
        classifier.fit(losses(classifier, card, data, steps), steps, LEARNING_RATE)
        accuracy = held_out_accuracy(classifier, card, data)
    return FeatureCard(**{**asdict(card), "accuracy": accuracy}), classifier.state_dict()


def losses(classifier: Classifier, card: FeatureCard, data: ImagesInMemory, steps: int) -> Iterator[Tensor]:
    """The sum of the cross-entropies of each batch, in the task and in whether images are changed."""
    for _ in range(steps):
        rows = torch.randint(len(data.labels), (BATCH,))
        x, target = examples(card, pixels(data.images[rows]), data.labels[rows])
        state = torch.randint(STATES, (BATCH,))
        logits = classifier(changed(x, state)).split((card.num_classes, STATES), dim=1)
        yield nn.functional.cross_entropy(logits[0], target, label_smoothing=SMOOTHING) + nn.functional.cross_entropy(
            logits[1], state
        )


def examples(
    card: FeatureCard, x: Float[Tensor, "batch channels height width"], label: Int[Tensor, "batch"]
) -> tuple[Float[Tensor, "batch channels _ _"], Int[Tensor, "batch"]]:
    """Images and what the task says of them: their classes, or the random quarter turns of their squares."""
    if card.task == "classes":
        return x, label
    turns, rows, side = torch.randint(TURNS, (len(x),)), torch.arange(len(x)), min(x.shape[2:])
    square = x[..., :side, :side]
    return torch.stack([square.rot90(number, (2, 3)) for number in range(TURNS)])[turns, rows], turns


@torch.no_grad()
def held_out_accuracy(classifier: Classifier, card: FeatureCard, data: ImagesInMemory) -> float:
    """Share of the held-out images of which the task is answered rightly."""
    held_out = data.reference()
    x, target = examples(card, held_out.x, held_out.label)
    found = [classifier(part)[:, : card.num_classes].argmax(1) for part in x.split(BATCH)]
    return (torch.cat(found) == target).float().mean().item()
