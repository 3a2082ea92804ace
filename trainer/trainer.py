"""Your training: one epoch of training, one of validation.

The run around the epochs is in base/base_trainer.py.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from armature.data.order import epoch_length
from armature.processes import dist
from armature.run.metric_tracker import MetricTracker
from base import BaseTrainer
from base.stepper import Stepper


class Trainer(BaseTrainer):
    """Trains with the loss and metrics of the config.

    len_epoch: batches an epoch has; None takes one pass over the data.
    """

    def __init__(
        self,
        model,
        criterion,
        metric_ftns,
        optimizer,
        config,
        device,
        data_loader,
        valid_data_loader=None,
        lr_scheduler=None,
        len_epoch=None,
    ):
        super().__init__(model, criterion, metric_ftns, optimizer, config, device)
        self.data_loader = data_loader
        self.valid_data_loader = valid_data_loader
        self.do_validation = valid_data_loader is not None
        self.lr_scheduler = lr_scheduler
        self.len_epoch = len_epoch or epoch_length(config, data_loader)
        self.log_step = self.settings.log_step or max(10, self.len_epoch // 10)
        self.stepper = Stepper.from_config(
            config, self.model, criterion, optimizer, lr_scheduler, self.len_epoch
        )
        measured = {'metrics': metric_ftns, 'loss': criterion}
        skips = self.settings.on_nan == 'skip'
        self.train_metrics = MetricTracker(
            'loss', data=data_loader, skip_non_finite=skips, **measured
        )
        self.valid_metrics = MetricTracker(
            'loss', data=valid_data_loader, pictures=self.settings.pictures, **measured
        )

    @property
    def takes_pairs(self) -> bool:
        return type(self)._train_epoch is Trainer._train_epoch

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train on every batch once, then validate; returns the epoch's averages by name."""
        self.model.train()
        self.train_metrics.reset()
        for batch in self.batches(epoch):  # resumes where an interrupted epoch stopped
            # One micro-batch, unless trainer.microbatch_size is set.
            for data, target in self.stepper.micro_batches(batch):
                with self.stepper.autocast():
                    output = self.model(data)
                    loss = self.criterion(output, target)
                self.stepper.backward(loss)
                self.train_metrics.measure(loss, output, target)
            self.stepper.step()
            self.end_step()  # log, validate, save, stop: what is due after a step
        log = self.train_metrics.result()

        if self.do_validation:
            log.update({f'val_{name}': value for name, value in self._valid_epoch(epoch).items()})
        self.stepper.end_epoch(log)  # a schedule that counts epochs
        return log

    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        """Averages over the validation data by name; of averaged weights, where a run has them."""
        batches = self.watched(self.valid_data_loader, self.valid_metrics)
        with self.stepper.tested_weights():
            dist.share_buffers(self.model)
            log = evaluate(
                self.model, batches, self.criterion, self.valid_metrics, self.stepper.autocast
            )
        self.writer.set_step(self.step, 'valid')
        for name, value in log.items():
            self.writer.add_scalar(name, value)
        for name, figure in self.valid_metrics.pictures.draw().items():
            self.writer.add_figure(name, figure)
        if self.settings.log_images:
            self._log_images()
        if self.settings.log_histograms:
            for name, parameter in self.model.named_parameters():
                self.writer.add_histogram(name, dist.whole(parameter.detach()))
        return log

    def _validate_between(self, epoch):
        """Validation inside an epoch (trainer.validate_every_steps): reported, without a trace."""
        if not self.do_validation:
            return
        log = self._valid_epoch(epoch)
        self.logger.info(
            f'step {self.step}: '
            + ' '.join(f'val_{name}: {value:.6g}' for name, value in log.items())
        )
        self.model.train()

    def _log_step(self, bar: tqdm) -> None:
        """Write the averages since the last line to TensorBoard and the log."""
        pace = self._epoch.steps_per_second(self.step)
        values = self.train_metrics.recent()
        bar.set_postfix({name: f'{value:.4g}' for name, value in values.items()})
        self.logger.debug(
            f'Train epoch {self.epochs_done + 1} {self._progress(self.position)} '
            + ' '.join(f'{name}: {value:.6g}' for name, value in values.items())
        )
        if self.stepper.grad_norm is not None:
            values['grad_norm'] = float(self.stepper.grad_norm)
        if (rate := self.optimizer.param_groups[0].get('lr')) is not None:
            values['learning_rate'] = rate
        values['samples_per_second'] = pace * self._batch_size()
        for name, value in values.items():
            self.writer.add_scalar(name, value)

    def _log_images(self):
        """One grid with the first validation batch."""
        from torchvision.utils import make_grid

        data, _ = next(iter(self.watched(self.valid_data_loader)))
        if not isinstance(data, torch.Tensor) or data.dim() != 4 or data.shape[1] not in (1, 3):
            self.settings.log_images = False
            self.logger.warning(
                'trainer.log_images: the inputs are no pictures (batch, 1 or 3, height, width), so '
                'there is nothing to show'
            )
            return
        self.writer.add_image('input', make_grid(data[:64].float().cpu(), nrow=8, normalize=True))

    def _progress(self, n_batches: int) -> str:
        return f'[{n_batches}/{self.len_epoch} ({100 * n_batches / self.len_epoch:.0f}%)]'


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: Callable,
    metrics: MetricTracker,
    autocast: Callable = nullcontext,
) -> dict[str, float]:
    """Averages of loss and metrics over (data, target) batches on the model's device.

    The model is left in eval mode.
    """
    model.eval()
    metrics.reset()
    for data, target in batches:
        with autocast():
            output = model(data)
            loss = criterion(output, target)
        metrics.measure(loss, output, target)
    return metrics.result()
