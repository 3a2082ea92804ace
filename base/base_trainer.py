"""BaseTrainer: the run around the epochs: resume, watch, stop, save."""
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from base import checkpoint
from base.monitor import Monitor
from base.resume import load_optimizer, parts_of, restore_parts
from base.run_record import RunLock, differences, made_by, write_history
from base.stop import Stopped, StopRequest
from base.weights import bare, load_weights
from logger import TensorboardWriter
from utils.batch import to_device
from utils.errors import CheckpointError, ConfigError, NonFiniteError
from utils.seed import key, rng_state, seed_torch, set_rng_state
from utils.util import prepare_device

LAST, BEST = 'checkpoint-last.pth', 'model_best.pth'


class BaseTrainer(ABC):
    """Base of the project's trainers; a subclass has to write `_train_epoch(epoch) -> dict`, the epoch's averages by name.

    Every attribute that has `state_dict` and `load_state_dict` (schedulers, more models and optimizers, moving averages, also
    in a list, tuple or dict) is part of the checkpoint under its attribute's name; nothing has to be registered.
    """

    def __init__(self, model, criterion, metric_ftns, optimizer, config, device=None):
        settings = config['trainer']
        self.config = config
        self.logger = config.get_logger('trainer', settings.get('verbosity', 2))
        self.device, device_ids = (device, []) if device is not None else self._prepare_device(config.get('n_gpu', 1))
        self.model = model.to(self.device) if isinstance(model, nn.Module) else model
        if len(device_ids) > 1 and not isinstance(model, nn.DataParallel):
            self.model = nn.DataParallel(model, device_ids)
        self.criterion = self.loss = criterion
        self.metric_ftns = self.metrics = metric_ftns
        self.optimizer = optimizer
        self.seed = torch.initial_seed()
        self._step_key = key(self.seed, 'step')  # each step's randomness starts at this number plus the step's

        self.epochs = settings['epochs']
        self.save_period = settings.get('save_period', 1)
        self.monitor = settings.get('monitor', 'off')
        self._monitor = Monitor(self.monitor, settings.get('early_stop'))
        self._stop = StopRequest(settings.get('max_minutes'))

        self.start_epoch = 1
        self.epochs_done = 0
        self.step = 0            # optimizer steps since the beginning of the run
        self.position = 0        # batches of the epoch in progress that are behind us
        self.history = []        # what each finished epoch reported
        self._resumed = {}       # of the checkpoint: what is put back when training starts
        self._saved_at = None    # the moment that checkpoint-last.pth holds
        self._saved_time = time.monotonic()
        self._save_every_steps = settings.get('save_every_steps', math.inf)
        self._save_every_s = 60 * settings.get('save_every_minutes', math.inf)

        self.checkpoint_dir = config.save_dir
        if config.resume is not None:
            self._resume_checkpoint(config.resume)
        self.writer = TensorboardWriter(config.log_dir, self.logger, settings.get('tensorboard', settings.get('tensorboardX', False)),
                                        purge_step=self.step + 1 if self.step else None)

    @abstractmethod
    def _train_epoch(self, epoch: int) -> dict:
        """Train for one epoch and return its averages by name."""

    def train(self) -> None:
        """Run the epochs that are left. A stop on request saves and leaves with the signal's exit code."""
        if self.start_epoch > self.epochs:
            self.logger.info(f'This run is finished: all {self.epochs} epochs are done. To train longer: '
                             f'python train.py -r {self.checkpoint_dir} --set trainer.epochs={self.epochs + 10}')
            return
        try:
            with RunLock(self.checkpoint_dir), self._stop.listening():
                self._restore_parts()
                for epoch in range(self.start_epoch, self.epochs + 1):
                    if hasattr(getattr(self, 'data_loader', None), 'seek'):
                        self.data_loader.seek(epoch - 1)
                    self._finish_epoch(epoch, self._flat(self._train_epoch(epoch)))
                    if self._monitor.out_of_patience:
                        self.logger.info(f'{self.mnt_metric} has not improved for {self.early_stop:g} epochs: training stops.')
                        break
                    self._leave_if_asked()
        except Stopped:
            self.logger.info(f'Stopped by {self._stop.reason} in epoch {self.epochs_done + 1}, after {self.step} steps. '
                             f'To go on: python train.py -r {self.checkpoint_dir}')
            if self._stop.exit_code:
                sys.exit(self._stop.exit_code)
        finally:
            self.writer.close()

    # One epoch

    def batches(self, epoch: int) -> Iterator[tuple[int, Any]]:
        """(step, batch on the device) for what is left of the epoch; the step counts from 1 over the whole run.

        Between two batches everything around a step happens: position, randomness, progress, logging, saving, stopping.
        """
        if self.position:
            self._restore_parts()  # the sums of the interrupted epoch, which its beginning has just reset
        with tqdm(total=self.len_epoch, initial=self.position, desc=f'epoch {epoch}', leave=False,
                  disable=not sys.stderr.isatty()) as bar:
            for batch in self._stream(epoch):
                self.step += 1
                seed_torch(self._step_key + self.step, self.device)
                self.writer.set_step(self.step)
                yield self.step, to_device(batch, self.device)
                self.position += 1
                bar.update()
                if self.position % self.log_step == 0 or self.position == self.len_epoch:
                    self._log_step(bar)
                self._save_if_due()
                self._leave_if_asked()

    def watched(self, loader: Iterable) -> Iterator[Any]:
        """The batches of a pass without steps (validation), on the device; a request to stop is met between two of them."""
        if hasattr(loader, 'seek'):
            loader.seek(0)
        for batch in loader:
            self._leave_if_asked()
            yield to_device(batch, self.device)

    def _stream(self, epoch: int) -> Iterator[Any]:
        """What is left of the epoch's `len_epoch` batches; epochs follow each other through the passes over the data."""
        loader, n_batches = self.data_loader, self.len_epoch - self.position
        per_pass = len(loader) if hasattr(loader, '__len__') else self.len_epoch
        number, first = divmod((epoch - 1) * self.len_epoch + self.position, per_pass)
        while n_batches > 0:
            for batch in islice(self._pass(number, first), n_batches):
                n_batches -= 1
                yield batch
            number, first = number + 1, 0

    def _pass(self, number: int, first: int) -> Iterator[Any]:
        """Pass `number` over the data from batch `first` on. A loader that cannot seek draws its order anew and is read up to there."""
        if hasattr(self.data_loader, 'seek'):
            self.data_loader.seek(number, first)
            return iter(self.data_loader)
        seed_torch(key(self.seed, 'order', number))
        return islice(iter(self.data_loader), first, None)

    def _log_step(self, bar: tqdm) -> None:
        """Called every `log_step` batches and at the end of an epoch; a subclass that logs says what."""

    def _finish_epoch(self, epoch: int, averages: dict) -> None:
        """Report, judge and save an epoch that is trained and validated."""
        self.epochs_done, self.position, self._resumed = epoch, 0, {}
        log = {'epoch': epoch, **averages}
        self.history.append(log)
        for name, value in log.items():
            self.logger.info(f'    {name:15s}: {value}')
        write_history(self.history, self.config.log_dir)
        try:
            improved = self._monitor.update(log)
        except ConfigError:
            self._save_last()
            raise
        if improved or epoch % self.save_period == 0:
            self._save_checkpoint(epoch, save_best=improved)
        self._save_last()

    def _flat(self, result: dict) -> dict[str, float]:
        """Averages by name as plain numbers; a list under 'metrics' or 'val_metrics' (old style) has an entry a metric function."""
        averages = {}
        for name, value in result.items():
            if name in ('metrics', 'val_metrics'):
                averages.update({f'{name[:-7]}{metric.__name__}': float(each) for metric, each in zip(self.metric_ftns, value)})
            else:
                averages[name] = float(value) if hasattr(value, 'item') else value
        return averages

    # Stopping and saving

    def _leave_if_asked(self) -> None:
        if self._stop.reason:
            self._save_last()
            raise Stopped

    def _save_if_due(self) -> None:
        if self.step % self._save_every_steps == 0 or time.monotonic() - self._saved_time >= self._save_every_s:
            self._save_last()

    def _save_checkpoint(self, epoch: int, save_best: bool = False) -> None:
        """Save the state after `epoch`: as the newest, by number every `save_period` epochs, and as the best when it is."""
        names = [LAST] + [f'checkpoint-epoch{epoch}.pth'] * (epoch % self.save_period == 0) + [BEST] * save_best
        self._write(names)
        keep_last = self.config['trainer'].get('keep_last')
        if keep_last is not None:
            checkpoint.prune(self.checkpoint_dir, keep_last)

    def _save_last(self) -> None:
        """Bring checkpoint-last.pth up to this moment."""
        if self._saved_at != (self.epochs_done, self.step):
            self._write([LAST])

    def _write(self, names: list[str]) -> None:
        """Write the present state under `names`; what is not finite is not written."""
        self._check_finite()
        try:
            checkpoint.save(self._state(), *(self.checkpoint_dir / name for name in names))
        except CheckpointError as error:
            if self.config['trainer'].get('on_save_error', 'stop') == 'stop':
                raise
            self.logger.warning(f'{error}\nGoing on without it (trainer.on_save_error is "warn").')
            return
        self._saved_at, self._saved_time = (self.epochs_done, self.step), time.monotonic()
        self.logger.debug(f'Saved {", ".join(names)}: {self.epochs_done} epochs, {self.step} steps')

    def _check_finite(self) -> None:
        """Raise NonFiniteError when a weight is nan or infinite."""
        broken = [name for name, value in bare(self.model).state_dict().items()
                  if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise NonFiniteError(f'epoch {self.epochs_done + 1}, step {self.step}: the weights {", ".join(broken[:3])} are not '
                                 f'finite; they are not saved. {self._way_back()}')

    def _way_back(self) -> str:
        """What to do after a loss that is not finite."""
        newest = self.checkpoint_dir / LAST
        there = f'The last good state is {newest}. ' if newest.is_file() else ''
        return (f'{there}Look at these samples and at the learning rate; trainer.max_grad_norm bounds a step, '
                'trainer.on_nan "skip" leaves such steps out.')

    def _state(self) -> dict:
        """Everything a run needs to go on from here, as plain data."""
        optimizer_state = self.optimizer.state_dict() if hasattr(self.optimizer, 'state_dict') else {}
        return {'format': checkpoint.FORMAT, 'arch': type(bare(self.model)).__name__, 'epoch': self.epochs_done,
                'state_dict': bare(self.model).state_dict(), 'optimizer': optimizer_state, 'monitor_best': self.mnt_best,
                'config': self.config.config, 'step': self.step, 'samples': self.position * self._batch_size(), 'seed': self.seed,
                'parts': {name: part.state_dict() for name, part in parts_of(self).items()}, 'history': self.history,
                'rng': rng_state(), 'made_by': made_by(self.seed, self.device)}

    # Resuming

    def _resume_checkpoint(self, resume_path: str | Path) -> None:
        """Take over model, optimizer, epoch and best; the other parts follow when training starts and all of them exist."""
        state = checkpoint.load(Path(resume_path))
        load_weights(self.model, state['state_dict'], resume_path)
        if state.get('optimizer') and hasattr(self.optimizer, 'load_state_dict'):
            load_optimizer(self.optimizer, state['optimizer'], state.get('config') or {}, self.config, self.logger)
        self.epochs_done = state.get('epoch', 0)
        self.start_epoch = self.epochs_done + 1
        self.step = state.get('step', 0)
        self.history = state.get('history', [])
        if self.mnt_mode != 'off':
            self.mnt_best = state.get('monitor_best', self.mnt_best)
        self._resumed = state
        changes = differences(state.get('made_by', {}), made_by(self.seed, self.device))
        if changes:
            self.logger.warning(f'Since the checkpoint was written, these have changed: {changes}. '
                                'The run goes on; its numbers may differ in the last digits.')
        self.logger.info(f'{resume_path} is loaded. Resume training from epoch {self.start_epoch}'
                         + (f', after step {self.step}' if state.get('samples') else ''))

    def _restore_parts(self) -> None:
        """Put back what the checkpoint holds beside model and optimizer, and the place inside the epoch."""
        if not self._resumed:
            return
        old_config = self._resumed.get('config') or {}
        if 'parts' in self._resumed:
            restore_parts(self, self._resumed['parts'], old_config)
        else:
            self.logger.warning('The checkpoint is of the old template, which saves no scheduler and no patience: '
                                'both start fresh.')
        self.position, rest = divmod(self._resumed.get('samples', 0), self._batch_size())
        if rest:
            raise ConfigError(f'The checkpoint stands inside epoch {self.start_epoch}, {self._resumed["samples"]} samples in, '
                              f'which is no whole number of batches of {self._batch_size()}: finish the epoch with the batch '
                              'size it was begun with, or resume from the checkpoint of a whole epoch.')
        if 'rng' in self._resumed:
            set_rng_state(self._resumed['rng'])

    def _batch_size(self) -> int:
        return getattr(getattr(self, 'data_loader', None), 'batch_size', None) or 1

    # Names of the old template

    def _prepare_device(self, n_gpu_use: int) -> tuple[torch.device, list[int]]:
        return prepare_device(n_gpu_use)

    @property
    def mnt_mode(self) -> str:
        return self._monitor.mode

    @property
    def mnt_metric(self) -> str:
        return self._monitor.metric

    @property
    def mnt_best(self) -> float:
        return self._monitor.best

    @mnt_best.setter
    def mnt_best(self, value: float) -> None:
        self._monitor.best = value

    @property
    def early_stop(self) -> float:
        return self._monitor.early_stop

    @early_stop.setter
    def early_stop(self, value: float) -> None:
        self._monitor.early_stop = value
