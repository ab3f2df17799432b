"""Judge models together: quality.json, where the figures come from, the pictures, and the report."""

import json
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from lightning.pytorch.loggers import Logger
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fewstep.artifacts.lineage import ancestors
from fewstep.artifacts.model_file import ModelCard, load_model
from fewstep.artifacts.run_folder import QUALITY
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.guidance import Guided, log_snr_interval
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Denoise
from fewstep.distributed.collectives import on_main_process, rank
from fewstep.evaluation.features import FeatureNet, feature_net
from fewstep.evaluation.grid import Candidate, EvaluationPlan, Row, quality_grid
from fewstep.evaluation.images import EvaluationImages, Reference, evaluation_tensor
from fewstep.evaluation.metrics import KID_SUBSET_SIZE, KID_SUBSETS
from fewstep.evaluation.protocol import Protocol
from fewstep.evaluation.statistics import ReferenceStatistics
from fewstep.inference.model import Model
from fewstep.reports.pictures import picture, save_png
from fewstep.reports.report import write_report
from fewstep.system.files import atomic_write, sha256_of, tensor_digest
from fewstep.system.hardware import peak_gpu_memory, peak_memory
from fewstep.tracking.wandb_run import log_quality

if TYPE_CHECKING:
    from fewstep.evaluation.clip_score import ClipScore

PROVENANCE = "provenance.json"
SAME_NOISE = Path("samples", "same-noise")


@dataclass(frozen=True)
class Evaluator:
    """What samples of a data set are judged by."""

    facts: DataFacts
    net: FeatureNet
    reference: Reference
    exact: GaussianMixture | None
    data: Data
    kept_in: Path | None = None

    @classmethod
    def of(cls, data: Data, features: str = "auto", kept_in: Path | None = None) -> "Evaluator":
        """The judge of a data set, through the net that `feature_net` chooses when `features` is wanted.

        Args:
            kept_in: folder where features of the reference are kept from run to run, see `Known.of`.
        """
        held_out = data.reference()
        return cls(
            facts=data.facts,
            net=feature_net(data.judged, mixture=data.exact, wanted=features),
            reference=Reference(data.reference_split, evaluation_tensor(held_out.x, data.judged), held_out.label),
            exact=data.exact,
            data=data,
            kept_in=kept_in,
        )

    @cached_property
    def known(self) -> ReferenceStatistics:
        """The reference as the net sees it, once for all that is judged."""
        return ReferenceStatistics.of(self.net, self.reference, self.kept_in)

    @cached_property
    def clip(self) -> "ClipScore | None":
        """What says how images fit their prompts, where there are prompts and a CLIP to ask.

        Raises:
            ValueError: CLIP's folder lacks a file.
        """
        if self.data.clip is None or self.data.prompts(1) is None:
            return None
        from fewstep.evaluation.clip_score import ClipScore  # transformers takes seconds

        return ClipScore(Path(self.data.clip))

    def labels(self, num_images: int) -> str:
        """What is asked for, in words, for the protocol."""
        if self.facts.text is None:
            return "classes in turn"
        asked = tensor_digest({"prompts": self.data.conditions(min(num_images, len(self.reference.images)))})[:12]
        clip = "no CLIP" if self.clip is None else f"CLIP {self.clip.digest[:12]}"
        return f"held-out prompts in turn, {asked}; {clip}; {KID_SUBSETS} KID subsets of {KID_SUBSET_SIZE} or all"


def with_ancestors(paths: Sequence[Path]) -> dict[Path, Model]:
    """The models at `paths` and all they were made from: teacher, guided student, rungs downwards."""
    found: dict[Path, Model] = {}
    for path in paths:
        model = Model(*load_model(path))
        found[path.resolve()] = model
        for ancestor in ancestors(path, model.card):
            if ancestor.resolve() not in found:
                found[ancestor.resolve()] = Model(*load_model(ancestor))
    order = ("teacher", "guided", "progressive", "encoder")
    return dict(
        sorted(found.items(), key=lambda item: (order.index(item[1].card.role), -(item[1].card.num_steps or 0)))
    )


def candidates_of(
    models: dict[Path, Model], plan: EvaluationPlan, exact: GaussianMixture | None, device: str = "cpu"
) -> list[Candidate]:
    """Each model with the steps and the sampler it is judged at; the exact teacher where the chain has no trained one.

    A teacher is guided in the interval that its student was made for; teacher and guided student have the baselines
    too. Encoders make no samples and are left out.
    """
    contenders = []
    cards = [model.card for model in models.values()]
    roles = [card.role for card in cards]
    own = next((card for card in cards if card.guidance_interval), cards[0])  # in the times of that student's schedule
    between = log_snr_interval(own.schedule, own.guidance_interval)
    if "teacher" not in roles and exact is not None:
        guided = Guided(exact.denoise, exact.num_classes, between)
        contenders += with_baselines("teacher", guided, guided.evaluations, cards[0], plan.teacher_steps, plan)
    for model in models.values():
        card = model.card
        if card.role == "encoder":
            continue
        model.to(device)
        if card.w_max is not None and max(plan.w) > card.w_max:
            warnings.warn(
                f"the grid's w goes to {max(plan.w):g}, and a student was made for w to {card.w_max:g}", stacklevel=3
            )
        denoise = model.denoise
        if isinstance(denoise, Guided) and card.role == "teacher":
            denoise = Guided(denoise.denoise, denoise.null, between)
        if card.role == "progressive":
            steps = (card.num_steps or 1,)
            contenders.append(
                Candidate(card.role, denoise, model.evaluations_per_step, card.schedule, steps, card.sampling)
            )
        else:
            steps = plan.teacher_steps if card.role == "teacher" else plan.guided_steps
            contenders += with_baselines(card.role, denoise, model.evaluations_per_step, card, steps, plan)
    return contenders


def with_baselines(
    model: str, denoise: Denoise, evaluations: int, card: ModelCard, steps: Sequence[int], plan: EvaluationPlan
) -> list[Candidate]:
    """A model that was made for no number of steps: with DDIM, and with each baseline."""
    return [
        Candidate(model, denoise, evaluations, card.schedule, tuple(steps)),
        *(
            Candidate(model, denoise, evaluations, card.schedule, tuple(plan.baseline_steps), sampler)
            for sampler in plan.baselines
        ),
    ]


def evaluate(
    paths: Sequence[Path],
    plan: EvaluationPlan,
    judge: Evaluator,
    folder: Path,
    loggers: Sequence[Logger],
    *,
    accelerator: str = "cpu",
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Measure the whole grid of the models at `paths` and their ancestors, and write everything into `folder`.

    Args:
        compiled: whether the networks' calls are, on a GPU into CUDA graphs.

    Raises:
        ValueError: a model makes other data than `judge` judges, an ancestor is gone or changed, or all are encoders.
    """
    models = with_ancestors(paths)
    if all(models[path.resolve()].card.role == "encoder" for path in paths):
        raise ValueError("encoders make no samples to judge; what they are worth is in the cycle.json of their run")
    for path, model in models.items():
        if model.card.data != judge.facts:
            raise ValueError(f"{path} makes {model.card.data.name}, and is to be judged on {judge.facts.name}")
    device = "cuda" if accelerator == "gpu" else "cpu"
    judge.net.to(device)
    if compiled:
        for model in models.values():
            model.to(device).compile()
    contenders = candidates_of(models, plan, judge.exact, device)
    first = contenders[0]
    protocol = Protocol.of(
        judge.facts,
        judge.net,
        judge.reference,
        num_images=plan.num_images,
        seed=plan.seed,
        labels=judge.labels(plan.num_images),
        comparison=f"{first.model}, ddim, {first.steps[0]} steps",
    )

    def show(
        contender: Candidate, steps: int, w: float, images: EvaluationImages, labels: Int[Tensor, "count"]
    ) -> None:
        columns = judge.facts.in_a_row
        shown = columns if judge.facts.is_image else len(images)
        name = f"{contender.name}-{steps}-w{w:g}.png"
        save_png(picture(images[:shown], labels[:shown], judge.facts.pixels, columns), folder / SAME_NOISE / name)

    cells = quality_grid(
        contenders,
        plan,
        facts=judge.facts,
        net=judge.net,
        known=judge.known,
        protocol=protocol,
        labels=judge.data.conditions(plan.num_images),
        decode=judge.data.decode,
        clip_score=judge.clip and partial(judge.clip, prompts=judge.data.prompts(plan.num_images) or [], device=device),
        exact=judge.exact,
        device=device,
        show=show,
    )
    rows = [row.as_dict() for row in shown(cells, contenders, plan)]

    def write() -> None:
        write_json(folder / QUALITY, rows)
        write_json(folder / PROVENANCE, provenance(models, protocol, folder, device))
        log_quality(loggers, rows)
        write_report(folder)

    on_main_process(write)
    return rows


def shown(cells: Iterator[Row], contenders: Sequence[Candidate], plan: EvaluationPlan) -> Iterator[Row]:
    """Pass the cells on, showing how far the grid is in network evaluations, and the images/s of the latest cell."""
    if rank() > 0:
        yield from cells
        return
    total = len(plan.w) * sum(contender.evaluations * sum(contender.steps) for contender in contenders)
    columns = (TextColumn("evaluate"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total)
        for row in cells:
            rate = f"{row.images_per_second:,.0f} images/s"
            text = f"{row.model} {row.steps} steps, w = {row.w:g}: FID {row.fid:.2f}, {rate}"
            progress.update(task, advance=row.nfe, description=text)
            if not progress.console.is_terminal and row.model == "progressive":
                print(text, flush=True)
            yield row


def provenance(models: dict[Path, Model], protocol: Protocol, folder: Path, device: str) -> dict[str, Any]:
    """Where the figures of a folder come from."""
    return {
        "protocol": protocol.as_dict(),
        "models": [
            {
                "model": model.card.role,
                "steps": model.card.num_steps,
                "path": os.path.relpath(path, folder),
                "run": os.path.relpath(path.parent, folder),
                "sha256": sha256_of(path),
            }
            for path, model in models.items()
        ],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fewstep": version("fewstep"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "peak_memory": {"main": peak_memory(), "gpu": peak_gpu_memory()},  # bytes, of the process that judged
    }


def cpu_name() -> str:
    """The processor, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
