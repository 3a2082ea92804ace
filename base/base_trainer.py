"""BaseTrainer: the run around the epochs: resume, watch, stop, save."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from armature.batch import NO_BATCH, PairOf, call_by_name, to_device
from armature.checkpoint.files import BEST, LAST
from armature.checkpoint.weights import bare
from armature.config.keys import settings_of
from armature.data.order import epoch_batches, one_pass
from armature.errors import ConfigError, NonFiniteError, UserError
from armature.processes import dist
from armature.processes import launch as job
from armature.processes.devices import prepare_device
from armature.run import checks
from armature.run.console import Console
from armature.run.epoch import Epoch
from armature.run.metric_tracker import MetricTracker, reported
from armature.run.monitor import Monitor
from armature.run.record import RunRecord, as_read
from armature.run.resume import Resume
from armature.run.saving import Saver, state_of, stateful_of
from armature.run.stop import Stopped, StopRequest
from armature.run.trackers import Trackers
from armature.seed import key, seed_torch
from armature.step.micro_batches import Reduction
from armature.step.parameters import Frozen
from armature.step.prepare import refuse_without_wrap
from base.stepper import Stepper
from logger import TensorboardWriter


def _of(owner, name):
    """An attribute of the trainer that is one of its `owner`."""
    return property(
        lambda self: getattr(getattr(self, owner), name),
        lambda self, value: setattr(getattr(self, owner), name, value),
    )


class _AlsoCalled:
    """Another name of an attribute, until a trainer gives that name to something of its own."""

    def __init__(self, name):
        self.name = name

    def __get__(self, trainer, _):
        return getattr(trainer, self.name)


class BaseTrainer(ABC):
    """Base of the project's trainers; a subclass has to write `_train_epoch(epoch) -> dict`, the
    epoch's averages by name.

    Every attribute that has `state_dict` and `load_state_dict` (schedulers, more models and
    optimizers, moving averages, also in a list, tuple or dict) is part of the checkpoint under its
    attribute's name; nothing has to be registered.
    """

    takes_pairs = False  # whether the loop can only unpack (data, target)
    _broken_before = frozenset()  # weights that are not finite on purpose

    def __init__(self, model, criterion, metric_ftns, optimizer, config, device=None):
        self.config = config
        settings = self.settings = settings_of(config['trainer'])  # with the defaults
        dist.refuse_to_train_apart(model)
        refuse_without_wrap(config, settings)
        self.logger = config.get_logger('trainer')
        device_ids = []
        if device is None:
            device, device_ids = self._prepare_device(config.get('n_gpu', 1))
        self.device = torch.device(device)
        self.model = model.to(self.device) if isinstance(model, nn.Module) else model
        if len(device_ids) > 1 and not isinstance(model, nn.DataParallel):
            self.model = nn.DataParallel(model, device_ids)
        parts = config.get('batch')
        # In an old project the key may be its own, and mean another thing.
        self._pair_of = PairOf(parts if isinstance(parts, dict) else None, self.takes_pairs)
        call_by_name(bare(self.model), self._pair_of.names)
        self.criterion, self.metric_ftns, self.optimizer = criterion, metric_ftns, optimizer

        self.start_epoch = 1
        self.epochs_done = 0
        self.step = 0  # optimizer steps since the beginning of the run
        self.position = 0  # batches of the epoch in progress that are behind us
        self.history = []  # what each finished epoch reported

        self._record = RunRecord(config.save_dir)  # with which logging begins
        self.console = Console(self)
        self._monitor = Monitor(settings.monitor, settings.early_stop)
        self._stop = StopRequest(settings.max_minutes)
        self._saver = Saver(config.save_dir, settings, config.get('distributed'))
        self._epoch = Epoch(optimizer, self.step)  # what belongs to the one in progress
        self._resume = Resume(self)
        if config.resume is not None:
            self._resume_checkpoint(config.resume)
        self.writer = TensorboardWriter(
            config.log_dir,
            self.logger,
            settings.tensorboard and dist.is_main(),
            purge_step=self.step + 1,
            trackers=Trackers(settings.trackers, self._record, config.log_dir),
        )

    @abstractmethod
    def _train_epoch(self, epoch: int) -> dict:
        """Train for one epoch and return its averages by name."""

    def train(self) -> None:
        """Run the epochs that are left.

        A stop on request saves and leaves with the signal's exit code.
        """
        try:
            with self._record.training(), self._stop.listening():
                self._resume.data_now()
                self._resume.restore_parts()
                checks.check_first_step(self)
                if self._finished:
                    self.console.end(f'This run is finished: {self._finished}')
                    return
                dist.on_main(self._begin_record)
                self._train_epochs()
        except Stopped:
            # A trainer with files of its own kind, or a full disk: what was saved before is left.
            is_saved = self._saver.saved == [self.epochs_done, self.step]
            self.console.end(
                f'Stopped by {self._stop.reason} in epoch {self.epochs_done + 1}, after '
                f'{self.step} steps.'
                + ('' if is_saved else ' This moment is not saved, only what was before it.')
            )
        finally:
            self.writer.close()
        if self._stop.exit_code:
            job.exit_together(self._stop.exit_code)

    def _begin_record(self):
        """Say in the run's folder what is about to be trained there."""
        config, resumed = as_read(self.config), self.config.resume
        self._saver.bring_best()
        self._record.begin(
            config,
            seed=self.seed,
            monitor=self.monitor,
            resumed_from=resumed and str(resumed),
            data=self._resume.data,
            **self._resume.made_by,
        )
        self.writer.begin(config)

    def _train_epochs(self):
        self.console.begin()
        unfrozen_in = (self.settings.unfreeze_at or {}).get('epoch')
        frozen = Frozen(self.model, self.settings.freeze, unfrozen_in)
        try:
            for epoch in range(self.start_epoch, self.epochs + 1):
                frozen.apply(epoch)
                self._epoch = Epoch(self.optimizer, self.step)
                if hasattr(getattr(self, 'data_loader', None), 'seek'):
                    self.data_loader.seek(epoch - 1)  # for a loop that iterates it by itself
                self._finish_epoch(epoch, self._train_epoch(epoch))
                if self._finished:
                    self.console.end(f'Training ends: {self._finished}')
                    break
                self._stop.grant(max(dist.gather(self._stop.requested())))
        # Here and not where it is raised: what has lent the model its weights meanwhile has given
        # them back
        except Stopped:
            self._save_last()
            raise
        except UserError:
            raise
        except Exception as error:  # of model, loss or data: keeps its traceback and gains a line
            error.add_note(checks.where(self))
            raise

    @property
    def _finished(self):
        """Why there is nothing left to train; empty while there is."""
        if self.epochs_done >= self.epochs:
            return f'all {self.epochs} epochs are done'
        if self._monitor.out_of_patience:
            return f'{self.mnt_metric} has not improved for {self.early_stop:g} epochs'
        if self.step >= (self.settings.max_steps or math.inf):
            return f'{self.step} steps are done'
        return ''

    # One epoch

    def batches(self, epoch: int) -> Iterator[Any]:
        """The batches that are left of the epoch, on the device.

        An epoch that was interrupted goes on after its last whole step. Each batch begins a step,
        whose randomness is keyed by its number; `end_step` ends it. What is known of the batch
        (how many samples it holds) is `batch` of every stepper and MetricTracker meanwhile.
        """
        if self.position:
            self._resume.restore_sums()
        parts = stateful_of(self).values()
        steppers = [part for part in parts if isinstance(part, Stepper)]
        measures = [part for part in parts if isinstance(part, MetricTracker)]
        reduction = Reduction(self.criterion, self.data_loader)
        batches = epoch_batches(
            self.position,
            epoch,
            self.len_epoch,
            self.data_loader,
            self.seed,
            self._resume.restore_rng,
        )
        batches = dist.in_step(
            map(self._pair_of, batches),
            self.data_loader,
            None if reduction.by_samples else reduction.count_in,
        )
        step_key, device = key(self.seed, 'step', dist.rank()), torch.device(self.device)
        with self.console.bar(epoch) as bar:
            self._epoch.bar, self._epoch.steppers = bar, steppers
            self._epoch.wait()
            holders = [self._epoch, *steppers, *measures]
            try:
                for batch in batches:
                    for each in holders:
                        each.batch = batch  # the loop gets its content only
                    self._epoch.note_begin(is_last=self.position + 1 == self.len_epoch)
                    self.step += 1
                    seed_torch(step_key + self.step, device)
                    self.writer.set_step(self.step)
                    yield to_device(batch.content, device)
                    if self._epoch.step_is_open:  # a loop of the old template, the first version
                        self.end_step()
                    self._epoch.wait()
            finally:
                for each in holders:
                    each.batch = NO_BATCH
        if epoch == self.start_epoch:
            self._epoch.warn_of_waiting(self.data_loader, self.logger)
        for average in [each.average for each in steppers if each.average is not None]:
            seed_torch(key(self.seed, 'norm', epoch), device)
            passed = itertools.islice(self.watched(self.data_loader), self.len_epoch)
            average.renew_norm(data for data, *_ in passed)

    def end_step(self) -> None:
        """What is due after a step: note the loss, log, validate, save, stop.

        `batches` calls it before the next batch where the loop has not.
        """
        settings, epoch = self.settings, self._epoch
        self.position += 1
        is_last = self.position == self.len_epoch
        epoch.note_end(self.step)
        if is_last or self.position % self.log_step == 0:
            epoch.look_at_losses()
            self._log_step(epoch.bar)
        if not is_last and self._is_due(settings.validate_every_steps):
            self._validate_between(self.epochs_done + 1)
        if self._is_due(settings.save_every_steps):
            self._save_last()
        if self.step == settings.max_steps and not is_last:
            self._stop.reason = f'trainer.max_steps ({settings.max_steps})'
        # What any of the processes has requested is done in all of them.
        requests = self._stop.requested(), self._saver.is_due(), epoch.broken is not None
        stop, save, is_broken = epoch.agreement.after_step(*requests)
        if is_broken:
            checks.refuse_broken_losses(self)
        if save:
            self._save_last()
        self._stop.grant(stop)

    def _is_due(self, every):
        return every is not None and self.step % every == 0

    def watched(self, loader: Iterable, *holders: Any) -> Iterator[Any]:
        """The batches of a pass without steps (validation), on the device; a request to stop is met
        between two of them.

        holders: of a `batch`, such as MetricTrackers, which learn which one is due.
        """
        agreement = dist.Agreement()
        for content in one_pass(loader, self._pair_of, torch.device(self.device), *holders):
            yield content
            (stop,) = agreement.after_step(self._stop.requested())
            self._stop.grant(stop)

    def _log_step(self, bar: tqdm) -> None:  # noqa: B027
        """Called every `log_step` batches and at the end of an epoch."""

    def _validate_between(self, epoch):  # noqa: B027
        """Called every `trainer.validate_every_steps` steps inside an epoch."""

    def _finish_epoch(self, epoch, result):
        """Report, judge and save an epoch that is trained and validated."""
        checks.refuse_broken_losses(self)
        averages, others = reported(result, self.metric_ftns)
        averages = dist.on_main(dict, averages)  # so that all processes decide by the same digits
        self.epochs_done, self.position = epoch, 0
        if not math.isfinite(averages.get('loss', 0)) and self.settings.on_nan == 'stop':
            checks.refuse_broken_epoch(self, averages['loss'])
        log = {'epoch': epoch, **averages}
        self.history.append(log)
        self._resume.state = {}
        row = {'epoch': epoch, 'step': self.step, 'seconds': self._epoch.seconds()}
        row |= self._epoch.rates | averages  # of metrics.csv
        if dist.is_main():
            self._record.add_row(row)
        try:
            improved = self._monitor.update(log)
        except ConfigError:
            self._save_last()
            raise
        self.console.epoch(row, others, improved)
        if improved:
            self.writer.best(averages)
        if improved or epoch % self.save_period == 0:
            self._save_checkpoint(epoch, save_best=improved)
        self._save_last()  # unless this moment is saved
        if self._monitor.is_blind:
            text = f'{self.mnt_metric} is nan in every epoch so far, so there is no best'
            if self._finished:
                raise NonFiniteError(f'{text}: look at the metric, and at the data it is given')
            self.logger.warning(f'{text} (trainer.monitor)')

    # Stopping and saving

    def _save_checkpoint(self, epoch: int, save_best: bool = False) -> None:
        """Save the state after `epoch`.

        As the newest, by number every `save_period` epochs, and as the best when it is.
        """
        self.epochs_done = epoch  # a train() of one's own counts only here
        numbered = [f'checkpoint-epoch{epoch}.pth'] * (epoch % self.save_period == 0)
        self._write([LAST, *numbered, *[BEST] * save_best])

    def _save_last(self):
        """Bring checkpoint-last.pth up to this moment.

        A trainer that reads files of its own kind writes all of them itself.
        """
        reads_its_own = type(self)._resume_checkpoint is not BaseTrainer._resume_checkpoint
        if self._saver.saved != [self.epochs_done, self.step] and not reads_its_own:
            self._write([LAST])

    def _write(self, names):
        """Write the present state under `names`; what is not finite is not written."""
        checks.refuse_broken_losses(self)
        checks.refuse_broken_weights(self)
        dist.share_buffers(bare(self.model))
        if self._saver.write(state_of(self), names):
            if dist.is_main():
                self._record.note_saved(self.epochs_done, self.step, self._saver.line['best'])
            self.logger.debug(
                f'Saved {", ".join(names)}: {self.epochs_done} epochs, {self.step} steps'
            )

    # Resuming (what holds after it: armature/run/resume.py)

    def _resume_checkpoint(self, resume_path: str | Path) -> None:
        """Take over model, optimizer, epoch and best."""
        self._resume.take_over(Path(resume_path))

    def _batch_size(self):
        return getattr(getattr(self, 'data_loader', None), 'batch_size', None) or 1

    # Names of the old template

    def _prepare_device(self, n_gpu_use: int) -> tuple[torch.device, list[int]]:
        return prepare_device(n_gpu_use)

    checkpoint_dir, seed = _of('_record', 'folder'), _of('_resume', 'seed')
    monitor = _of('settings', 'monitor')
    epochs, save_period = _of('settings', 'epochs'), _of('settings', 'save_period')
    mnt_mode, mnt_metric = _of('_monitor', 'mode'), _of('_monitor', 'metric')
    mnt_best, early_stop = _of('_monitor', 'best'), _of('_monitor', 'early_stop')
    loss, metrics = _AlsoCalled('criterion'), _AlsoCalled('metric_ftns')
