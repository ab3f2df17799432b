"""The training loops that a stage is measured against: written down bare, and in the shape of diffusers' examples.

They train the same network on the same data towards the same target, and share their mathematics, `loss`.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from copy import deepcopy
from math import atan, cos, exp, pi, sin
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from fewstep.data.batches import Batch, from_uint8
from fewstep.data.digits import DigitsData, load_digits_split
from fewstep.training.module import DistillationModule

RUNG = 8
NULL_LABEL = DigitsData.facts.num_classes
OFFSET = atan(exp(-10.0))  # of the angle at t = 0: the schedule's log-SNR runs from -20 to 20
SLOPE = pi / 2 - 2 * OFFSET


class BareLoop:
    """A training loop as one writes it down: no logging, checkpoint or check. It starts from the stage's student."""

    def __init__(self, module: DistillationModule) -> None:
        self.training = module.training_plan
        self.stream = module.stream
        self.data = DigitsData(batch_size=self.training.batch_size, stream=module.stream)
        self.network: nn.Module = deepcopy(module.student.network)
        self.average = deepcopy(self.network).requires_grad_(False) if self.training.ema_decay else None
        rate: Callable[[int], float] = lambda step: (  # noqa: E731
            min(1, (step + 1) * self.training.batch_size / self.training.warmup_images)
            * (1 - step / self.training.num_steps)
        )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), self.training.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def run(self, start: int, stop: int) -> Float[Tensor, ""]:
        """Steps start, ..., stop - 1; gives the last loss."""
        loss = torch.zeros(())
        parameters: list[Tensor] = list(self.network.parameters())
        averages: list[Tensor] = [] if self.average is None else list(self.average.parameters())
        for step in range(start, stop):
            loss = self.loss(self.data.batch(step))
            self.optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(parameters, self.training.gradient_clip)
            self.optimizer.step()
            self.scheduler.step()
            if averages:
                decay = min(self.training.ema_decay, (1 + step) / (10 + step))
                get_ema_multi_avg_fn(decay)(averages, parameters, 0)
        return loss.detach()

    @abstractmethod
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """One batch's loss."""


class Teacher(BareLoop):
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        x, label = batch
        t, eps = torch.rand(len(x)), torch.randn_like(x)
        label = label.where(torch.rand(len(x)) >= 0.1, NULL_LABEL)
        phi = OFFSET + SLOPE * t
        alpha, sigma = phi.cos()[:, None, None, None], phi.sin()[:, None, None, None]
        v = self.network(alpha * x + sigma * eps, phi / (pi / 2), label, None)
        return (v - (alpha * eps - sigma * x)).square().mean()


class Guidance(BareLoop):
    def __init__(self, module: DistillationModule, teacher: nn.Module) -> None:
        super().__init__(module)
        self.teacher = teacher

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        x, label = batch
        t, eps, w = torch.rand(len(x)), torch.randn_like(x), 4 * torch.rand(len(x))
        phi = OFFSET + SLOPE * t
        time = phi / (pi / 2)
        z = phi.cos()[:, None, None, None] * x + phi.sin()[:, None, None, None] * eps
        with torch.no_grad():
            labels = torch.cat([label, torch.full_like(label, NULL_LABEL)])
            conditional, unconditional = self.teacher(torch.cat([z, z]), torch.cat([time, time]), labels, None).chunk(2)
            target = conditional + w[:, None, None, None] * (conditional - unconditional)
        error = (self.network(z, time, label, w) - target).square().flatten(1).mean(1)
        return ((1 + w) ** -2 * error).mean()


class Progressive(BareLoop):
    def __init__(self, module: DistillationModule, teacher: nn.Module) -> None:
        super().__init__(module)
        self.teacher = teacher

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        x, label = batch
        t = torch.randint(1, RUNG + 1, (len(x),)) / RUNG
        eps, w = torch.randn_like(x), 4 * torch.rand(len(x))
        phi, half = OFFSET + SLOPE * t, SLOPE / RUNG / 2
        time = phi / (pi / 2)
        z = phi.cos()[:, None, None, None] * x + phi.sin()[:, None, None, None] * eps
        with torch.no_grad():
            first = self.teacher(z, time, label, w)
            second = self.teacher(cos(half) * z - sin(half) * first, (phi - half) / (pi / 2), label, w)
            target = (first + second / cos(half) - sin(half) / cos(half) * z) / 2
        error = (self.network(z, time, label, w) - target).square().flatten(1).mean(1)
        return ((1 + w) ** -2 * torch.maximum(phi.cos().square(), phi.sin().square()) * error).mean()


class DiffusersLoop:
    """The loop of diffusers' training examples (train_unconditional.py and its kin), around the loss of another loop.

    accelerate holds model, optimiser, data and schedule, a DataLoader collates images, EMAModel averages, AdamW is
    torch's default, and the loss is read after every step, all as in those scripts.
    """

    def __init__(self, loop: BareLoop) -> None:
        self.loop = loop
        training = loop.training
        split = load_digits_split()
        data = TensorDataset(from_uint8(split.train_images), split.train_labels)
        self.accelerator = Accelerator(cpu=True)
        network = loop.network
        optimizer = torch.optim.AdamW(network.parameters(), training.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        scheduler = get_scheduler(
            "linear",
            optimizer,
            num_warmup_steps=max(1, training.warmup_images // training.batch_size),
            num_training_steps=training.num_steps,
        )
        loader = DataLoader(data, training.batch_size, shuffle=True, drop_last=True)
        self.network, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            network, optimizer, loader, scheduler
        )
        self.average = EMAModel(self.network.parameters(), decay=training.ema_decay, use_ema_warmup=True)
        self.batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def run(self, start: int, stop: int) -> float:
        """As many steps; gives the last loss."""
        read = 0.0
        self.network.train()
        for _ in range(start, stop):
            with self.accelerator.accumulate(self.network):
                loss = self.loop.loss(Batch(*next(self.batches)))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.network.parameters(), self.loop.training.gradient_clip)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.average.step(self.network.parameters())
            read = loss.detach().item()
            self.accelerator.log({"loss": read, "lr": self.scheduler.get_last_lr()[0]}, step=start)
        return read
