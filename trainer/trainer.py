"""Your training: one epoch of training, one of validation. The run around the epochs is in base/base_trainer.py."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from armature.data.position import length_of_pass
from armature.processes import dist
from armature.run.forecast import Forecast
from armature.run.plots import Pictures
from armature.seed import key, seed_torch
from armature.step.average import average_of
from armature.step.fitting import fitting_size
from armature.step.loss_share import is_sum
from armature.step.prepare import prepared
from armature.step.schedule import Schedule
from armature.step.transfer import Frozen
from base import BaseTrainer
from base.stepper import Stepper
from utils import MetricTracker


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
        settings = config['trainer']
        self.data_loader = data_loader
        self.valid_data_loader = valid_data_loader
        self.do_validation = valid_data_loader is not None
        self.lr_scheduler = lr_scheduler
        self.len_epoch = len_epoch or settings.get('len_epoch') or length_of_pass(data_loader)
        self.log_step = settings.get('log_step') or max(1, self.len_epoch // 10)

        self.frozen = Frozen(
            self.model, settings.get('freeze'), (settings.get('unfreeze_at') or {}).get('epoch')
        )
        self.frozen.apply(self.start_epoch)
        self.weight_average = average_of(self.model, settings, self.len_epoch)
        self.model = prepared(self.model, settings, self.logger)
        loss_is_sum = is_sum(
            criterion, in_parts='microbatch_size' in settings or dist.n_processes() > 1
        )
        on_nan, schedule = settings.get('on_nan', 'stop'), config.get('lr_scheduler') or {}
        self.schedule = Schedule(
            lr_scheduler,
            schedule.get('interval', 'epoch'),
            self.mnt_metric,
            schedule.get('warmup_steps', 0),
        )
        self.stepper = Stepper(
            optimizer,
            self.schedule,
            device=device,
            precision=settings.get('precision', 'fp32'),
            average=self.weight_average,
            microbatch_size=settings.get('microbatch_size'),
            loss_is_sum=loss_is_sum,
            count=self._count,
            max_grad_norm=settings.get('max_grad_norm'),
            max_grad_value=settings.get('max_grad_value'),
            max_skips=settings.get('max_nan_skips', 10) if on_nan == 'skip' else None,
            loss_of=self._loss_of,
            model=self.model,
            find_size=lambda batch: fitting_size(batch, self.model, self._loss_of, self.logger),
        )
        measured = {
            'metrics': metric_ftns,
            'loss': criterion,
            'loss_is_sum': loss_is_sum,
            'count': self._count,
        }
        self.train_metrics = MetricTracker('loss', skip_non_finite=on_nan == 'skip', **measured)
        self.valid_metrics = MetricTracker('loss', **measured)
        self.pictures = Pictures(settings.get('pictures', []))
        self._forecast = Forecast(self)
        self._logged = (
            time.perf_counter(),
            self.step,
        )  # when and at which step the last line was logged

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train on every batch once, then validate; returns the epoch's averages by name."""
        self.model.train()
        self.train_metrics.reset()
        for batch in self.batches(epoch):  # resumes where an interrupted epoch stopped
            for data, target in self.stepper.micro_batches(
                batch
            ):  # one, unless trainer.microbatch_size is set
                with self.stepper.autocast():
                    output = self.model(data)
                    loss = self.criterion(output, target)
                self.stepper.backward(loss)
                self.train_metrics.measure(loss, output, target)
            self.stepper.step()
        log = self.train_metrics.result()

        if self.do_validation:
            log.update({f'val_{name}': value for name, value in self._valid_epoch(epoch).items()})
        self.schedule.end_epoch(log)
        return log

    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        """Averages over the validation data by name; of the averaged weights, when the run keeps an average."""
        self.pictures.reset()
        batches = self.watched(self.valid_data_loader, self.valid_metrics, self.pictures)
        with self.weight_average.in_model() if self.weight_average else nullcontext():
            dist.share_buffers(self.model)
            log = evaluate(
                self.model,
                batches,
                self.criterion,
                self.valid_metrics,
                self.stepper.autocast,
                self.pictures,
            )
        self.writer.set_step(self.step, 'valid')
        for name, value in log.items():
            self.writer.add_scalar(name, value)
        for name, picture in self.pictures.draw().items():
            self.writer.add_image(name, picture, dataformats='HWC')
        if self.config['trainer'].get('log_images'):
            self._log_images()
        if self.config['trainer'].get('log_histograms'):
            for name, parameter in self.model.named_parameters():
                self.writer.add_histogram(name, dist.whole(parameter.detach()))
        return log

    def batches(self, epoch: int) -> Iterator[Any]:
        """As in BaseTrainer. Before the first batch what is to stay frozen is, after the last one the average is fit to be tested."""
        self.frozen.apply(epoch)
        self._forecast.begin()
        yield from super().batches(epoch)
        if self.weight_average is not None:
            seed_torch(key(self.seed, 'norm', epoch), self.device)
            inputs = (
                data
                for data, *_ in itertools.islice(self.watched(self.data_loader), self.len_epoch)
            )
            self.weight_average.renew_norm(inputs)

    def _validate_between(self, epoch: int) -> None:
        """Validation inside an epoch (trainer.validate_every_steps): reported, and without a trace in the training."""
        if not self.do_validation:
            return
        log = self._valid_epoch(epoch)
        self.logger.info(
            f'step {self.step}: '
            + ' '.join(f'val_{name}: {value:.6g}' for name, value in log.items())
        )
        self.model.train()
        self.frozen.apply(epoch)

    def _loss_of(self, data: Any, target: Any) -> torch.Tensor:
        with self.stepper.autocast():
            return self.criterion(self.model(data), target)

    def _log_step(self, bar: tqdm) -> None:
        """Write the averages since the last line to TensorBoard and the log."""
        now, (logged_at, logged_step) = time.perf_counter(), self._logged
        self._forecast.after_steps(now - logged_at, self.step - logged_step)
        self._logged = now, self.step
        values = self.train_metrics.recent()
        bar.set_postfix({name: f'{value:.4g}' for name, value in values.items()})
        self.logger.debug(
            f'Train epoch {self.epochs_done + 1} {self._progress(self.position)} '
            + ' '.join(f'{name}: {value:.6g}' for name, value in values.items())
        )
        if self.stepper.grad_norm is not None:
            values['grad_norm'] = float(self.stepper.grad_norm)
        values['learning_rate'] = self.optimizer.param_groups[0]['lr']
        values['samples_per_second'] = (
            (self.step - logged_step) * self._batch_size() / (now - logged_at)
        )
        for name, value in values.items():
            self.writer.add_scalar(name, value)

    def _log_images(self) -> None:
        """One grid with the first validation batch."""
        from torchvision.utils import make_grid

        data, _ = next(iter(self.watched(self.valid_data_loader)))
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
    pictures: Pictures | None = None,
) -> dict[str, float]:
    """Averages of loss and metrics over (data, target) batches on the model's device; the model is left in eval mode."""
    model.eval()
    metrics.reset()
    for data, target in batches:
        with autocast():
            output = model(data)
            loss = criterion(output, target)
        metrics.measure(loss, output, target)
        if pictures:
            pictures.update(output, target)
    return metrics.result()
