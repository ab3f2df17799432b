"""Network and budgets that follow from an image's shape, the number of images and the device, for `auto` in settings.

All rules are here, in TABLE and the functions below; `automatic.py` writes what they say into a run's settings. The
rows of a CPU are such that a whole chain of them (teacher, guidance, a few-step method, evaluation) takes at most about
an hour on two cores, at rates measured on one core: 0.04 ms a network evaluation of an image for the first row, 0.19 ms
for the second, 2.6 ms for the third at 32 x 32 pixels. On Fashion-MNIST a U-Net was far ahead of a patch transformer
of the same processor time (docs/own-data.md). Those of a GPU are for a day at 20 TFLOP/s, and have not been measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

Backbone = Literal["mlp", "dit", "unet"]
Device = Literal["cpu", "gpu"]
ANY = 10**9


class Row(NamedTuple):
    """What is chosen for at most so many `images` of at most `side` pixels, of at most so many `values`.

    `tokens` is the most of a patch transformer. `evaluations` of the network are the budget of the chain (forward 1,
    backward 2), for a transformer of that many tokens. `judged` is the number of images in each cell of the evaluation.
    """

    device: Device
    side: int
    values: int
    images: int
    backbone: Backbone
    width: int
    num_blocks: int
    tokens: int
    learning_rate: float
    batch_size: int
    evaluations: int
    judged: int


TABLE = (  # the first row that fits counts
    Row("cpu", 8, 64, ANY, "mlp", 256, 4, 0, 1e-3, 256, 20_000_000, 2000),
    Row("cpu", 16, ANY, ANY, "mlp", 512, 6, 0, 1e-3, 256, 20_000_000, 2000),
    Row("cpu", 48, ANY, ANY, "unet", 16, 1, 0, 2e-3, 64, 1_300_000, 500),
    Row("cpu", ANY, ANY, ANY, "dit", 128, 4, 64, 1e-3, 128, 2_000_000, 500),  # and where no U-Net fits
    Row("gpu", 8, ANY, ANY, "mlp", 512, 6, 0, 1e-3, 512, 200_000_000, 10_000),
    Row("gpu", ANY, ANY, 10_000, "dit", 256, 8, 256, 3e-4, 256, 100_000_000, 5000),
    Row("gpu", ANY, ANY, 100_000, "dit", 384, 12, 256, 2e-4, 256, 100_000_000, 5000),
    Row("gpu", ANY, ANY, ANY, "dit", 512, 12, 256, 2e-4, 256, 60_000_000, 10_000),
)
UNETS = {  # on a GPU where no patch fits: width, blocks a level, and evaluations of 32 x 32 pixels
    "cpu": (16, 1, 1_300_000),
    "gpu": (96, 2, 20_000_000),
}
UNET_PIXELS, UNET_DIVISOR, NORM_GROUPS = 1024, 4, 8
FEWEST_TOKENS = 16  # a transformer of fewer sees no layout
HEADS = (64, 32, 16, 8)  # channels of an attention head: the first that makes FEWEST_HEADS, else the last that divides
FEWEST_HEADS = 4
FEW_IMAGES, DROPOUT = 5000, 0.1

SHARES = {"teacher": 0.3, "guidance": 0.2, "method": 0.35}  # of the evaluations; the rest is for the evaluation
COST = {"teacher": 3, "guidance": 5, "method": 5}  # evaluations of an image: guided by two, or two steps of a parent
MOST_EPOCHS, FEWEST_IMAGES = 400, 50_000  # of a teacher; a small data set is not looked at without end
FEWEST_UPDATES, SMALLEST_BATCH = 1500, 32
WARMUP = 25  # a part of the images so small
AVERAGED = 10  # the average of weights reaches back a part of the updates so small


@dataclass(frozen=True)
class Choice:
    """A network in few words: the settings of model=auto.

    Args:
        width: of hidden layers and tokens, or channels of a U-Net's finest level.
        num_blocks: of a U-Net for each level. patch_size: pixels along a side of a transformer's token.
    """

    backbone: Backbone
    width: int
    num_blocks: int
    patch_size: int | None
    dropout: float

    @property
    def title(self) -> str:
        """As printed: "dit, width 128, 4 blocks, patch 4"."""
        patch = f", patch {self.patch_size}" if self.backbone == "dit" else ""
        return f"{self.backbone}, width {self.width}, {self.num_blocks} blocks{patch}"


def choose(shape: Sequence[int], images: int, device: Device, backbone: Backbone | None = None) -> Choice:
    """The network for `images` of `shape` (C, H, W), or points (D,), of the given backbone if there is one."""
    row = row_of(shape, images, device)
    dropout = DROPOUT if images < FEW_IMAGES else 0.0
    backbone = backbone or fitting(row, shape)
    if backbone == "unet":
        width, num_blocks, _ = UNETS[device]
        return Choice(backbone, width, num_blocks, None, dropout)
    if backbone == "dit" and row.backbone != "dit":
        row = transformer_row(device)
    elif backbone == "mlp" and row.backbone != "mlp":
        row = [each for each in TABLE if (each.device, each.backbone) == (device, "mlp")][-1]
    patch_size = patch_of(shape, row.tokens) if backbone == "dit" else None
    return Choice(backbone, row.width, row.num_blocks, patch_size, dropout)


def row_of(shape: Sequence[int], images: int, device: Device) -> Row:
    """The row of the table for `images` of `shape`."""
    side, values = max(shape[1:], default=1), prod(shape)
    rows = (row for row in TABLE if row.device == device and side <= row.side and values <= row.values)
    return next(row for row in rows if images <= row.images)


def fitting(row: Row, shape: Sequence[int]) -> Backbone:
    """The row's backbone, or where it does not fit the images the other one, a U-Net for a transformer."""
    if row.backbone == "dit" and patch_of(shape, row.tokens) is None:
        return "unet"
    no_unet = row.backbone == "unet" and any(side % UNET_DIVISOR for side in shape[1:])
    return "dit" if no_unet and patch_of(shape, transformer_row(row.device).tokens) is not None else row.backbone


def transformer_row(device: Device) -> Row:
    """The first row of a device with a patch transformer."""
    return next(row for row in TABLE if (row.device, row.backbone) == (device, "dit"))


def patch_of(shape: Sequence[int], most_tokens: int) -> int | None:
    """The smallest patch that divides the images into at most so many tokens; None where none does, or leaves too few.

    Images that are not square have none.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        return None
    side = shape[1]
    fitting = (patch for patch in range(1, side + 1) if side % patch == 0 and (side // patch) ** 2 <= most_tokens)
    patch = next(fitting)
    return patch if (side // patch) ** 2 >= FEWEST_TOKENS else None


def network_of(choice: Choice, shape: Sequence[int]) -> dict[str, Any]:
    """The settings of model.network that make it.

    Raises:
        ValueError: a width or a patch that does not fit.
    """
    width, num_blocks = choice.width, choice.num_blocks
    if choice.backbone == "mlp":
        sizes = {"width": width, "num_blocks": num_blocks, "embedding_dim": 128, "dropout": choice.dropout}
        return {"_target_": "fewstep.networks.ResidualMLP", **sizes}
    size = " x ".join(map(str, shape[1:]))
    if choice.backbone == "unet":
        if any(pixels % UNET_DIVISOR for pixels in shape[1:]):
            raise ValueError(
                f"model=auto has no network for images of {size} pixels, which neither patches nor the levels of a "
                f"U-Net divide; use a dataset.size that is a multiple of {UNET_DIVISOR}, or for latents another "
                "--downsampling"
            )
        if width % NORM_GROUPS:
            raise ValueError(
                f"a U-Net needs a width that is a multiple of {NORM_GROUPS}, got width={width}; change model.network"
            )
        return {
            "_target_": "fewstep.networks.UNet",
            "channels": [width, 2 * width, 4 * width],
            "num_blocks": num_blocks,
            "attention": [False, False, True],
            "head_dim": 16,
            "norm_groups": NORM_GROUPS,
            "dropout": choice.dropout,
            "guidance_dim": 128,
        }
    heads = [size for size in HEADS if width % size == 0]
    if not heads or choice.patch_size is None:
        raise ValueError(
            f"a patch transformer needs a width that is a multiple of {HEADS[-1]} and a patch that divides the images, "
            f"got width={width} and patch_size={choice.patch_size} for {size} pixels; change model.network or "
            "dataset.size"
        )
    head = next((size for size in heads if width >= FEWEST_HEADS * size), heads[-1])
    config = {
        "num_layers": num_blocks,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "patch_size": choice.patch_size,
        "dropout": choice.dropout,
    }
    return {"_target_": "fewstep.networks.DiT", "guidance_dim": 128, "config": config}


@dataclass(frozen=True)
class Budgets:
    """What a chain spends.

    Args:
        teacher, guidance: images. method: network evaluations of the few-step method, over all its phases.
        judged: images in a cell of the evaluation. learning_rate: of teacher and guidance. batch_size: at most.
    """

    teacher: int
    guidance: int
    method: int
    judged: int
    learning_rate: float
    batch_size: int


def budgets_of(shape: Sequence[int], images: int, device: Device) -> Budgets:
    """The budgets for `images` of `shape`."""
    row = row_of(shape, images, device)
    backbone, evaluations = fitting(row, shape), float(row.evaluations)
    if backbone == "unet":
        evaluations = UNETS[device][2] * min(1.0, UNET_PIXELS / prod(shape[1:]))
    elif backbone == "dit":
        row = row if row.backbone == "dit" else transformer_row(device)
        patch = patch_of(shape, row.tokens)
        assert patch is not None, "it fits"
        evaluations = row.evaluations * row.tokens / (shape[1] // patch) ** 2
    spent = {stage: share * evaluations / COST[stage] for stage, share in SHARES.items()}
    teacher = min(spent["teacher"], max(FEWEST_IMAGES, MOST_EPOCHS * images))
    return Budgets(
        teacher=whole(teacher),
        guidance=whole(spent["guidance"]),
        method=COST["method"] * whole(spent["method"]),
        judged=row.judged,
        learning_rate=row.learning_rate,
        batch_size=row.batch_size,
    )


def whole(images: float) -> int:
    """A number of images in thousands."""
    return max(1000, round(images / 1000) * 1000)


def training_of(images: int, learning_rate: float, largest_batch: int) -> dict[str, Any]:
    """The settings of stage.training for a budget of `images` in one phase: enough updates, however few images."""
    batch_size = largest_batch
    while batch_size > SMALLEST_BATCH and images < FEWEST_UPDATES * batch_size:
        batch_size //= 2
    return {
        "images": images,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_images": images // WARMUP,
        "ema_decay": round(max(0.9, min(0.9999, 1 - AVERAGED * batch_size / images)), 4),
    }
