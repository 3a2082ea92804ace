"""BaseTrainer: the run around the epochs: resume, watch, stop, save."""

import functools
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from armature.batch import Parts, call_by_name, length, to_device
from armature.checkpoint import files as checkpoint
from armature.checkpoint.files import BEST, LAST, Saver
from armature.checkpoint.weights import bare, load_weights
from armature.config.keys import settings_of
from armature.data import identity
from armature.data.order import batches_from, batches_of, samples_of
from armature.errors import ConfigError, NonFiniteError, UserError
from armature.processes import dist
from armature.processes import launch as job
from armature.processes.devices import prepare_device
from armature.run.checks import (
    Feed,
    LossWatch,
    broken_weights,
    check_first_loss,
    labels_of_loader,
    refuse_lone_samples,
)
from armature.run.console import Console
from armature.run.folder import RunFolder, differences, rates_of, read_json
from armature.run.metrics import MetricTracker, reported
from armature.run.monitor import Monitor
from armature.run.record import read_table, values_of
from armature.run.resume import (
    as_built,
    load_optimizer,
    optimizer_as_built,
    parts_of,
    refuse_another_order,
    restore_parts,
    restore_sums,
    tested_weights_of,
    then_and_now,
    told,
)
from armature.run.stop import Stopped, StopRequest
from armature.seed import key, rng_state, seed_torch, set_rng_state
from armature.step.loss_share import count_in, count_of
from armature.step.prepare import asks_for_wrap
from armature.step.transfer import Frozen
from base.stepper import Stepper
from logger import TensorboardWriter


def _of_monitor(name: str) -> property:
    """An attribute of the trainer that is one of its monitor."""
    return property(
        lambda self: getattr(self._monitor, name),
        lambda self, value: setattr(self._monitor, name, value),
    )


class BaseTrainer(ABC):
    """Base of the project's trainers; a subclass has to write `_train_epoch(epoch) -> dict`, the
    epoch's averages by name.

    Every attribute that has `state_dict` and `load_state_dict` (schedulers, more models and
    optimizers, moving averages, also in a list, tuple or dict) is part of the checkpoint under its
    attribute's name; nothing has to be registered.
    """

    takes_pairs = False  # whether the loop can only unpack (data, target)

    def __init__(self, model, criterion, metric_ftns, optimizer, config, device=None):
        settings = self.settings = settings_of(config['trainer'])  # with the defaults
        if not dist.is_joined() and dist.is_started():
            raise ConfigError(
                'this script is started in several processes and does not join them: put '
                '"with processes(config):" around what it does, as train.py of a new project does'
            )
        if not dist.is_wrapped(model):
            raise ConfigError(
                'several processes train, and each would train a model of its own: say '
                'model = config.wrap(model, device) before the optimizer is made'
            )
        self.config = config
        self.logger = config.get_logger('trainer', settings.verbosity)
        if device is None:
            self.device, device_ids = self._prepare_device(config.get('n_gpu', 1))
        else:
            self.device, device_ids = torch.device(device), []
        self.model = model.to(self.device) if isinstance(model, nn.Module) else model
        if len(device_ids) > 1 and not isinstance(model, nn.DataParallel):
            self.model = nn.DataParallel(model, device_ids)
        if not getattr(config, 'wrapped', False) and (asked := asks_for_wrap(settings)):
            raise ConfigError(
                f'trainer.{asked} is done by config.wrap, which this script never calls: say '
                'model = config.wrap(model, device) before the optimizer is made, or leave it out'
            )
        self.frozen = Frozen.from_settings(self.model, settings)
        parts = config.get('batch')
        self._parts = Parts(parts, self.takes_pairs)
        if parts and isinstance(parts['data'], list):
            call_by_name(bare(self.model), parts['data'])
        self._data = None  # which data this is, looked up before it is trained on
        self.criterion = self.loss = criterion
        self._count = count_of(criterion)  # what the losses over parts of a batch are weighted by
        self.metric_ftns = self.metrics = metric_ftns
        self.optimizer = optimizer
        self.seed = torch.initial_seed()
        self._step_key = key(
            self.seed, 'step', dist.rank()
        )  # each step's randomness starts at this number plus the step's

        self.epochs = settings.epochs
        self.save_period = settings.save_period
        self.monitor = settings.monitor
        self._monitor = Monitor(self.monitor, settings.early_stop)
        self._stop = StopRequest(settings.max_minutes)

        self.start_epoch = 1
        self.epochs_done = 0
        self.step = 0  # optimizer steps since the beginning of the run
        self.position = 0  # batches of the epoch in progress that are behind us
        self.history = []  # what each finished epoch reported
        self._rows = []  # and its rows in metrics.csv, of a run that goes on
        self._rates, self._epoch_begun = {}, 0.0
        self._as_built = {
            'optimizer': optimizer_as_built(optimizer),
            'monitor': {'rule': self.monitor},
        }
        self._resumed = {}  # of the checkpoint: what is put back when training starts
        self._losses = LossWatch()
        self._of_epoch = None  # the bar and the steppers of the epoch in progress
        self._step_is_open = False  # a batch was given out, and end_step not called since
        self._feed = Feed(self.logger)
        self.console = Console(self)
        self._saved_at = None  # the moment that checkpoint-last.pth holds
        self._max_steps = settings.max_steps or math.inf
        self._save_every_steps = settings.save_every_steps or math.inf
        self._validate_every_steps = settings.validate_every_steps or math.inf
        self._save_every_s = 60 * (settings.save_every_minutes or math.inf)
        self._save_due = time.monotonic() + self._save_every_s

        self.checkpoint_dir = config.save_dir
        self._folder = RunFolder(self.checkpoint_dir)
        self._made_by = self._folder.made_by(self.seed, self.device)
        sharing = (config.get('distributed') or {}) if dist.is_joined() else {}
        self._saver = Saver(
            self.checkpoint_dir,
            self.logger,
            is_sharded=sharing.get('checkpoint') == 'sharded',
            stops=settings.on_save_error == 'stop',
        )
        if config.resume is not None:
            self._resume_checkpoint(config.resume)
        wants_tensorboard = settings.tensorboard
        self.writer = TensorboardWriter(
            config.log_dir,
            self.logger,
            wants_tensorboard and dist.is_main(),
            purge_step=self.step + 1 if self.step else None,
        )

    @abstractmethod
    def _train_epoch(self, epoch: int) -> dict:
        """Train for one epoch and return its averages by name."""

    def train(self) -> None:
        """Run the epochs that are left.

        A stop on request saves and leaves with the signal's exit code.
        """
        try:
            with self._folder.training(), self._stop.listening():
                dist.on_main(self._saver.set_aside)
                self._restore_parts()
                self._look_at_data()
                self._check_first_step()
                if self._finished:
                    self.logger.info(f'This run is finished: {self._finished}')
                    return
                dist.on_main(self._begin_record)
                self._train_epochs()
        except Stopped:
            # A trainer with files of its own kind, or a full disk: what was saved before is left.
            is_saved = self._saved_at == (self.epochs_done, self.step)
            self.console.end(
                f'Stopped by {self._stop.reason} in epoch {self.epochs_done + 1}, after '
                f'{self.step} steps. '
                + ('' if is_saved else 'This moment is not saved, only what was before it. ')
                + f'To go on: python train.py -r {self.checkpoint_dir}'
            )
            if self._stop.exit_code:
                job.exit_together(self._stop.exit_code)
        finally:
            self.writer.close()

    def _check_first_step(self) -> None:
        """Let the first step say whether data, model and loss suit each other."""
        loader = getattr(self, 'data_loader', None)
        check_first_loss(self, labels_of_loader(loader, lambda: self._feed.first))
        if isinstance(self.model, nn.Module):
            size = self.settings.microbatch_size
            refuse_lone_samples(self.model, loader, None if size == 'auto' else size)

    def _begin_record(self) -> None:
        """Say in the run's folder what is about to be trained there."""
        resumed = self.config.resume
        self._folder.begin(
            self._config_as_read(),
            self._rows,
            resumed_from=None if resumed is None else str(resumed),
            data=self._data,
            **self._made_by,
        )

    def _config_as_read(self) -> dict:
        """The config without what the script has filled in since, which may be any object."""
        if not hasattr(
            self.config, 'as_read'
        ):  # a ConfigParser of the project's own, which writes it when it reads it
            written = self.config.save_dir / 'config.json'
            return read_json(written) if written.is_file() else self.config.config
        return self.config.as_read

    def _train_epochs(self) -> None:
        self.console.begin()
        try:
            for epoch in range(self.start_epoch, self.epochs + 1):
                self.frozen.apply(epoch)
                self._epoch_begun, self._rates = time.perf_counter(), rates_of(self.optimizer)
                if hasattr(getattr(self, 'data_loader', None), 'seek'):
                    self.data_loader.seek(epoch - 1)
                with self._saying_where():
                    result = self._train_epoch(epoch)
                self._finish_epoch(epoch, result)
                if self._finished:
                    self.console.end(f'Training ends: {self._finished}')
                    break
                self._obey(max(dist.gather(self._stop.wish)))
        # Here and not where it is raised: what has lent the model its weights meanwhile has given
        # them back
        except Stopped:
            self._save_last()
            raise

    @contextmanager
    def _saying_where(self):
        """What model, loss or data raise inside keeps its traceback and gains a line."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (UserError, Stopped)):
                where = f'This was in epoch {self.epochs_done + 1}, after step {self.step}'
                if self._step_is_open:
                    place = self.position, self.epochs_done + 1, self.len_epoch, self.data_loader
                    where = f'{where} had begun, with the samples {samples_of(*place)}'
                error.add_note(where)
            raise

    @property
    def _finished(self) -> str:
        """Why there is nothing left to train, and how to train on; empty while there is."""
        again = f'To train longer: python train.py -r {self.checkpoint_dir} --set trainer'
        if self.epochs_done >= self.epochs:
            return f'all {self.epochs} epochs are done. {again}.epochs={self.epochs_done + 10}'
        if self._monitor.out_of_patience:
            waited = f'{self.mnt_metric} has not improved for {self.early_stop:g} epochs'
            return f'{waited}. {again}.early_stop={2 * self.early_stop:g}'
        if self.step >= self._max_steps:
            return f'{self.step} steps are done. {again}.max_steps={2 * self.step}'
        return ''

    # One epoch

    def batches(self, epoch: int) -> Iterator[Any]:
        """The batches that are left of the epoch, on the device.

        An epoch that was interrupted goes on after its last whole step. Each batch begins a step,
        whose randomness is keyed by its number; `end_step` ends it.
        """
        if self.position:
            restore_sums(self, self._resumed)
        parts = parts_of(self).values()
        steppers = [part for part in parts if isinstance(part, Stepper)]
        sharing = steppers + [part for part in parts if isinstance(part, MetricTracker)]
        self._logged = time.perf_counter(), self.step  # when and where the last line was logged
        count = None  # a loss counts by its samples
        if self._count is not length:
            count = functools.partial(count_in, count=self._count)
        with self.console.bar(epoch, self.position) as bar:
            stream = batches_from(
                self.position, epoch, self.len_epoch, self.data_loader, self.seed, self._restore_rng
            )
            stream = self._feed.watch(map(self._parts, stream), self.data_loader)
            self._of_epoch = SimpleNamespace(bar=bar, steppers=steppers)
            for batch in dist.in_step(
                stream, self.data_loader, sharing, self._wishes, self._obey, count
            ):
                self.step += 1
                self._step_is_open = True
                seed_torch(self._step_key + self.step, self.device)
                self.writer.set_step(self.step)
                if self.position + 1 == self.len_epoch:
                    self._rates = rates_of(self.optimizer)  # of the epoch's last step
                yield to_device(batch, self.device)
                if self._step_is_open:  # a loop of the old template or the first version
                    self.end_step()
        for stepper in steppers:
            seed_torch(key(self.seed, 'norm', epoch), self.device)
            passed = itertools.islice(self.watched(self.data_loader), self.len_epoch)
            stepper.renew_norm(data for data, *_ in passed)

    def end_step(self) -> None:
        """What is due after a step: note the loss, log, validate, save, stop.

        `batches` calls it before the next batch where the loop has not.
        """
        self._step_is_open = False
        self.position += 1
        for stepper in self._of_epoch.steppers:
            self._losses.note(self.step, stepper.loss)
        self._of_epoch.bar.update()
        is_last = self.position == self.len_epoch
        if is_last or self.position % self.log_step == 0:
            self._check_losses()
            self._log_step(self._of_epoch.bar)
        if self.step % self._validate_every_steps == 0 and not is_last:
            self._validate_between(self.epochs_done + 1)
        if self.step % self._save_every_steps == 0:
            self._save_last()
        if self.step == self._max_steps and not is_last:
            self._stop.reason = f'trainer.max_steps ({self._max_steps})'
            raise Stopped(self._stop.reason)

    def watched(self, loader: Iterable, *sharing: Any) -> Iterator[Any]:
        """The batches of a pass without steps (validation), on the device; a request to stop is met
        between two of them.

        sharing: trackers, which leave out what another process counts.
        """
        if hasattr(loader, 'seek'):
            loader.seek(0)
        batches = map(self._parts, batches_of(loader))
        for batch in dist.in_step(batches, loader, sharing, lambda: (self._stop.wish,), self._obey):
            yield to_device(batch, self.device)

    def _wishes(self) -> tuple[int, bool]:
        return self._stop.wish, time.monotonic() >= self._save_due

    def _obey(self, stop: int, save: bool = False) -> None:
        """What any of the processes has wished for is done in all of them."""
        if save:
            self._save_last()
        self._stop.grant(stop)
        if self._stop.reason:
            raise Stopped(self._stop.reason)

    def _log_step(self, bar: tqdm) -> None:  # noqa: B027
        """Called every `log_step` batches and at the end of an epoch."""

    def _validate_between(self, epoch: int) -> None:  # noqa: B027
        """Called every `trainer.validate_every_steps` steps inside an epoch."""

    def _finish_epoch(self, epoch: int, result: dict) -> None:
        """Report, judge and save an epoch that is trained and validated."""
        self._check_losses()
        averages, others = reported(result, self.metric_ftns)
        averages = dist.on_main(dict, averages)  # so that all processes decide by the same digits
        if not math.isfinite(averages.get('loss', 0)) and self.settings.on_nan == 'stop':
            raise NonFiniteError(
                f'epoch {epoch}: the loss is {averages["loss"]}. {self._way_back()}'
            )
        log = {'epoch': epoch, **averages}
        self.history.append(log)
        self.epochs_done, self.position, self._resumed = epoch, 0, {}
        if dist.is_main():
            seconds = time.perf_counter() - self._epoch_begun
            facts = {'epoch': epoch, 'step': self.step, 'seconds': seconds, **self._rates}
            self._folder.add_row(facts | log)
        try:
            improved = self._monitor.update(log)
        except ConfigError:
            self._save_last()
            raise
        self.console.epoch(log, others, improved)
        if improved or epoch % self.save_period == 0:
            self._save_checkpoint(epoch, save_best=improved)
        self._save_last()
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
        names = (
            [LAST]
            + [f'checkpoint-epoch{epoch}.pth'] * (epoch % self.save_period == 0)
            + [BEST] * save_best
        )
        self._write(names)
        keep_last = self.settings.keep_last
        if keep_last is not None:
            dist.on_main(checkpoint.prune, self.checkpoint_dir, keep_last)

    def _save_last(self) -> None:
        """Bring checkpoint-last.pth up to this moment.

        A trainer that reads files of its own kind writes all of them itself.
        """
        reads_its_own = type(self)._resume_checkpoint is not BaseTrainer._resume_checkpoint
        if self._saved_at != (self.epochs_done, self.step) and not reads_its_own:
            self._write([LAST])

    def _write(self, names: list[str]) -> None:
        """Write the present state under `names`; what is not finite is not written."""
        self._check_losses()
        self._check_weights()
        dist.share_buffers(bare(self.model))
        if self._saver.write(self._state(), names):
            if dist.is_main():
                best = self._saver.line['best']
                self._folder.note_saved(self.epochs_done, self.step, best)
            self._saved_at, self._save_due = (
                (self.epochs_done, self.step),
                time.monotonic() + self._save_every_s,
            )
            self.logger.debug(
                f'Saved {", ".join(names)}: {self.epochs_done} epochs, {self.step} steps'
            )

    def _check_losses(self) -> None:
        """Raise NonFiniteError on the first loss since the last time that is not finite."""
        broken = self._losses.first_broken()
        if dist.sums([broken is not None])[0]:
            broken = min(filter(None, dist.gather(broken)))
        if broken is not None and self.settings.on_nan == 'stop':
            step, loss = broken
            position = self.position - 1 - (self.step - step)
            samples, before = (
                samples_of(place, self.epochs_done + 1, self.len_epoch, self.data_loader)
                for place in (position, position - 1)
            )
            raise NonFiniteError(
                f'epoch {self.epochs_done + 1}, step {step}: the loss is {loss}. '
                f'{self._way_back()} Its samples: {samples}. Those of the step before, whose '
                f'gradients may have broken the weights: {before}.'
            )

    def _check_weights(self) -> None:
        broken = sorted(set().union(*dist.gather(broken_weights(bare(self.model)))))
        if broken:
            raise NonFiniteError(
                f'epoch {self.epochs_done + 1}, step {self.step}: {len(broken)} weights are not '
                f'finite ({", ".join(broken[:3])}); they are not saved. {self._way_back()}'
            )

    def _way_back(self) -> str:
        newest = self.checkpoint_dir / LAST
        there = f'The last good state is {newest}. ' if newest.is_file() else ''
        return (
            f'{there}Look at the samples and the learning rate; trainer.max_grad_norm bounds a step'
            + (
                '.'
                if self.settings.on_nan == 'skip'
                else ', trainer.on_nan "skip" leaves such out.'
            )
        )

    def _state(self) -> dict:
        """Everything a run needs to go on from here, as plain data."""
        optimizer_state = (
            self.optimizer.state_dict() if hasattr(self.optimizer, 'state_dict') else {}
        )
        rng, *rng_of_others = dist.gather(rng_state())
        tested = tested_weights_of(self)
        return {
            'arch': type(bare(self.model)).__name__,
            'epoch': self.epochs_done,
            'state_dict': bare(self.model).state_dict(),
            'optimizer': optimizer_state,
            'monitor_best': self.mnt_best,
            'config': self._config_as_read(),
            'step': self.step,
            'samples': self.position * self._batch_size(),
            'seed': self.seed,
            'data': self._look_at_data(),
            'parts': {
                # What was measured in an epoch that is finished has been reported.
                name: part.state_dict()
                if self.position or not isinstance(part, MetricTracker)
                else {}
                for name, part in parts_of(self).items()
            },
            'as_built': self._as_built,
            **({} if tested is None else {'tested': tested}),
            'finished': bool(self._finished),
            'rng': rng,
            'rng_of_others': rng_of_others,
            'made_by': self._made_by,
        }

    # Resuming

    def _resume_checkpoint(self, resume_path: str | Path) -> None:
        """Take over model, optimizer, epoch and best.

        The other parts follow when training starts and all of them exist.
        """
        state = checkpoint.load(Path(resume_path), bare(self.model), self.optimizer)
        load_weights(self.model, state['state_dict'], resume_path)
        then, now = then_and_now(state, self._as_built, self.config)
        if state.get('optimizer') and hasattr(self.optimizer, 'load_state_dict'):
            notes = load_optimizer('optimizer', self.optimizer, state['optimizer'], then, now)
            for note in told(notes):
                self.logger.info(note)
        self.epochs_done = state.get('epoch', 0)
        self.start_epoch = self.epochs_done + 1
        self.step = state.get('step', 0)
        table = Path(resume_path).parent / 'metrics.csv'  # the first version kept it in the state
        self._rows = state.get('history') or read_table(table, self.epochs_done)
        self.history = [{'epoch': row.get('epoch'), **values_of(row)} for row in self._rows]
        if self.mnt_mode != 'off' and then.get('monitor') == now['monitor']:
            self.mnt_best = state.get('monitor_best', self.mnt_best)
        self._resumed = state
        self._saver.go_on_from(state, Path(resume_path))
        dist.refuse_differences(
            {'epoch': self.epochs_done, 'step': self.step, 'samples': state.get('samples', 0)},
            str(resume_path),
        )
        changes = differences(state.get('made_by', {}), self._made_by)
        if changes:
            self.logger.warning(
                f'Since the checkpoint was written, these have changed: {changes}. '
                'The run goes on; its numbers may differ in the last digits.'
            )
        self.logger.info(
            f'{resume_path} is loaded. Resume training from epoch {self.start_epoch}'
            + (f', after step {self.step}' if state.get('samples') else '')
        )

    def _restore_parts(self) -> None:
        """Put back what the checkpoint holds beside model and optimizer, and the place inside the
        epoch.
        """
        self._as_built |= as_built(self)
        if not self._resumed:
            return
        notes = [
            'The checkpoint is of the old template, which saves no scheduler and no patience: both '
            'start fresh.'
        ]
        if 'parts' in self._resumed:
            both = then_and_now(self._resumed, self._as_built, self.config)
            refuse_another_order(self, self._resumed, *both)
            notes = restore_parts(self, self._resumed, *both)
        for note in told(notes):
            self.logger.info(note)
        self.position, rest = divmod(self._resumed.get('samples', 0), self._batch_size())
        if rest:
            raise ConfigError(
                f'The checkpoint stands inside epoch {self.start_epoch}, '
                f'{self._resumed["samples"]} samples in, which is no whole number of batches of '
                f'{self._batch_size()}: finish the epoch with the batch size it was begun with, '
                'or resume from the checkpoint of a whole epoch.'
            )
        self._restore_rng()

    def _look_at_data(self) -> dict:
        """Which data is trained on; when a run goes on, a ConfigError for another than before."""
        loader = getattr(self, 'data_loader', None)
        if self._data is None and loader is not None:
            self._data = dist.on_main(identity.identity_of, loader)
            before = (
                identity.data_of(self._resumed, Path(self.config.resume)) if self._resumed else {}
            )
            may_change = self.config.get('data_changed') == 'continue'
            for note in identity.refuse_changes(before, self._data, may_change):
                self.logger.warning(note)
        return self._data or {}

    def _restore_rng(self) -> None:
        saved = (
            [self._resumed['rng'], *self._resumed.get('rng_of_others', [])]
            if 'rng' in self._resumed
            else []
        )
        if dist.rank() < len(saved):
            set_rng_state(saved[dist.rank()])

    def _batch_size(self) -> int:
        return getattr(getattr(self, 'data_loader', None), 'batch_size', None) or 1

    # Names of the old template

    def _prepare_device(self, n_gpu_use: int) -> tuple[torch.device, list[int]]:
        return prepare_device(n_gpu_use)

    mnt_mode, mnt_metric, mnt_best, early_stop = map(
        _of_monitor, ('mode', 'metric', 'best', 'early_stop')
    )
