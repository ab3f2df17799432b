"""One to many: one teacher, several students of which each has a part of the times, or of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Schedule
from fewstep.methods.base import Networks, Phase, Regression, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.networks import Denoiser, Routed
from fewstep.networks.routed import check_edges
from fewstep.system.validation import AtLeastOne, ShareBelowOne

WIDEST = 8.0  # log-SNR, to either side, between which edges are equally far from each other: see `O2MKD.edges`
SHIFTS = 1024  # places of the edges where networks overlap


@dataclass(frozen=True, kw_only=True)
class O2MKD(GuidedStudentSettings, Regression):
    """One-to-many distillation (2410.04191, of which we know the abstract; the rest is ours).

    K students, smaller as a rule, each own a block of times: L_k = E over t in block k of weight |D_k - D_T|^2. They
    are one model of which each example costs one evaluation, sampled as its teacher is, in any number of steps. All
    begin as one student of all times, which is what the first network is for the first part of the training. Neighbours
    overlap: the edges are moved a little in each step.

    With `split` = label each has classes of its own instead, as in multi-student distillation (Song et al. 2024).

    Args:
        num_networks: K. split: what each has a part of.
        edges: between blocks of times: time, equal blocks; log_snr, equally far from each other in log-SNR within
            +-8, where the two outermost have the rest (within the schedule's own +-20 they would have next to nothing
            else); or the K - 1 times themselves.
        groups: classes of each network; None: blocks of as many classes, or one more.
        overlap: the largest shift of the edges, in time.
        common: share of the training in which one student learns all times.
        The rest: see `Method` and `GuidedStudentSettings`.

    Raises:
        ValueError: a network without times or classes, a setting of the other split, an overlap or a share outside
            [0, 1), or an adapter, which is of one network.
    """

    paper: ClassVar[str] = "after One-to-Many Knowledge Distillation 2024 (2410.04191)"
    certainty: ClassVar[str] = "O2MKD-style: of the paper we know the abstract; all but blocks of times is ours"

    name: str = "o2mkd"
    num_networks: AtLeastOne = 4
    split: Literal["time", "label"] = "time"
    edges: Literal["time", "log_snr"] | Sequence[float] = "time"
    groups: Sequence[Sequence[int]] | None = None
    overlap: ShareBelowOne = 1 / 64
    common: ShareBelowOne = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        given = len(self.edges) + 1 if not isinstance(self.edges, str) else len(self.groups or ()) or self.num_networks
        if given != self.num_networks:
            raise ValueError(
                "stage.num_networks must be that of stage.groups or one more than stage.edges, got "
                f"{self.num_networks} and {given}"
            )
        if self.split == "time" and self.groups is not None:
            raise ValueError(
                "stage.groups are classes of networks with stage.split=label; use it, or stage.groups=null"
            )
        if self.split == "label" and self.edges != "time":
            raise ValueError("stage.edges are of networks with stage.split=time; use it, or stage.edges=time")
        if not isinstance(self.edges, str):
            check_edges(self.edges)
        if self.adapter is not None:
            raise ValueError("stage.adapter adds to one network, and there are several here; use stage.adapter=null")

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling(guidance="input")),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        one = nets.student
        if self.split == "time":
            edges = [float(one.time_input(at)) for at in self.edge_log_snrs(nets.schedule)]
            network = Routed.of(one.network, edges=edges)
        else:
            network = Routed.of(one.network, groups=self.classes(one))
        student = Denoiser(network, one.prediction, one.native_schedule)
        return super().networks(replace(nets, student=student), stream)

    def edge_log_snrs(self, schedule: Schedule) -> list[Float[Tensor, "1"]]:
        """The K - 1 log-SNRs between the blocks, falling; each by itself, so that a plan has their values."""
        shares = [k / self.num_networks for k in range(1, self.num_networks)]
        if self.edges == "log_snr":
            return [torch.tensor([WIDEST * (1 - 2 * share)], dtype=torch.float64, device="cpu") for share in shares]
        times = shares if isinstance(self.edges, str) else self.edges
        return [schedule.log_snr(torch.tensor([t], dtype=torch.float64, device="cpu")) for t in times]

    def classes(self, student: Denoiser) -> list[list[int]]:
        """Each network's classes.

        Raises:
            ValueError: the student takes prompts.
        """
        if isinstance(student.null, Tensor):
            raise ValueError("stage.split=label needs classes, and this student takes prompts; use stage.split=time")
        if self.groups is not None:
            return [[*group] for group in self.groups]
        return [part.tolist() for part in torch.arange(student.null).tensor_split(self.num_networks)]

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        network = nets.student.network
        assert isinstance(network, Routed)
        common = round(self.common * self.training.num_steps)
        if step == common:  # what the first network has learned of all times, and its average, become all others'
            for each in (nets.student, nets.model):
                assert isinstance(each.network, Routed)
                each.network.spread()
        shift = self.overlap * (2 * draws.choice(SHIFTS) / (SHIFTS - 1) - 1)
        with network.moved(inf if step < common else shift):
            return super().losses(batch, nets, draws, step=step, phase=phase)

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        return nets.frozen_teacher(noised.z, noised.log_snr, label, w)
