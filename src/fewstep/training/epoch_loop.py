"""Lightning's loop over training batches without what costs as much as a small network's step."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.call import _call_callback_hooks, _call_lightning_module_hook, _call_strategy_hook
from torch import Tensor


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop for one optimiser and its scheduler, of which each batch is a step.

    Strategy, precision and callbacks do what they do in Lightning's own, in the same order, but that a hook which
    nobody overrides is not called and what was not logged is not collected. There is no validation, no batch is
    skipped, and the hooks of a batch's transfer are called on other devices than the CPU alone.

    Args:
        trainer: whose loop this will be. It has no profiler, which would want to hear of every hook.
    """

    def __init__(self, trainer: Trainer) -> None:
        replaced = trainer.fit_loop.epoch_loop
        super().__init__(trainer, replaced.min_steps, replaced.max_steps)
        self._overridden: dict[tuple[str, int], tuple[bool, bool]] = {}

    def on_run_start(self, data_fetcher: Any) -> None:
        self._overridden.clear()
        super().on_run_start(data_fetcher)

    def advance(self, data_fetcher: Any) -> None:
        """Make one optimiser step.

        Raises:
            StopIteration: there are no more batches.
        """
        trainer, batches, connector = self.trainer, self.batch_progress, self.trainer._logger_connector
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        batches.is_last_batch = data_fetcher.done
        if trainer.strategy.root_device.type != "cpu":
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        batches.increment_ready()
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, index)
        batches.increment_started()
        outputs = self._step(batch, index)
        batches.increment_processed()
        self._call("on_train_batch_end", outputs, batch, index)
        if self._results:
            connector.on_batch_end()
        self._results.batch = None
        batches.increment_completed()
        if self._results:
            connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: Any) -> None:
        self._batches_that_stepped += 1  # which numbers the rows of loggers
        self._save_loggers_on_train_batch_end()

    def _step(self, batch: Any, index: int) -> dict[str, Tensor]:
        """A step of optimiser and scheduler; gives what `on_train_batch_end` is called with."""
        trainer, module, strategy = self.trainer, self.trainer.lightning_module, self.trainer.strategy
        optimizer: Any = strategy._lightning_optimizers[0]
        progress = self.automatic_optimization.optim_progress.optimizer
        outputs: dict[str, Tensor] = {}

        @torch.enable_grad()
        def closure() -> Tensor:
            loss = _call_strategy_hook(trainer, "training_step", batch, index)
            outputs["loss"] = loss.detach().clone()  # a hook may change the other in place
            progress.zero_grad.increment_ready()
            self._call("on_before_zero_grad", optimizer)
            progress.zero_grad.increment_started()
            module.optimizer_zero_grad(trainer.current_epoch, index, optimizer)
            progress.zero_grad.increment_completed()
            strategy.backward(loss, optimizer)
            return outputs["loss"]

        progress.step.increment_ready()
        module.optimizer_step(trainer.current_epoch, index, optimizer, closure)
        progress.step.increment_completed()
        self.scheduler_progress.increment_ready()
        module.lr_scheduler_step(trainer.lr_scheduler_configs[0].scheduler, None)
        self.scheduler_progress.increment_completed()
        return outputs

    def _call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the callbacks, then of the module, where one overrides it."""
        trainer, module = self.trainer, self.trainer.lightning_module
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        key = hook, len(callbacks)  # one may add others
        if key not in self._overridden:
            by_callback = any(overrides(each, hook, Callback) for each in callbacks)
            self._overridden[key] = by_callback, overrides(module, hook, LightningModule)
        by_callback, by_module = self._overridden[key]
        if by_callback:
            _call_callback_hooks(trainer, hook, *arguments)
        if by_module:
            _call_lightning_module_hook(trainer, hook, *arguments)


def overrides(owner: Any, hook: str, base: type) -> bool:
    """Whether a hook is another than that of the base class, by its own class or, as in a LambdaCallback, by itself."""
    own = getattr(owner, hook)
    return getattr(own, "__func__", own) is not getattr(base, hook)
